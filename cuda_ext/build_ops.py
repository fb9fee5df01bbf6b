"""Builds the torch operators with ninja: ``python cuda_ext/build_ops.py``, or through the wheel's build backend.

Two libraries on torch's stable ABI go to ``python/saltlm/lib``: ``_ops_cpu.so`` (schemas and CPU kernels) always, and
``_ops_cuda.so`` where a CUDA toolkit is found. torch's own extension builder is not used: it ties the result to one
Python and one torch, and refuses CUDA sources when the installed torch is a CPU build.

Variables: SALTLM_TORCH (folder of a torch), SALTLM_CUDA (a toolkit's root, ``0`` = CPU only), SALTLM_CUDA_ARCHS
(default ``80;90;90+PTX``), CXX, MAX_JOBS, SALTLM_WERROR=1 (warnings are errors).
"""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import toolchain
from toolchain import torch_include

__all__ = ["build", "torch_include"]

# Byte 0 is the major version, byte 1 the minor: 2.10, the first with what the sources use of the stable ABI.
TARGET = "0x020a000000000000ULL"
DEFAULT_ARCHS = "80;90;90+PTX"
# Sources named csrc/cpu/kernels*.cpp are compiled once per instruction set; the library picks one when it is loaded.
AVX2 = ["-mavx2", "-mfma", "-mf16c", "-mbmi2"]
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni", "-mprefer-vector-width=512"]
X86_LEVELS = {"base": [], "avx2": AVX2, "avx512": [*AVX2, *AVX512]}
# Not -ffast-math: NaN must stay NaN.
KERNEL_FLAGS = ["-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-fno-exceptions", "-fno-rtti"]
# The last two: gcc 12 warns inside its own AVX-512 header, and clang of options that it does not know.
KERNEL_FLAGS += ["-Wno-psabi", "-Wno-maybe-uninitialized", "-Wno-unknown-warning-option"]


def gencodes(archs: str) -> list[str]:
    """The -gencode options for a list such as ``80;90;90+PTX``: machine code per number, portable code per +PTX."""
    options = []
    for arch in re.split(r"[;, ]+", archs.strip()):
        found = re.fullmatch(r"(?:sm_)?(\d{2,3}[af]?)(\+PTX)?", arch)
        if found is None:
            raise toolchain.fail(f"SALTLM_CUDA_ARCHS={archs!r}: {arch!r} is not of the form 90, 90a or 90+PTX")
        code = "compute" if found[2] else "sm"
        options.append(f"-gencode=arch=compute_{found[1]},code={code}_{found[1]}")
    return options


def _quote(words: list[str]) -> str:
    # Words of a shell command inside a ninja file, where $ starts a variable.
    return " ".join(map(shlex.quote, words)).replace("$", "$$")


def _path(path: Path) -> str:
    return re.sub(r"([$: ])", r"$\1", str(path))


@dataclass(kw_only=True)
class NinjaFile:
    """The build description: each edge carries its whole command, so a changed flag rebuilds what it touches."""

    folder: Path
    lines: list[str] = field(default_factory=list)

    def compile(self, command: list[str], source: Path, name: str) -> Path:
        """Add the compilation of ``source`` to the object file ``name``; returns the object's path."""
        result = self.folder / name
        words = [*command, "-MMD", "-MF", f"{result}.d", "-c", str(source), "-o", str(result)]
        self._edge(result, [source], words, name, depfile=True)
        return result

    def link(self, command: list[str], objects: list[Path], name: str, libraries: list[str]) -> Path:
        """Add a shared library made of ``objects``; returns its path."""
        result = self.folder / name
        self._edge(result, objects, [*command, *map(str, objects), "-o", str(result), *libraries], name)
        return result

    def _edge(self, result: Path, inputs: list[Path], words: list[str], name: str, *, depfile: bool = False) -> None:
        rule = f"rule_{len(self.lines)}"
        lines = [f"rule {rule}", f"  command = {_quote(words)}", f"  description = {name}"]
        if depfile:
            lines += ["  deps = gcc", f"  depfile = {_path(result)}.d"]
        lines.append(f"build {_path(result)}: {rule} {' '.join(map(_path, inputs))}\n")
        self.lines.append("\n".join(lines))

    def run(self, ninja: str) -> bool:
        """Write the file and build everything in it; True on success."""
        (self.folder / "build.ninja").write_text(
            "ninja_required_version = 1.5\n" + "\n".join(self.lines), encoding="utf-8"
        )
        jobs = os.environ.get("MAX_JOBS") or str(os.cpu_count() or 1)
        # ninja's own report goes to stderr: under a build front end stdout is not always shown
        done = subprocess.run([ninja, "-C", str(self.folder), "-j", jobs], stdout=sys.stderr, check=False)
        return done.returncode == 0


def _levels(compiler: toolchain.Compiler) -> dict[str, list[str]]:
    # The instruction sets that kernels are compiled for; elsewhere than x86-64 the compiler's default alone.
    if platform.machine().lower() in ("x86_64", "amd64"):
        probe = [*compiler.command, *X86_LEVELS["avx512"], "-x", "c++", "-E", os.devnull]
        if subprocess.run(probe, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False).returncode == 0:
            return X86_LEVELS
    return {"base": []}


def _common(torch: Path) -> list[str]:
    flags = ["-std=c++17", "-O3", f"-DTORCH_TARGET_VERSION={TARGET}", "-isystem", str(torch)]
    return (
        [*flags, "-Wall", "-Wextra"]
        if os.environ.get("SALTLM_WERROR") != "1"
        else [*flags, "-Wall", "-Wextra", "-Werror"]
    )


def _prefix_maps(root: Path, torch: Path) -> list[str]:
    # Without these the absolute paths of the build machine end up in the library and in users' error messages.
    return [f"-ffile-prefix-map={root}=.", f"-ffile-prefix-map={torch.parent}=torch"]


def _link_command(compiler: toolchain.Compiler, torch: Path) -> list[str]:
    # libtorch.so alone is named: it brings libtorch_cpu.so, and on CUDA builds libtorch_cuda.so, so the same library
    # loads on both. Never by nvcc, which loses the order of these options and with it that entry.
    words = [*compiler.command, "-shared", "-L" + str(torch.parent / "lib"), "-Wl,--no-as-needed", "-ltorch"]
    return [*words, "-Wl,--as-needed", "-Wl,--exclude-libs,ALL", "-Wl,-z,now", "-s"]


def _cpu_library(ninja: NinjaFile, root: Path, torch: Path, compiler: toolchain.Compiler) -> dict[str, list[str]]:
    csrc = root / "cuda_ext" / "csrc"
    levels = _levels(compiler)
    command = [*compiler.command, *_common(torch), "-fPIC", "-fvisibility=hidden", "-fvisibility-inlines-hidden"]
    command += _prefix_maps(root, torch) + (["-DSALTLM_BASE_ONLY"] if len(levels) == 1 else [])
    sources = sorted(csrc.glob("*.cpp")) + sorted(csrc.glob("cpu/*.cpp"))
    if not sources:
        raise toolchain.fail(f"the operator sources are missing: no .cpp file under {csrc}")
    objects = []
    for source in sources:
        if source.name.startswith("kernels"):
            for level, flags in levels.items():
                words = [*command, *KERNEL_FLAGS, *flags, f"-DSALTLM_LEVEL={level}"]
                objects.append(ninja.compile(words, source, f"{source.stem}.{level}.o"))
        else:
            objects.append(ninja.compile(command, source, f"{source.stem}.o"))
    ninja.link(_link_command(compiler, torch), objects, "_ops_cpu.so", [])
    return levels


def _cuda_library(
    ninja: NinjaFile, root: Path, torch: Path, compiler: toolchain.Compiler, cuda: toolchain.Cuda, archs: list[str]
) -> None:
    host = ["-fPIC", "-fvisibility=hidden"]
    if not re.search(r"[ ,]", f"{root}{torch}"):  # nvcc splits what it hands to the host compiler at commas and spaces
        host += _prefix_maps(root, torch)
    flags = [word for word in _common(torch) if word not in ("-Wall", "-Wextra", "-Werror")]
    strict = ["-Werror", "all-warnings"] if os.environ.get("SALTLM_WERROR") == "1" else []
    command = [str(cuda.root / "bin" / "nvcc"), "-ccbin", compiler.program, *flags, "-DUSE_CUDA"]
    command += ["--expt-relaxed-constexpr", *strict, "-Xcompiler", ",".join([*host, "-Wall"]), *archs]
    # -DUSE_CUDA is what makes torch's headers declare the stream function
    sources = sorted((root / "cuda_ext" / "csrc" / "cuda").glob("*.cu"))
    objects = [ninja.compile(command, source, f"{source.stem}.cu.o") for source in sources]
    runtime = ["-L" + str(cuda.libraries), "-lcudart_static", "-ldl", "-lrt", "-lpthread"]
    ninja.link(_link_command(compiler, torch), objects, "_ops_cuda.so", runtime)


def build(root: Path) -> None:
    """Build the operators of the checkout at ``root`` into ``python/saltlm/lib``.

    Args:
        root: The repository's top folder.

    Raises:
        SystemExit: A tool or torch's headers are missing, a variable makes no sense, or a compilation failed; the text
            says what and what to do.
    """
    root = root.resolve()
    lib = root / "python" / "saltlm" / "lib"
    if not sys.platform.startswith("linux"):
        toolchain.note(f"operators are built on Linux only, not on {sys.platform}; the stock torch reference will run")
        return
    torch = toolchain.require_torch()
    compiler, program, cuda = toolchain.compiler(), toolchain.ninja(), toolchain.cuda(root)
    archs = gencodes(os.environ.get("SALTLM_CUDA_ARCHS") or DEFAULT_ARCHS) if cuda else []
    # A CUDA library left by an earlier build would be packaged beside CPU operators that it does not match.
    if cuda is None:
        (lib / "_ops_cuda.so").unlink(missing_ok=True)
    folder = root / "build" / "ops"
    folder.mkdir(parents=True, exist_ok=True)
    ninja = NinjaFile(folder=folder)
    levels = _cpu_library(ninja, root, torch, compiler)
    if cuda:
        _cuda_library(ninja, root, torch, compiler, cuda, archs)
    toolchain.note(
        f"building operators: {compiler.version}; " + (f"CUDA {cuda.version}" if cuda else "no CUDA: CPU only")
    )
    if not ninja.run(program):
        hint = "; SALTLM_CUDA=0 builds the CPU operators alone" if cuda else ""
        raise toolchain.fail(f"compiling the operators failed, see above{hint}.")
    info = {
        "target": "2.10",
        "torch_headers": ".".join(map(str, toolchain.torch_version(torch))),
        "compiler": compiler.version,
        "cpu_levels": list(levels),
        "nvcc": cuda.version if cuda else None,
        "archs": [option.split(",code=")[1] for option in archs],
    }
    _install(folder, lib, info, ["_ops_cpu.so"] + (["_ops_cuda.so"] if cuda else []))


def _install(folder: Path, lib: Path, info: dict[str, object], names: list[str]) -> None:
    # By rename, so that a running process keeps the file it has mapped.
    lib.mkdir(parents=True, exist_ok=True)
    for name in names:
        fresh = lib / f".{name}.new"
        fresh.write_bytes((folder / name).read_bytes())
        fresh.chmod(0o755)
        fresh.replace(lib / name)
    (lib / "build.json").write_text(json.dumps(info, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    build(Path(__file__).resolve().parent.parent)
