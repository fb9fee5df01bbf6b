"""Look-ups for the operator build: torch's headers, the C++ compiler, ninja and a CUDA toolkit, each by path alone.

torch is never imported: under pip's build isolation it is not importable, but its folder can still be found, and then
no second torch has to be downloaded. Every failure is a SystemExit that names what is missing and how to get it.
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
    """One line on stderr, where pip shows it."""
    print(f"saltlm: {text}", file=sys.stderr, flush=True)


def fail(text: str) -> SystemExit:
    """The exception that ends a build with one message."""
    return SystemExit(f"saltlm: {text}")


def _output(*command: str) -> str:
    # Standard output and error of a short command; empty when it cannot run.
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    except OSError:
        return ""
    return done.stdout if done.returncode == 0 else ""


def _torch_folders() -> list[Path]:
    # The environment's own site-packages come last: under build isolation they are not on sys.path, yet sysconfig still
    # names them, because pip keeps sys.prefix.
    if named := os.environ.get("SALTLM_TORCH"):
        return [Path(named), Path(named) / "torch"]
    bases = [Path(entry or ".") for entry in sys.path]
    bases += [Path(sysconfig.get_path(key)) for key in ("purelib", "platlib")]
    return [base / "torch" for base in dict.fromkeys(bases)]


def torch_version(include: Path) -> tuple[int, int, int]:
    """The version that torch's headers under ``include`` state; (0, 0, 0) where they state none."""
    headers = include / "torch" / "headeronly" / "version.h"
    text = headers.read_text(encoding="utf-8") if headers.is_file() else ""
    parts = [re.search(rf"#define TORCH_VERSION_{part} (\d+)", text) for part in ("MAJOR", "MINOR", "PATCH")]
    major, minor, patch = (int(part[1]) if part else 0 for part in parts)
    return (major, minor, patch)


def torch_include() -> Path | None:
    """The include folder of the first torch that is new enough for the operators, or None."""
    for folder in _torch_folders():
        include = folder / "include"
        # headers above the target are fine, older ones lack what the sources use
        if (include / "torch" / "csrc" / "stable" / "library.h").is_file() and torch_version(include) >= MINIMUM_TORCH:
            return include.resolve()
    return None


def require_torch() -> Path:
    """:func:`torch_include`, or a SystemExit that says what was found instead."""
    if include := torch_include():
        return include
    wanted = ".".join(map(str, MINIMUM_TORCH))
    seen = [str(folder) for folder in _torch_folders() if (folder / "include").is_dir()]
    found = f"found only an older one or none of its headers in {', '.join(seen)}" if seen else "found none"
    raise fail(
        f"building the operators needs the headers of torch >= {wanted}; {found}.\n"
        f"  Get it with: {sys.executable} -m pip install 'torch>={wanted}'\n"
        "  or set SALTLM_TORCH to the folder of an installed torch (the one that holds include/ and lib/)."
    )


@dataclass(frozen=True, kw_only=True)
class Compiler:
    """A C++ compiler: the words that start its command line and its version line."""

    command: tuple[str, ...]
    version: str

    @property
    def program(self) -> str:
        """The compiler itself, without a caching wrapper before it or options after it: what nvcc's -ccbin takes."""
        wrappers = ("ccache", "sccache", "distcc")
        return next((word for word in self.command if Path(word).name not in wrappers), self.command[0])


def compiler() -> Compiler:
    """CXX when it is set, else the first of g++, c++ and clang++ that runs."""
    named = os.environ.get("CXX", "").strip()
    for candidate in [named] if named else ["g++", "c++", "clang++"]:
        command = tuple(shlex.split(candidate))
        if text := _output(*command, "--version"):
            return Compiler(command=command, version=text.splitlines()[0])
    found = f"CXX={named} does not run" if named else "none of g++, c++ and clang++ was found"
    raise fail(
        f"building the operators needs a C++ compiler (C++17); {found}.\n"
        "  Get one with: apt-get install g++ (Debian, Ubuntu), dnf install gcc-c++ (Fedora, RHEL),\n"
        "  or set CXX to yours."
    )


def ninja() -> str:
    """The ninja program: on PATH, beside this interpreter, or in the package of that name."""
    beside = sysconfig.get_path("scripts")
    if found := shutil.which("ninja") or shutil.which("ninja", path=beside):
        return found
    spec = importlib.util.find_spec("ninja")
    if spec is not None and spec.origin is not None:
        # the package keeps the program in data/bin in some releases and in the scripts folder in others
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
    found = re.search(r"release [\d.]+, V([\d.]+)", _output(str(root / "bin" / "nvcc"), "--version"))
    return found[1] if found else ""


def _toolkit_fault(root: Path) -> str | None:
    # Why the toolkit at root cannot be used, or None.
    version = _nvcc_version(root)
    if not version:
        return "holds no bin/nvcc that runs"
    release = tuple(int(part) for part in version.split(".")[:2])
    if release < MINIMUM_CUDA:
        return f"is CUDA {version}, and the operators need CUDA {MINIMUM_CUDA[0]} or newer"
    if not any((root / folder / "libcudart_static.a").is_file() for folder in ("lib64", "lib")):
        return "lacks libcudart_static.a (package nvidia-cuda-runtime)"
    headers = root / "include" / "cuda_runtime_api.h"
    stated = re.search(
        r"#define\s+CUDART_VERSION\s+(\d+)", headers.read_text("utf-8", "replace") if headers.is_file() else ""
    )
    if stated is None:
        return "lacks include/cuda_runtime_api.h (package nvidia-cuda-runtime)"
    of_headers = (int(stated[1]) // 1000, int(stated[1]) % 1000 // 10)
    if of_headers != release:
        # torch's own packages put headers of another minor version into the same tree; nvcc refuses to mix them
        return f"mixes a CUDA {release[0]}.{release[1]} compiler with CUDA {of_headers[0]}.{of_headers[1]} headers"
    return None


def _nvcc_on_path() -> Path | None:
    # PATH may hold a wrapper script whose parent folder is not the toolkit, so nvcc itself is asked for its root.
    if (nvcc := shutil.which("nvcc")) is None:
        return None
    top = re.search(r"^#\$ TOP=(.+)$", _output(nvcc, "--dryrun", "-x", "cu", "-c", os.devnull), re.MULTILINE)
    return Path(top[1].strip()) if top else Path(nvcc).resolve().parent.parent


def cuda(root: Path) -> Cuda | None:
    """The CUDA toolkit to build with, or None for the CPU operators alone.

    SALTLM_CUDA decides where it is set: ``0`` means none, else it is the toolkit's root and must be usable. Otherwise
    the first usable one of CUDA_HOME, CUDA_PATH, the nvcc on PATH, ``<root>/build/cuda13`` (the packages installed by
    ``pip install --target``) and the environment's own ``nvidia/cu13``; unusable ones are named and passed over.
    """
    named = os.environ.get("SALTLM_CUDA", "").strip()
    if named == "0":
        return None
    if named:
        if fault := _toolkit_fault(Path(named)):
            raise fail(
                f"SALTLM_CUDA={named} {fault}.\n  Set it to the root of a CUDA toolkit, or to 0 for the CPU only."
            )
        return _toolkit(Path(named))
    places = [Path(os.environ[key]) for key in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(key)]
    places += [path for path in [_nvcc_on_path()] if path]
    packages = [root / "build" / "cuda13", *(Path(sysconfig.get_path(key)) for key in ("purelib", "platlib"))]
    places += [base / "nvidia" / "cu13" for base in packages if (base / "nvidia" / "cu13" / "bin" / "nvcc").exists()]
    for place in dict.fromkeys(places):
        fault = _toolkit_fault(place)
        if fault is None:
            return _toolkit(place)
        note(f"the CUDA toolkit at {place} is passed over: it {fault}")
    return None


def _toolkit(root: Path) -> Cuda:
    libraries = next(root / name for name in ("lib64", "lib") if (root / name / "libcudart_static.a").is_file())
    return Cuda(root=root.resolve(), libraries=libraries.resolve(), version=_nvcc_version(root))
