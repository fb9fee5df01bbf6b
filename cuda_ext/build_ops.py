"""Builds the torch operators with ninja: ``python cuda_ext/build_ops.py``, or through the wheel's build backend.

Two libraries on torch's stable ABI are written to ``python/saltlm/lib``: ``_ops_cpu.so`` (schemas and CPU kernels)
always, and ``_ops_cuda.so`` where a CUDA toolkit is found. torch's own extension builder is not used: it ties the result
to one Python and one torch, and refuses CUDA sources when the installed torch is a CPU build.

``--compile-commands FILE`` builds nothing and writes the compile commands of the CPU sources as a JSON compilation
database, for clang-tidy and editors.

Environment variables: SALTLM_TORCH (folder of a torch), SALTLM_CUDA (root of a toolkit, ``0`` for CPU only),
SALTLM_CUDA_ARCHS (default ``80;90;90+PTX``), CXX, MAX_JOBS, SALTLM_WERROR=1 (warnings are errors).
"""

from __future__ import annotations

import argparse
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

__all__ = ["build", "compile_commands", "torch_include"]

# Byte 0 is the major version, byte 1 the minor version: 2.10, the first with the parts of the stable ABI that are used.
TARGET = "0x020a000000000000ULL"
DEFAULT_ARCHS = "80;90;90+PTX"
# Sources named csrc/cpu/kernels*.cpp are compiled once per instruction set; the library chooses one when it is loaded.
AVX2 = ["-mavx2", "-mfma", "-mf16c", "-mbmi2"]
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni", "-mprefer-vector-width=512"]
X86_LEVELS = {"base": [], "avx2": AVX2, "avx512": [*AVX2, *AVX512]}
# Not -ffast-math: the kernels rely on NaN.
KERNEL_FLAGS = ["-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-fno-exceptions", "-fno-rtti"]
# The last two because gcc 12 warns inside its own AVX-512 header, and clang warns about options that it does not know.
KERNEL_FLAGS += ["-Wno-psabi", "-Wno-maybe-uninitialized", "-Wno-unknown-warning-option"]
WARNINGS = ["-Wall", "-Wextra"]


def gencodes(archs: str) -> list[str]:
    """The -gencode options for a list of architectures.

    Args:
        archs: For example ``80;90;90+PTX``: machine code for each number, portable code for each ``+PTX``.

    Raises:
        SystemExit: An architecture is malformed.
    """
    options = []
    for arch in re.split(r"[;, ]+", archs.strip()):
        match = re.fullmatch(r"(?:sm_)?(\d{2,3}[af]?)(\+PTX)?", arch)
        if match is None:
            raise toolchain.fail(f"SALTLM_CUDA_ARCHS={archs!r}: {arch!r} is not of the form 90, 90a or 90+PTX")
        code = "compute" if match[2] else "sm"
        options.append(f"-gencode=arch=compute_{match[1]},code={code}_{match[1]}")
    return options


def _quote(words: list[str]) -> str:
    # The words of a shell command as text of a ninja file, where $ starts a variable.
    return " ".join(map(shlex.quote, words)).replace("$", "$$")


def _path(path: Path) -> str:
    return re.sub(r"([$: ])", r"$\1", str(path))


@dataclass(frozen=True, kw_only=True)
class Compilation:
    """The compilation of one source file: its command without the output options, and the name of the object file."""

    command: list[str]
    source: Path
    name: str


@dataclass(kw_only=True)
class NinjaFile:
    """A ninja build description. Every edge contains its whole command, so a changed flag rebuilds what it affects."""

    folder: Path
    lines: list[str] = field(default_factory=list)

    def compile(self, compilation: Compilation) -> Path:
        """Add the compilation of one source file; returns the path of the object file."""
        result = self.folder / compilation.name
        words = [*compilation.command, "-MMD", "-MF", f"{result}.d", "-c", str(compilation.source), "-o", str(result)]
        self._edge(result, [compilation.source], words, compilation.name, depfile=True)
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
        # ninja's output goes to stderr, because build front ends do not always show stdout.
        result = subprocess.run([ninja, "-C", str(self.folder), "-j", jobs], stdout=sys.stderr, check=False)
        return result.returncode == 0


def _levels(compiler: toolchain.Compiler) -> dict[str, list[str]]:
    # The instruction sets that kernels are compiled for. On machines other than x86-64: the compiler's default only.
    if platform.machine().lower() in ("x86_64", "amd64"):
        probe = [*compiler.command, *X86_LEVELS["avx512"], "-x", "c++", "-E", os.devnull]
        if subprocess.run(probe, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False).returncode == 0:
            return X86_LEVELS
    return {"base": []}


def _werror() -> bool:
    return os.environ.get("SALTLM_WERROR") == "1"


def _common_flags(torch: Path) -> list[str]:
    return ["-std=c++17", "-O3", f"-DTORCH_TARGET_VERSION={TARGET}", "-isystem", str(torch)]


def _prefix_maps(root: Path, torch: Path) -> list[str]:
    # Otherwise the build machine's absolute paths would be part of the library and of users' error messages.
    return [f"-ffile-prefix-map={root}=.", f"-ffile-prefix-map={torch.parent}=torch"]


def _link_command(compiler: toolchain.Compiler, torch: Path) -> list[str]:
    # Only libtorch.so is named: it loads libtorch_cpu.so, and on CUDA builds libtorch_cuda.so, so the same library works
    # with both. The compiler links, not nvcc, which changes the order of these options and so loses that entry.
    words = [*compiler.command, "-shared", "-L" + str(torch.parent / "lib"), "-Wl,--no-as-needed", "-ltorch"]
    return [*words, "-Wl,--as-needed", "-Wl,--exclude-libs,ALL", "-Wl,-z,now", "-s"]


def _cpu_compilations(
    root: Path, torch: Path, compiler: toolchain.Compiler, levels: dict[str, list[str]]
) -> list[Compilation]:
    csrc = root / "cuda_ext" / "csrc"
    command = [*compiler.command, *_common_flags(torch), *WARNINGS, *(["-Werror"] if _werror() else [])]
    command += ["-fPIC", "-fvisibility=hidden", "-fvisibility-inlines-hidden", *_prefix_maps(root, torch)]
    command += ["-DSALTLM_BASE_ONLY"] if len(levels) == 1 else []
    sources = sorted(csrc.glob("*.cpp")) + sorted(csrc.glob("cpu/*.cpp"))
    if not sources:
        raise toolchain.fail(f"the operator sources are missing: no .cpp file under {csrc}")
    compilations = []
    for source in sources:
        if source.name.startswith("kernels"):
            for level, flags in levels.items():
                words = [*command, *KERNEL_FLAGS, *flags, f"-DSALTLM_LEVEL={level}"]
                compilations.append(Compilation(command=words, source=source, name=f"{source.stem}.{level}.o"))
        else:
            compilations.append(Compilation(command=command, source=source, name=f"{source.stem}.o"))
    return compilations


def _cuda_compilations(
    root: Path, torch: Path, compiler: toolchain.Compiler, cuda: toolchain.Cuda, archs: list[str]
) -> list[Compilation]:
    host = ["-fPIC", "-fvisibility=hidden", "-Wall"]
    if not re.search(r"[ ,]", f"{root}{torch}"):  # nvcc splits the host compiler's options at commas and spaces
        host += _prefix_maps(root, torch)
    # -DUSE_CUDA makes torch's headers declare the stream function.
    command = [str(cuda.root / "bin" / "nvcc"), "-ccbin", compiler.program, *_common_flags(torch), "-DUSE_CUDA"]
    command += ["--expt-relaxed-constexpr", *(["-Werror", "all-warnings"] if _werror() else [])]
    command += ["-Xcompiler", ",".join(host), *archs]
    sources = sorted((root / "cuda_ext" / "csrc" / "cuda").glob("*.cu"))
    return [Compilation(command=command, source=source, name=f"{source.stem}.cu.o") for source in sources]


def compile_commands(root: Path) -> list[dict[str, object]]:
    """The compile commands of the CPU sources, as entries of a JSON compilation database.

    Args:
        root: The repository's top folder.

    Returns:
        One entry per object file, so kernels have one for each instruction set.

    Raises:
        SystemExit: A compiler or torch's headers are missing.
    """
    root = root.resolve()
    torch, compiler = toolchain.require_torch(), toolchain.compiler()
    return [
        {
            "directory": str(root),
            "file": str(compilation.source),
            "arguments": [*compilation.command, "-c", str(compilation.source), "-o", compilation.name],
            "output": compilation.name,
        }
        for compilation in _cpu_compilations(root, torch, compiler, _levels(compiler))
    ]


def build(root: Path) -> None:
    """Build the operators of the checkout at ``root`` into ``python/saltlm/lib``.

    Args:
        root: The repository's top folder.

    Raises:
        SystemExit: A tool or torch's headers are missing, a variable is invalid, or a compilation failed; the text says
            what is wrong and what to do.
    """
    root = root.resolve()
    lib = root / "python" / "saltlm" / "lib"
    if not sys.platform.startswith("linux"):
        toolchain.note(
            f"the operators are built on Linux only, not on {sys.platform}; the reference in stock torch is used"
        )
        return
    torch = toolchain.require_torch()
    compiler, program, cuda = toolchain.compiler(), toolchain.ninja(), toolchain.cuda(root)
    archs = gencodes(os.environ.get("SALTLM_CUDA_ARCHS") or DEFAULT_ARCHS) if cuda else []
    # A CUDA library of an earlier build would be packaged with CPU operators that it does not match.
    if cuda is None:
        (lib / "_ops_cuda.so").unlink(missing_ok=True)
    folder = root / "build" / "ops"
    folder.mkdir(parents=True, exist_ok=True)
    ninja = NinjaFile(folder=folder)
    levels = _levels(compiler)
    link = _link_command(compiler, torch)
    ninja.link(link, [ninja.compile(c) for c in _cpu_compilations(root, torch, compiler, levels)], "_ops_cpu.so", [])
    if cuda:
        objects = [ninja.compile(c) for c in _cuda_compilations(root, torch, compiler, cuda, archs)]
        runtime = ["-L" + str(cuda.libraries), "-lcudart_static", "-ldl", "-lrt", "-lpthread"]
        ninja.link(link, objects, "_ops_cuda.so", runtime)
    toolchain.note(
        f"building operators: {compiler.version}; " + (f"CUDA {cuda.version}" if cuda else "no CUDA: CPU only")
    )
    if not ninja.run(program):
        hint = "; SALTLM_CUDA=0 builds the CPU operators alone" if cuda else ""
        raise toolchain.fail(f"compiling the operators failed, see above{hint}.")
    info: dict[str, object] = {
        "target": "2.10",
        "torch_headers": ".".join(map(str, toolchain.torch_version(torch))),
        "compiler": compiler.version,
        "cpu_levels": list(levels),
        "nvcc": cuda.version if cuda else None,
        "archs": [option.split(",code=")[1] for option in archs],
    }
    _install(folder, lib, info, ["_ops_cpu.so"] + (["_ops_cuda.so"] if cuda else []))


def _install(folder: Path, lib: Path, info: dict[str, object], names: list[str]) -> None:
    # By rename, so that a running process keeps the file that it has mapped.
    lib.mkdir(parents=True, exist_ok=True)
    for name in names:
        temporary = lib / f".{name}.new"
        temporary.write_bytes((folder / name).read_bytes())
        temporary.chmod(0o755)
        temporary.replace(lib / name)
    (lib / "build.json").write_text(json.dumps(info, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Command line of this file."""
    parser = argparse.ArgumentParser(description="Build the torch operators into python/saltlm/lib.")
    parser.add_argument(
        "--compile-commands", type=Path, metavar="FILE", help="build nothing; write a JSON compilation database"
    )
    arguments = parser.parse_args()
    root = Path(__file__).resolve().parent.parent
    if arguments.compile_commands is None:
        build(root)
        return
    arguments.compile_commands.parent.mkdir(parents=True, exist_ok=True)
    arguments.compile_commands.write_text(json.dumps(compile_commands(root), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
