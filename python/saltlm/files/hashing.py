"""sha256 digests of files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from .open_file import open_file

READ_BYTES = 1 << 20
# Larger files are hashed by a sample of SAMPLE_BYTES every SAMPLE_STEP bytes.
MAX_WHOLE_BYTES = 1 << 30
SAMPLE_STEP, SAMPLE_BYTES = 64 << 20, 1 << 20


def sha256_file(path: str | Path, *, limit: int | None = None) -> str:
    """Hexadecimal sha256 of a file's content, read in blocks.

    Args:
        path: the file.
        limit: hash only the first ``limit`` bytes, in [0, inf); ``None`` hashes all of it.
    """
    digest = hashlib.sha256()
    for block in _blocks(Path(path), limit):
        digest.update(block)
    return digest.hexdigest()


def sha256_joined(paths: Iterable[Path]) -> str:
    """Hexadecimal sha256 of the contents of several files, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        for block in _blocks(path):
            digest.update(block)
    return digest.hexdigest()


def sampled_digest(path: Path) -> str:
    """Hexadecimal sha256 of a file, or of the names and contents of all files in a folder.

    A file above :data:`MAX_WHOLE_BYTES` enters with its size and a sample of its bytes.
    """
    digest = hashlib.sha256()
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    for file in files:
        if path.is_dir():
            digest.update(str(file.relative_to(path)).encode() + b"\0")
        size = file.stat().st_size
        if size <= MAX_WHOLE_BYTES:
            for block in _blocks(file):
                digest.update(block)
            continue
        digest.update(str(size).encode())
        with open_file(file) as stream:
            for offset in [*range(0, size, SAMPLE_STEP), size - SAMPLE_BYTES]:
                stream.seek(offset)
                digest.update(stream.read(SAMPLE_BYTES))
    return digest.hexdigest()


def _blocks(path: Path, limit: int | None = None) -> Iterator[bytes]:
    """A file's content, or its first ``limit`` bytes, in blocks."""
    with open_file(path) as file:
        while block := file.read(READ_BYTES if limit is None else min(READ_BYTES, limit)):
            yield block
            if limit is not None:
                limit -= len(block)
