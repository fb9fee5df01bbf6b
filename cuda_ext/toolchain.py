"""Finds what the operator build needs, by path only: torch's headers, the C++ compiler, ninja and a CUDA toolkit.

torch is never imported: under pip's build isolation it is not importable, but its folder can still be found, so that no
second torch has to be downloaded. Every failure is a SystemExit that says what is missing and how to get it.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

MINIMUM_TORCH = (2, 10)
MINIMUM_CUDA = (13, 0)


def note(text: str) -> None:
    """Print one line to stderr, which pip shows."""
    print(f"saltlm: {text}", file=sys.stderr, flush=True)


def fail(text: str) -> SystemExit:
    """Return the exception that ends a build with one message."""
    return SystemExit(f"saltlm: {text}")


def _output(*command: str) -> str:
    # Standard output and error of a short command; empty if it fails or does not exist.
    try:
        result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    except OSError:
        return ""
    return result.stdout if result.returncode == 0 else ""


def _torch_folders() -> list[Path]:
    # The environment's site-packages come last: under build isolation they are not on sys.path, but sysconfig returns
    # them, because pip keeps sys.prefix.
    if folder := os.environ.get("SALTLM_TORCH"):
        return [Path(folder), Path(folder) / "torch"]
    bases = [Path(entry or ".") for entry in sys.path]
    bases += [Path(sysconfig.get_path(key)) for key in ("purelib", "platlib")]
    return [base / "torch" for base in dict.fromkeys(bases)]


def torch_version(include: Path) -> tuple[int, int, int]:
    """The version in torch's headers under ``include``; (0, 0, 0) if they contain none."""
    headers = include / "torch" / "headeronly" / "version.h"
    text = headers.read_text(encoding="utf-8") if headers.is_file() else ""
    parts = [re.search(rf"#define TORCH_VERSION_{part} (\d+)", text) for part in ("MAJOR", "MINOR", "PATCH")]
    major, minor, patch = (int(part[1]) if part else 0 for part in parts)
    return (major, minor, patch)


def torch_include() -> Path | None:
    """The include folder of the first torch that is new enough for the operators, or ``None``."""
    for folder in _torch_folders():
        include = folder / "include"
        # headers newer than the target work; older ones lack declarations that the sources use
        if (include / "torch" / "csrc" / "stable" / "library.h").is_file() and torch_version(include) >= MINIMUM_TORCH:
            return include.resolve()
    return None


def require_torch() -> Path:
    """The result of :func:`torch_include`.

    Raises:
        SystemExit: No torch is new enough; the text says what was found instead.
    """
    if include := torch_include():
        return include
    minimum = ".".join(map(str, MINIMUM_TORCH))
    unusable = [str(folder) for folder in _torch_folders() if (folder / "include").is_dir()]
    found = f"found only an older one or none of its headers in {', '.join(unusable)}" if unusable else "found none"
    raise fail(
        f"building the operators needs the headers of torch >= {minimum}; {found}.\n"
        f"  Get it with: {sys.executable} -m pip install 'torch>={minimum}'\n"
        "  or set SALTLM_TORCH to the folder of an installed torch (the one that holds include/ and lib/)."
    )


@dataclass(frozen=True, kw_only=True)
class Compiler:
    """A C++ compiler: the words that start its command line and its version line."""

    command: tuple[str, ...]
    version: str

    @property
    def program(self) -> str:
        """The compiler's program, without a caching wrapper before it or options after it, for nvcc's -ccbin."""
        wrappers = ("ccache", "sccache", "distcc")
        return next((word for word in self.command if Path(word).name not in wrappers), self.command[0])


def compiler() -> Compiler:
    """The compiler named by CXX if that is set, otherwise the first of g++, c++ and clang++ that runs.

    Raises:
        SystemExit: No compiler runs.
    """
    requested = os.environ.get("CXX", "").strip()
    for candidate in [requested] if requested else ["g++", "c++", "clang++"]:
        command = tuple(shlex.split(candidate))
        if text := _output(*command, "--version"):
            return Compiler(command=command, version=text.splitlines()[0])
    found = f"CXX={requested} does not run" if requested else "none of g++, c++ and clang++ was found"
    raise fail(
        f"building the operators needs a C++ compiler (C++17); {found}.\n"
        "  Get one with: apt-get install g++ (Debian, Ubuntu), dnf install gcc-c++ (Fedora, RHEL),\n"
        "  or set CXX to yours."
    )


def ninja() -> str:
    """The ninja program: on PATH, in the scripts folder of this interpreter, or in the package of that name.

    Raises:
        SystemExit: ninja was not found.
    """
    scripts = sysconfig.get_path("scripts")
    if path := shutil.which("ninja") or shutil.which("ninja", path=scripts):
        return path
    spec = importlib.util.find_spec("ninja")
    if spec is not None and spec.origin is not None:
        # the place of the program differs between releases of the package
        for program in (Path(spec.origin).parent / "data" / "bin" / "ninja", Path(spec.origin).parent / "ninja"):
            if program.is_file():
                return str(program)
    raise fail(
        "building the operators needs ninja, which was not found.\n"
        f"  Get it with: {sys.executable} -m pip install ninja"
    )


@dataclass(frozen=True, kw_only=True)
class Cuda:
    """A CUDA toolkit: its root, the folder of its libraries, and the compiler's version."""

    root: Path
    libraries: Path
    version: str


def _nvcc_version(root: Path) -> str:
    match = re.search(r"release [\d.]+, V([\d.]+)", _output(str(root / "bin" / "nvcc"), "--version"))
    return match[1] if match else ""


def _toolkit_fault(root: Path) -> str | None:
    # The reason why the toolkit at root cannot be used, or None.
    version = _nvcc_version(root)
    if not version:
        return "holds no bin/nvcc that runs"
    release = tuple(int(part) for part in version.split(".")[:2])
    if release < MINIMUM_CUDA:
        return f"is CUDA {version}, and the operators need CUDA {MINIMUM_CUDA[0]} or newer"
    if not any((root / folder / "libcudart_static.a").is_file() for folder in ("lib64", "lib")):
        return "lacks libcudart_static.a (package nvidia-cuda-runtime)"
    headers = root / "include" / "cuda_runtime_api.h"
    match = re.search(
        r"#define\s+CUDART_VERSION\s+(\d+)", headers.read_text("utf-8", "replace") if headers.is_file() else ""
    )
    if match is None:
        return "lacks include/cuda_runtime_api.h (package nvidia-cuda-runtime)"
    header_release = (int(match[1]) // 1000, int(match[1]) % 1000 // 10)
    if header_release != release:
        # torch's packages install headers of another minor version into the same tree, which nvcc refuses to mix
        return (
            f"mixes a CUDA {release[0]}.{release[1]} compiler with CUDA {header_release[0]}.{header_release[1]} headers"
        )
    return None


def _nvcc_on_path() -> Path | None:
    # PATH may contain a wrapper script outside of the toolkit, so the root is taken from nvcc's output.
    if (nvcc := shutil.which("nvcc")) is None:
        return None
    top = re.search(r"^#\$ TOP=(.+)$", _output(nvcc, "--dryrun", "-x", "cu", "-c", os.devnull), re.MULTILINE)
    return Path(top[1].strip()) if top else Path(nvcc).resolve().parent.parent


def cuda(root: Path) -> Cuda | None:
    """The CUDA toolkit to build with, or ``None`` for the CPU operators only.

    If SALTLM_CUDA is set, it decides: ``0`` means none, otherwise it is the toolkit's root and must be usable. If it is
    not set, the first usable toolkit of CUDA_HOME, CUDA_PATH, the nvcc on PATH, ``<root>/build/cuda13`` (packages
    installed by ``pip install --target``) and the environment's ``nvidia/cu13`` is used; unusable ones are reported.

    Args:
        root: The repository's top folder.

    Raises:
        SystemExit: SALTLM_CUDA names a toolkit that is not usable.
    """
    requested = os.environ.get("SALTLM_CUDA", "").strip()
    if requested == "0":
        return None
    if requested:
        if fault := _toolkit_fault(Path(requested)):
            raise fail(
                f"SALTLM_CUDA={requested} {fault}.\n  Set it to the root of a CUDA toolkit, or to 0 for the CPU only."
            )
        return _toolkit(Path(requested))
    roots = [Path(os.environ[key]) for key in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(key)]
    roots += [path for path in [_nvcc_on_path()] if path]
    packages = [root / "build" / "cuda13", *(Path(sysconfig.get_path(key)) for key in ("purelib", "platlib"))]
    roots += [base / "nvidia" / "cu13" for base in packages if (base / "nvidia" / "cu13" / "bin" / "nvcc").exists()]
    for candidate in dict.fromkeys(roots):
        fault = _toolkit_fault(candidate)
        if fault is None:
            return _toolkit(candidate)
        note(f"the CUDA toolkit at {candidate} is passed over: it {fault}")
    return None


def _toolkit(root: Path) -> Cuda:
    libraries = next(root / name for name in ("lib64", "lib") if (root / name / "libcudart_static.a").is_file())
    return Cuda(root=root.resolve(), libraries=libraries.resolve(), version=_nvcc_version(root))
