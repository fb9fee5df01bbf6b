"""Locks on output folders, so that two processes do not write the same one."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from ..errors import InputError, input_error
from .file_errors import output_errors
from .open_file import FileKind, read_file
from .output_folder import leftovers, missing_parents, remove_empty


@contextlib.contextmanager
def locked_output(out: Path) -> Iterator[None]:
    """Hold a lock on the hidden file ``.NAME.saltlm-lock`` in the parent of ``out``: no other process writes ``out`` then.

    Args:
        out: the final folder, as :func:`check_output` returned it.

    Raises:
        InputError: another process holds the lock or writes ``out``, or ``out`` cannot be written.
        BackendError: another failure of the file system.
    """
    new_parents = missing_parents(out)
    path, lock = _lock_path(out), None
    try:
        with output_errors(out, 0):
            out.parent.mkdir(parents=True, exist_ok=True)
            while lock is None:
                refuse_written(out)
                lock = _lock_file(path)
            os.truncate(lock, 0)
            os.write(lock, str(os.getpid()).encode())
        yield
    finally:
        if lock is not None:
            path.unlink(missing_ok=True)
            os.close(lock)
        remove_empty(new_parents)


def _lock_path(out: Path) -> Path:
    return out.parent / f".{out.name}.saltlm-lock"


def _lock_file(path: Path) -> int | None:
    """Create and lock the lock file; ``None`` if another process locked or removed it in between."""
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise
        raise _no_lock_file(path) from None
    status = os.fstat(lock)
    # The file is truncated, so it must not be another file of the user under a second name.
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        os.close(lock)
        raise _no_lock_file(path)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    except OSError:
        return lock  # a file system without locks
    try:
        if os.path.samestat(os.fstat(lock), os.stat(path)):
            return lock
    except FileNotFoundError:
        pass
    os.close(lock)
    return None


def _no_lock_file(path: Path) -> InputError:
    return input_error(
        f"lock {path}",
        "a link, a folder or a special file",
        "a lock file that saltlm has written",
        "remove it, or choose another output folder",
    )


def lock_run(record: Path, doing: str) -> int:
    """Lock the folder of a run that can be resumed, by a lock on its record file.

    Args:
        record: a file in the run's folder that is never removed or replaced while the run lasts.
        doing: what the run does, such as ``adapting``, for the message.

    Returns:
        The open file; closing it releases the lock.

    Raises:
        InputError: another process holds the lock.
    """
    lock = os.open(record, os.O_RDONLY | os.O_NONBLOCK)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise input_error(
            f"output {record.parent}",
            f"another process that is {doing} into it",
            "a folder of its own",
            "wait for it, or choose another folder",
        ) from None
    except OSError:
        pass  # a file system without locks
    return lock


def refuse_written(out: Path) -> None:
    """Refuse an output folder that a running process is writing.

    Raises:
        InputError: a process writes it; the message names its id.
    """
    writer = _writer(out)
    if writer is not None:
        raise input_error(
            f"output {out}",
            f"it locked: process {writer} is writing it",
            "a folder that no other run writes",
            "wait for it, or choose another folder",
        )


def _writer(out: Path) -> str | None:
    """Id of the process that holds the lock file of ``out`` or writes a temporary folder for it; ``None`` for none."""
    lock = _lock_path(out)
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        status = os.lstat(lock)
        if not stat.S_ISREG(status.st_mode):
            raise _no_lock_file(lock)
        if _is_locked(lock):
            text = read_file(lock, FileKind.LOCK).decode(errors="replace").strip()
            return text if text.isdecimal() else "of an unknown id"
    with contextlib.suppress(OSError):
        for path in out.parent.iterdir():
            match = leftovers(out).fullmatch(path.name)
            if match and path.is_dir() and not path.is_symlink() and _is_locked(path):
                return match[1]
    return None


def _is_locked(path: Path) -> bool:
    """Whether another process has locked a file or folder."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(handle)
    return False
