"""Audits of one wheel: the Python ABI of the Rust module, torch's stable ABI, and the symbols the libraries ask for."""

import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

# Torch's C shims, and of C++ names only the standard library's: those of c10 or at would tie the wheel to one torch.
ALLOWED = re.compile(r"^(aoti_torch_|torch_|_ZN?K?S[tabiods]|_ZT[ISTV]N?S|_Z(nw|na|dl|da)|__|_Unwind|_ITM)")
# What libc, libm and the loader provide under unmarked names is versioned (name@GLIBC_...), so nm shows the "@".
VERSIONED = re.compile(r"@")
# manylinux_2_34's limits, the oldest systems that a GCC 12 build reaches; a tag in the name may ask for older ones.
LIMITS = {"GLIBC": (2, 34), "GLIBCXX": (3, 4, 29), "CXXABI": (1, 3, 13)}


def run(*command: str) -> str:
    """Run a command and return its standard output; a failure prints it and raises."""
    done = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        print(done.stdout)
        raise SystemExit(f"failed: {' '.join(command)}")
    return done.stdout


def foreign_symbols(library: Path) -> list[str]:
    """Undefined symbols that are neither torch's C shims nor versioned symbols of the system's libraries."""
    lines = run("nm", "-D", "--undefined-only", str(library)).splitlines()
    names = [line.split()[-1] for line in lines]
    return [n for n in names if not VERSIONED.search(n) and not ALLOWED.match(n)]


def too_new(library: Path, limits: dict[str, tuple[int, ...]]) -> list[str]:
    """Versions of the system's libraries that ``library`` asks for beyond ``limits``."""
    asked = set(re.findall(r"@(GLIBC|GLIBCXX|CXXABI)_([\d.]+)", run("nm", "-D", "--undefined-only", str(library))))
    return sorted(f"{name}_{text}" for name, text in asked if tuple(map(int, text.split("."))) > limits[name])


def limits_of(name: str) -> dict[str, tuple[int, ...]]:
    """What a wheel of this name may ask of the system: its manylinux tag's glibc where it has one."""
    tag = re.search(r"manylinux_(\d+)_(\d+)", name)
    return {**LIMITS, "GLIBC": (int(tag[1]), int(tag[2]))} if tag else LIMITS


def main(wheel: str) -> None:
    """Audit ``wheel``; exits with a message at the first fault."""
    name = Path(wheel).name
    if "cp310-abi3" not in name:
        raise SystemExit(f"{name} is not tagged cp310-abi3")
    with tempfile.TemporaryDirectory() as folder:
        zipfile.ZipFile(wheel).extractall(folder)
        libraries = sorted(Path(folder).glob("saltlm/lib/*.so"))
        found = {library.name for library in libraries}
        if found != {"_ops_cpu.so", "_ops_cuda.so"}:
            raise SystemExit(f"expected both operator libraries in {name}, found {sorted(found) or 'none'}")
        for library in sorted(Path(folder).rglob("*.so")):
            if newer := too_new(library, limits_of(name)):
                raise SystemExit(f"{library.name} needs newer system libraries than the wheel says: {newer}")
        for library in libraries:
            if bad := foreign_symbols(library):
                raise SystemExit(f"{library.name} asks for symbols outside torch's stable C shims: {bad[:8]}")
            print(f"{library.name}: {library.stat().st_size // 1024} KiB, symbols ok")
            print(run("torch-abi-audit", "--check", "torch", str(library)).strip())
    print(run("abi3audit", "--strict", "--report", wheel).strip()[:400])
    print(f"{name}: {Path(wheel).stat().st_size // 1024} KiB")


if __name__ == "__main__":
    import os

    os.environ["PATH"] = str(Path(sys.executable).parent) + os.pathsep + os.environ["PATH"]
    main(sys.argv[1])
