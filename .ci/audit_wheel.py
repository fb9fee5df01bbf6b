"""Audits of one wheel: the Python ABI of the Rust module, torch's stable ABI, and the symbols the libraries ask for."""

import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ALLOWED = re.compile(r"^(aoti_torch_|torch_|_Z(N|T|S|dl|na|nw|da)|__|_Unwind|_ITM|_ZGV)")
# What libc, libm and the loader provide under unmarked names is versioned (name@GLIBC_...), so nm shows the "@".
VERSIONED = re.compile(r"@")


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
