"""The operator build: what it finds, what it says when something is missing, and that a stale CUDA library goes."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "cuda_ext"
HEADER = "#define TORCH_VERSION_MAJOR {}\n#define TORCH_VERSION_MINOR {}\n#define TORCH_VERSION_PATCH 0\n"
VARIABLES = ("SALTLM_TORCH", "SALTLM_CUDA", "SALTLM_CUDA_ARCHS", "SALTLM_WERROR", "CXX", "CUDA_HOME", "CUDA_PATH")


@pytest.fixture
def tools(monkeypatch):
    """The two build modules, with the environment's own settings out of the way."""
    monkeypatch.syspath_prepend(str(FOLDER))
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    import build_ops
    import toolchain

    return build_ops, toolchain


def fake_torch(folder, major, minor):
    include = folder / "torch" / "include" / "torch"
    (include / "csrc" / "stable").mkdir(parents=True)
    (include / "headeronly").mkdir()
    (include / "csrc" / "stable" / "library.h").touch()
    (include / "headeronly" / "version.h").write_text(HEADER.format(major, minor))
    return include.parent


def fake_program(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def fake_toolkit(root, release="13.0", headers=13000):
    fake_program(root / "bin" / "nvcc", f'echo "Cuda compilation tools, release {release}, V{release}.1"')
    (root / "lib").mkdir()
    (root / "lib" / "libcudart_static.a").touch()
    (root / "include").mkdir()
    (root / "include" / "cuda_runtime_api.h").write_text(f"#define CUDART_VERSION  {headers}\n")
    return root


def test_looking_does_not_import_torch():
    code = "import sys, build_ops; build_ops.torch_include(); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=FOLDER)


def test_torch_is_found_by_variable_or_path_and_only_when_new_enough(tools, monkeypatch, tmp_path):
    build_ops, toolchain = tools
    old, new = fake_torch(tmp_path / "old", 2, 9), fake_torch(tmp_path / "new", 2, 10)
    monkeypatch.setenv("SALTLM_TORCH", str(new.parent))
    assert build_ops.torch_include() == new
    assert toolchain.torch_version(new) == (2, 10, 0)
    monkeypatch.setenv("SALTLM_TORCH", str(old.parent))
    assert build_ops.torch_include() is None
    with pytest.raises(SystemExit, match=r"(?s)torch >= 2\.10; found only an older one.*pip install"):
        toolchain.require_torch()
    monkeypatch.delenv("SALTLM_TORCH")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "old"), str(tmp_path / "new"), *sys.path])
    assert build_ops.torch_include() == new


def test_torch_of_the_environment_is_found_when_it_is_not_importable(tools, monkeypatch, tmp_path):
    build_ops, _ = tools
    include = fake_torch(tmp_path, 2, 11)
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sysconfig, "get_path", lambda key: str(tmp_path))
    assert build_ops.torch_include() == include


def test_no_torch_is_named_with_the_way_to_get_it(tools, monkeypatch, tmp_path):
    _, toolchain = tools
    monkeypatch.setenv("SALTLM_TORCH", str(tmp_path))
    with pytest.raises(SystemExit, match=r"headers of torch >= 2\.10; found none[^$]*pip install 'torch>=2\.10'"):
        toolchain.require_torch()


def test_compiler_comes_from_cxx_with_its_words(tools, monkeypatch, tmp_path):
    _, toolchain = tools
    program = fake_program(tmp_path / "my++", "echo my compiler 1.0")
    wrapper = fake_program(tmp_path / "ccache", 'exec "$@"')
    monkeypatch.setenv("CXX", f"{wrapper} {program} -pipe")
    compiler = toolchain.compiler()
    assert compiler.version == "my compiler 1.0"
    assert compiler.command == (str(wrapper), str(program), "-pipe")
    assert compiler.program == str(program)


@pytest.mark.parametrize("cxx", ["", "no-such-compiler"])
def test_missing_compiler_is_named_with_the_way_to_get_it(tools, monkeypatch, tmp_path, cxx):
    _, toolchain = tools
    monkeypatch.setenv("CXX", cxx)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match=r"needs a C\+\+ compiler[^$]*apt-get install g\+\+"):
        toolchain.compiler()


def test_missing_ninja_is_named_with_the_way_to_get_it(tools, monkeypatch, tmp_path):
    _, toolchain = tools
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sysconfig, "get_path", lambda key: str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="pip install ninja"):
        toolchain.ninja()
    program = fake_program(tmp_path / "ninja", "")
    assert toolchain.ninja() == str(program)


def test_cuda_is_switched_off_or_named(tools, monkeypatch, tmp_path):
    _, toolchain = tools
    kit = fake_toolkit(tmp_path / "kit")
    monkeypatch.setenv("SALTLM_CUDA", "0")
    assert toolchain.cuda(tmp_path) is None
    monkeypatch.setenv("SALTLM_CUDA", str(kit))
    toolkit = toolchain.cuda(tmp_path)
    assert (toolkit.root, toolkit.libraries, toolkit.version) == (kit, kit / "lib", "13.0.1")
    monkeypatch.setenv("SALTLM_CUDA", str(tmp_path / "nothing"))
    with pytest.raises(SystemExit, match=r"SALTLM_CUDA=.*nothing holds no bin/nvcc that runs"):
        toolchain.cuda(tmp_path)


def test_unusable_toolkits_are_passed_over_with_the_reason(tools, monkeypatch, tmp_path, capsys):
    _, toolchain = tools
    old = fake_toolkit(tmp_path / "old", "12.4", 12040)
    mixed = fake_toolkit(tmp_path / "mixed", "13.0", 13020)
    good = fake_toolkit(tmp_path / "build" / "cuda13" / "nvidia" / "cu13")
    monkeypatch.setenv("CUDA_HOME", str(old))
    monkeypatch.setenv("CUDA_PATH", str(mixed))
    monkeypatch.setenv("PATH", os.defpath)
    assert toolchain.cuda(tmp_path).root == good
    said = capsys.readouterr().err
    assert "old is passed over: it is CUDA 12.4.1, and the operators need CUDA 13" in said
    assert "mixed is passed over: it mixes a CUDA 13.0 compiler with CUDA 13.2 headers" in said


def test_nvcc_on_path_is_asked_for_its_root(tools, monkeypatch, tmp_path):
    _, toolchain = tools
    kit = fake_toolkit(tmp_path / "kit")
    fake_program(tmp_path / "bin" / "nvcc", f'echo "#$ TOP={kit}"')
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.defpath}")
    assert toolchain.cuda(tmp_path / "elsewhere").root == kit


def test_architectures(tools):
    build_ops, _ = tools
    assert build_ops.gencodes("80;90+PTX, 90a") == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90,code=compute_90",
        "-gencode=arch=compute_90a,code=sm_90a",
    ]
    with pytest.raises(SystemExit, match="SALTLM_CUDA_ARCHS='80;hopper'"):
        build_ops.gencodes("80;hopper")


@pytest.fixture
def checkout(tmp_path):
    """A checkout in a folder with a space, whose operators are two empty libraries."""
    root = tmp_path / "a checkout"
    csrc = root / "cuda_ext" / "csrc"
    (csrc / "cpu").mkdir(parents=True)
    (csrc / "ops.cpp").write_text("int schemas() { return 1; }\n")
    (csrc / "cpu" / "kernels.cpp").write_text(
        "#define JOIN(a, b) a##b\n#define NAME(level) JOIN(kernel_, level)\nint NAME(SALTLM_LEVEL)() { return 1; }\n"
    )
    return root


def test_build_deletes_a_stale_cuda_library_and_records_itself(tools, monkeypatch, checkout):
    build_ops, _ = tools
    monkeypatch.setenv("SALTLM_CUDA", "0")
    lib = checkout / "python" / "saltlm" / "lib"
    lib.mkdir(parents=True)
    (lib / "_ops_cuda.so").touch()
    build_ops.build(checkout)
    assert sorted(path.name for path in lib.iterdir()) == ["_ops_cpu.so", "build.json"]
    info = json.loads((lib / "build.json").read_text())
    assert info["target"] == "2.10" and info["nvcc"] is None and info["archs"] == []
    assert "base" in info["cpu_levels"] and info["torch_headers"].startswith("2.")
    before = (checkout / "build" / "ops" / "_ops_cpu.so").stat().st_mtime_ns
    build_ops.build(checkout)
    assert (checkout / "build" / "ops" / "_ops_cpu.so").stat().st_mtime_ns == before, (
        "nothing changed, yet it was rebuilt"
    )


def test_failed_compilation_ends_with_one_message(tools, monkeypatch, checkout):
    build_ops, _ = tools
    monkeypatch.setenv("SALTLM_CUDA", "0")
    (checkout / "cuda_ext" / "csrc" / "ops.cpp").write_text("this is not C++\n")
    with pytest.raises(SystemExit, match="compiling the operators failed"):
        build_ops.build(checkout)
    assert not (checkout / "python" / "saltlm" / "lib" / "_ops_cpu.so").exists()


def test_compile_commands_have_an_entry_for_every_object(tools, monkeypatch, checkout):
    build_ops, _ = tools
    monkeypatch.setenv("SALTLM_WERROR", "1")
    entries = build_ops.compile_commands(checkout)
    outputs = [entry["output"] for entry in entries]
    assert outputs[0] == "ops.o" and "kernels.base.o" in outputs and len(set(outputs)) == len(outputs)
    for entry in entries:
        assert {"-Wall", "-Wextra", "-Werror", entry["file"]} <= set(entry["arguments"])
        # Each command compiles by itself.
        subprocess.run([*entry["arguments"][:-1], os.devnull], check=True, cwd=entry["directory"])


def test_missing_sources_are_named(tools, monkeypatch, tmp_path):
    build_ops, _ = tools
    monkeypatch.setenv("SALTLM_CUDA", "0")
    with pytest.raises(SystemExit, match="operator sources are missing"):
        build_ops.build(tmp_path)


def test_the_cuda_sources_are_in_the_library(tools):
    """Where the package was built with a toolkit, its CUDA library holds code for every architecture asked for."""
    lib = ROOT / "python" / "saltlm" / "lib"
    if not (lib / "_ops_cuda.so").is_file():
        pytest.skip("built without a CUDA toolkit")
    archs = json.loads((lib / "build.json").read_text())["archs"]
    assert {"sm_80", "sm_90", "compute_90"} <= set(archs)
    if shutil.which("nm"):
        command = ["nm", "-D", "--undefined-only", str(lib / "_ops_cuda.so")]
        needed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        assert "aoti_torch_get_current_cuda_stream" in needed
        assert "c10" not in needed and "cudaLaunchKernel" not in needed
