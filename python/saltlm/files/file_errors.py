"""Failures of the file system, turned into saltlm's exceptions with advice."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

from ..errors import BackendError, SaltlmError, input_error

LFS_POINTER = b"version https://git-lfs"
# The disk, or the share of it that this user may fill, is full.
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Failures that the caller can cure by naming another output path or by freeing space.
OUTPUT_ERRORS = {
    errno.ENOSPC: "no space left on the disk",
    errno.EDQUOT: "the disk quota used up",
    errno.EFBIG: "a limit on the size of files",
    errno.EACCES: "no permission to write there",
    errno.EPERM: "no permission to write there",
    errno.EROFS: "a read-only file system",
    errno.ENOTDIR: "a file where a folder is needed",
    errno.EEXIST: "a file where a folder is needed",
    errno.ENAMETOOLONG: "too long a name",
}
OUTPUT_ADVICE = "choose another folder or make room"
CACHE_ADVICE = "make room, or name another folder for the cache in SALTLM_CACHE"


def os_error_code(error: BaseException) -> int | None:
    """``errno`` of an OSError, or the number in the text "os error N" of a Rust library's error; ``None`` for others."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    match = re.search(r"os error (\d+)", str(error))
    return int(match[1]) if match else None


@contextlib.contextmanager
def output_errors(out: Path, needed: int, advice: str = OUTPUT_ADVICE) -> Iterator[None]:
    """Turn failures of the file system inside the ``with`` block into saltlm's exceptions.

    Args:
        out: the output path, for the message.
        needed: bytes that are about to be written, for the message about a full disk; 0 if not known.
        advice: what the user can do where ``out`` cannot be written.

    Raises:
        InputError: ``out`` cannot be written (:data:`OUTPUT_ERRORS`), or a file that is read for it cannot be read.
        BackendError: another failure of the file system.
    """
    try:
        yield
    except SaltlmError:
        raise
    except Exception as error:
        code = os_error_code(error)
        if code is None and not isinstance(error, OSError):
            raise
        filename = getattr(error, "filename", None)
        if code in OUTPUT_ERRORS and filename is not None and not _concerns_output(filename, out):
            raise input_error(
                f"{filename}", os.strerror(code), "a file that can be read", "check its permissions"
            ) from error
        if code in OUTPUT_ERRORS:
            size = f"about {needed / 1e9:.2f} GB free, and " if needed and code in (errno.ENOSPC, errno.EDQUOT) else ""
            raise input_error(
                f"output {out}", OUTPUT_ERRORS[code], f"{size}a place that can be written", advice
            ) from error
        raise BackendError(f"output {out}: writing failed ({error}); nothing was written") from error


def _concerns_output(filename: str | bytes, out: Path) -> bool:
    """Whether a file name of an error belongs to the output or to a hidden folder in the same parent."""
    path = Path(os.path.abspath(os.fsdecode(filename)))
    return path == out or path in out.parents or out.parent in path.parents


def refuse_lfs_pointer(path: Path, start: bytes) -> None:
    """Raise if a file is a git-LFS pointer instead of the real content.

    Args:
        path: the file, for the message.
        start: its first bytes, at least 23 of them.

    Raises:
        InputError: it is a git-LFS pointer.
    """
    if start.startswith(LFS_POINTER):
        raise input_error(
            str(path), "a git-LFS pointer, not the file itself", "the real file", "run `git lfs pull` in that folder"
        )
