"""An output folder that appears complete or not at all.

It is written under a hidden name in the same parent folder, then renamed. What killed processes left is removed by the
next run.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..errors import InputError, input_error
from .file_errors import OUTPUT_ADVICE, output_errors
from .open_file import FileKind, read_file
from .summary_file import SUMMARY

# Many folders that are not models hold a config.json; only one with weights, too, is taken for a model.
WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.gguf")
RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2  # flags of renameat2


def check_output(out: Path, *, protected: Sequence[Path] = (), force: bool = False) -> Path:
    """Check, before any work is done, that ``out`` may be written.

    Args:
        out: the folder to be written.
        protected: folders and files that must not be touched: the inputs.
        force: an existing model folder may be replaced.

    Returns:
        ``out`` as an absolute path without symlinks.

    Raises:
        InputError: ``out`` exists (without ``force``), is not a model folder, or it contains, or lies in, a protected path.
    """
    out = Path(out).expanduser().resolve()
    for folder in protected:
        other = Path(folder).resolve()
        if out == other or other in out.parents or out in other.parents:
            relation = "is" if out == other else "lies in" if other in out.parents else "holds"
            raise input_error(
                f"output {out}",
                f"that it {relation} the input {'file' if os.path.isfile(other) else 'folder'} {other}",
                "a folder apart from all inputs",
                "choose one",
            )
    if not os.path.lexists(out):
        return out
    if not os.path.isdir(out):
        raise input_error(f"output {out}", "a file of that name", "a new folder", "choose another name")
    if not force:
        raise input_error(f"output {out}", "an existing folder", "a new one", "give --force to replace it")
    with output_errors(out, 0):
        empty = not any(out.iterdir())
    if not empty and not _is_model(out):
        raise input_error(
            f"output {out}",
            "a folder that holds no model",
            "a new folder, or an old model to replace",
            "choose another name, or remove it yourself",
        )
    return out


def _is_model(folder: Path) -> bool:
    """Whether a folder was written by saltlm or holds a model."""
    if (folder / SUMMARY).is_file():
        return True
    return (folder / "config.json").is_file() and any(next(folder.glob(name), None) for name in WEIGHTS)


@contextlib.contextmanager
def whole_folder(out: Path, *, needed: int = 0, force: bool = False, advice: str = OUTPUT_ADVICE) -> Iterator[Path]:
    """Yield an empty temporary folder; when the ``with`` block ends without an error, it is renamed to ``out``.

    On any error, and on Ctrl-C, the temporary folder is removed. A killed process leaves it behind under the hidden name
    ``.NAME.saltlm-PID-...``; the next call for the same ``out`` removes it, unless the process that writes it still runs.

    Args:
        out: the final folder, as :func:`check_output` returned it.
        needed: bytes that are about to be written, in [0, inf); compared with the free space.
        force: replace an existing folder, atomically where the file system can.
        advice: what the user can do where ``out`` cannot be written.

    Raises:
        InputError: the disk is too small or fills up, or ``out`` cannot be written.
        BackendError: another failure of the file system.
    """
    new_parents = missing_parents(out)
    temporary = _temporary_name(out)
    with output_errors(out, needed, advice):
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            clear_leftovers(out)
            free = shutil.disk_usage(out.parent).free
            if needed > free:
                raise OSError(errno.ENOSPC, "too small a disk")
            # The name is set before the folder exists, so that an interrupt in between still removes the folder.
            while (lock := _make_locked(temporary)) is None:
                temporary = _temporary_name(out)
            try:
                yield temporary
                _sync(temporary)
                _install(temporary, out, force)
            finally:
                os.close(lock)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            remove_empty(new_parents)
            raise


def missing_parents(out: Path) -> list[Path]:
    """Parent folders of ``out`` that do not exist yet, the innermost first."""
    return [parent for parent in (out.parent, *out.parent.parents) if not os.path.lexists(parent)]


def remove_empty(folders: Sequence[Path]) -> None:
    """Remove those of the folders that exist and are empty, in the given order."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def _temporary_name(out: Path) -> Path:
    """A new hidden path in the parent folder of ``out`` that names this process."""
    return out.parent / f".{out.name}.saltlm-{os.getpid()}-{secrets.token_hex(4)}"


def leftovers(out: Path) -> re.Pattern[str]:
    """Pattern of hidden names in the parent of ``out``: group 1 is the process id, group 2 ``.old``, ``.old.id`` or none."""
    return re.compile(re.escape(f".{out.name}.saltlm-") + r"(\d+)-[0-9a-f]{8}(\.old(?:\.id)?)?")


def clear_leftovers(out: Path) -> list[Path]:
    """Remove what killed processes left in the parent of ``out``; an old ``out`` that such a process set aside is restored.

    A folder whose name ends in ``.old`` is what a process set aside only if the file ``.old.id`` beside it names its device
    and inode; any other folder of such a name stays where it is.

    Returns:
        The hidden folders that were removed or restored.
    """
    pattern = leftovers(out)
    cleared = []
    for path in sorted(out.parent.iterdir()):
        match = pattern.fullmatch(path.name)
        if match is not None and match[2] == ".old.id" and not os.path.lexists(path.with_suffix("")):
            if path.is_file() and not path.is_symlink() and not _is_running(int(match[1])):
                path.unlink(missing_ok=True)  # its process was killed before it set the folder aside
            continue
        if match is None or match[2] == ".old.id" or not path.is_dir() or path.is_symlink():
            continue
        if match[2] and not _is_set_aside(path):
            continue
        lock = _lock_leftover(path, int(match[1]))
        if lock is None:
            continue
        try:
            if match[2] and not os.path.lexists(out):
                path.rename(out)
            else:
                shutil.rmtree(path, ignore_errors=True)
            if match[2]:
                _identity_file(path).unlink(missing_ok=True)
            cleared.append(path)
        finally:
            os.close(lock)
    return cleared


def _identity_file(aside: Path) -> Path:
    """The file that names the folder which a process has set aside."""
    return aside.with_name(aside.name + ".id")


def _identity(folder: Path) -> bytes:
    """Device and inode of a folder."""
    status = folder.stat()
    return f"{status.st_dev} {status.st_ino}".encode()


def _is_set_aside(aside: Path) -> bool:
    """Whether a process of this package has set this folder aside."""
    try:
        return read_file(_identity_file(aside), FileKind.LOCK, inside=aside.parent) == _identity(aside)
    except (OSError, InputError):
        return False


def _make_locked(path: Path) -> int | None:
    """Create the temporary folder and lock it; the system releases the lock when this process ends, however it ends.

    Returns:
        The open folder, or ``None`` if another process removed it as a leftover before it was locked.
    """
    path.mkdir()
    # Until flock returns, another process may remove the folder as a leftover.
    try:
        lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError:
        return lock  # A file system without locks: other processes use the process id in the name.
    if path.exists():
        return lock
    os.close(lock)
    return None


def _lock_leftover(path: Path, process: int) -> int | None:
    """Lock a hidden folder of another process; ``None`` if that process still runs."""
    try:
        lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    except OSError:
        if _is_running(process):
            os.close(lock)
            return None
    return lock


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _install(temporary: Path, out: Path, force: bool) -> None:
    """Rename the finished temporary folder to ``out``."""
    if not os.path.lexists(out):
        if not _rename(temporary, out, RENAME_NOREPLACE):
            temporary.rename(out)
    elif not force:
        raise input_error(
            f"output {out}",
            "a folder that another process created meanwhile",
            "a new one",
            "give --force to replace it",
        )
    elif _rename(temporary, out, RENAME_EXCHANGE):
        shutil.rmtree(temporary, ignore_errors=True)
    else:  # The file system cannot exchange. If a kill falls between the two renames, clear_leftovers restores ``out``.
        aside = temporary.with_name(temporary.name + ".old")
        with _identity_file(aside).open("xb") as file:
            file.write(_identity(out))
        sync_path(_identity_file(aside))
        out.rename(aside)
        temporary.rename(out)
        shutil.rmtree(aside, ignore_errors=True)
        _identity_file(aside).unlink(missing_ok=True)
    sync_path(out.parent)


def _rename(old: Path, new: Path, flags: int) -> bool:
    """Rename by Linux's renameat2, which Python does not offer.

    Args:
        old: the folder.
        new: its new path.
        flags: :data:`RENAME_NOREPLACE` or :data:`RENAME_EXCHANGE`.

    Returns:
        ``False`` where the kernel, the C library or the file system lacks this call.

    Raises:
        InputError: ``new`` exists, for :data:`RENAME_NOREPLACE`.
        OSError: the rename failed.
    """
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        return False
    if call(-100, os.fsencode(old), -100, os.fsencode(new), flags) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
        return False
    if code == errno.EEXIST:
        raise input_error(
            f"output {new}",
            "a folder that another process created meanwhile",
            "a new one",
            "give --force to replace it",
        )
    raise OSError(code, os.strerror(code), str(new))


def _sync(folder: Path) -> None:
    """Write the folder and everything in it to the disk, so that after a power cut ``out`` cannot exist without its content.

    Files get the permissions of the user's umask, because some libraries create files that only their owner can read. A
    hard link keeps its permissions, because they belong to the linked file, too.
    """
    mask = os.umask(0)
    os.umask(mask)
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink() and path.stat().st_nlink == 1:
            path.chmod(0o666 & ~mask)
        sync_path(path)
    sync_path(folder)


def sync_path(path: Path) -> None:
    """Write one file or folder to the disk (fsync)."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
