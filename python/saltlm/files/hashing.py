"""Digests of files."""

from __future__ import annotations

import hashlib
from pathlib import Path

HASHED_WHOLE = 1 << 30


def sha256_file(path: Path) -> str:
    """Hexadecimal sha256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def sampled_digest(path: Path) -> str:
    """sha256 of a file, or of a folder's names and files; of very large files a sample every 64 MiB and the size."""
    total = hashlib.sha256()
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    for file in files:
        if path.is_dir():
            total.update(str(file.relative_to(path)).encode() + b"\0")
        size = file.stat().st_size
        with file.open("rb") as stream:
            if size <= HASHED_WHOLE:
                while block := stream.read(1 << 20):
                    total.update(block)
            else:
                total.update(str(size).encode())
                for at in [*range(0, size, 64 << 20), size - (1 << 20)]:
                    stream.seek(at)
                    total.update(stream.read(1 << 20))
    return total.hexdigest()
