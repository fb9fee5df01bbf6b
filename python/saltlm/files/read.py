"""Checks that every file which is read passes."""

from __future__ import annotations

from pathlib import Path

from ..errors import input_error

LFS_POINTER = b"version https://git-lfs"


def refuse_lfs_pointer(path: Path, start: bytes) -> None:
    """Raise if a file that starts with these bytes is only a pointer to the real one.

    Raises:
        InputError: it is a git-LFS pointer.
    """
    if start.startswith(LFS_POINTER):
        raise input_error(
            str(path), "a git-LFS pointer, not the file itself", "the real file", "run `git lfs pull` in that folder"
        )
