"""Folders that a process is writing are left alone by the others."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from ..errors import input_error
from .output_folder import leftovers, named_errors


@contextlib.contextmanager
def locked_output(out: Path) -> Iterator[None]:
    """Hold a hidden lock file ``.NAME.saltlm-lock`` beside ``out``, so that other processes leave ``out`` alone.

    Args:
        out: the final folder, as :func:`check_output` returned it.

    Raises:
        InputError: another process holds it or writes the folder, or the place cannot be written.
        BackendError: another failure of the file system.
    """
    made = [parent for parent in (out.parent, *out.parent.parents) if not os.path.lexists(parent)]
    path, lock = out.parent / f".{out.name}.saltlm-lock", None
    try:
        with named_errors(out, 0):
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
        for parent in made:
            with contextlib.suppress(OSError):
                parent.rmdir()


def _lock_file(path: Path) -> int | None:
    """Make and lock the file; ``None`` where another process took or removed it between the two."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    except OSError:
        return lock  # A file system without locks: then the process id in the file is all there is.
    try:
        if os.path.samestat(os.fstat(lock), os.stat(path)):
            return lock
    except FileNotFoundError:
        pass
    os.close(lock)
    return None


def lock_run(record: Path, doing: str) -> int:
    """Hold a run's folder by a lock on its record, until the file that is returned is closed.

    Args:
        record: a file in the run's folder that stays as long as the run.
        doing: what a run of this kind does in it, for people.

    Raises:
        InputError: another process holds it.
    """
    lock = os.open(record, os.O_RDONLY)
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
    """Refuse a folder that a live process is writing.

    Raises:
        InputError: names that process.
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
    """The process that holds the lock file of ``out`` or writes a folder that is to take its name."""
    lock = out.parent / f".{out.name}.saltlm-lock"
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        if _held(lock):
            return lock.read_text().strip() or "of an unknown id"
    with contextlib.suppress(OSError):
        for path in out.parent.iterdir():
            match = leftovers(out).fullmatch(path.name)
            if match and path.is_dir() and not path.is_symlink() and _held(path):
                return match[1]
    return None


def _held(path: Path) -> bool:
    """Another process has locked it."""
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(handle)
    return False
