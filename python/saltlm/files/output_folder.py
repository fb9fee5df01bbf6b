"""A folder that appears whole or not at all: written beside its final name, then renamed; leftovers of killed runs go."""

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

from ..errors import BackendError, SaltlmError, input_error

# What the input can be blamed for: the caller gave a place that is full, forbidden or impossible.
_PLACE = {
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
OURS = "saltlm.json"
# A config.json alone is found in many a project's folder.
WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.gguf")
ADVICE = "choose another folder or make room"
CACHE_ADVICE = "make room, or name another folder for the cache in SALTLM_CACHE"
RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2


def check_output(out: Path, *, protected: Sequence[Path] = (), force: bool = False) -> Path:
    """Check that ``out`` may be written, before any work is done; returns it resolved.

    Args:
        out: the folder to be written.
        protected: folders and files that must not be touched: the inputs.
        force: an existing model folder may be replaced.

    Raises:
        InputError: it exists (without ``force``), is no model folder, or lies in, or holds, a protected one.
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
    with named_errors(out, 0):
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
    if (folder / OURS).is_file():
        return True
    return (folder / "config.json").is_file() and any(next(folder.glob(name), None) for name in WEIGHTS)


@contextlib.contextmanager
def whole_folder(out: Path, *, needed: int = 0, force: bool = False, advice: str = ADVICE) -> Iterator[Path]:
    """Give an empty folder beside ``out`` to write into; it takes the name ``out`` when the block ends well.

    On any error, and on Ctrl-C, it is removed. A killed process leaves it behind under a hidden name
    ``.NAME.saltlm-PID-...``; the next call removes such, unless the process that writes it still lives.

    Args:
        out: the final folder, as :func:`check_output` returned it.
        needed: bytes about to be written, for the check of the disk.
        force: replace an existing folder, atomically where the file system can.
        advice: what the user can do where the place cannot be written.

    Raises:
        InputError: the disk is too small or fills up, or the place cannot be written.
        BackendError: another failure of the file system.
    """
    made = [parent for parent in (out.parent, *out.parent.parents) if not os.path.lexists(parent)]
    temporary = lock = None
    with named_errors(out, needed, advice):
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            clear_leftovers(out)
            free = shutil.disk_usage(out.parent).free
            if needed > free:
                raise OSError(errno.ENOSPC, "too small a disk")
            while lock is None:
                # Named before it is made: an interrupt that falls between the two must find it.
                temporary = out.parent / f".{out.name}.saltlm-{os.getpid()}-{secrets.token_hex(4)}"
                lock = _make(temporary)
            try:
                yield temporary
                _sync(temporary)
                _install(temporary, out, force)
            finally:
                os.close(lock)
        except BaseException:
            if temporary is not None:
                shutil.rmtree(temporary, ignore_errors=True)
            for parent in made:
                with contextlib.suppress(OSError):
                    parent.rmdir()
            raise


def leftovers(out: Path) -> re.Pattern[str]:
    """Names of the hidden folders that runs make beside ``out``; the first group is the process."""
    return re.compile(re.escape(f".{out.name}.saltlm-") + r"(\d+)-[0-9a-f]{8}(\.old)?")


def clear_leftovers(out: Path) -> list[Path]:
    """Remove what killed runs left beside ``out``, and put back an old folder that such a run had set aside."""
    pattern = leftovers(out)
    cleared = []
    for path in sorted(out.parent.iterdir()):
        match = pattern.fullmatch(path.name)
        if match is None or not path.is_dir() or path.is_symlink():
            continue
        lock = _lock(path, int(match[1]))
        if lock is None:
            continue
        try:
            if match[2] and not os.path.lexists(out):
                path.rename(out)
            else:
                shutil.rmtree(path, ignore_errors=True)
            cleared.append(path)
        finally:
            os.close(lock)
    return cleared


@contextlib.contextmanager
def named_errors(out: Path, needed: int, advice: str = ADVICE) -> Iterator[None]:
    """Turn failures of the file system, also those that Rust libraries report as text, into errors with advice."""
    try:
        yield
    except SaltlmError:
        raise
    except Exception as error:
        code = getattr(error, "errno", None) if isinstance(error, OSError) else None
        if code is None and (match := re.search(r"\(os error (\d+)\)", str(error))):
            code = int(match[1])
        if code is None and not isinstance(error, OSError):
            raise
        if code in _PLACE and not _ours(error, out):
            named = f"{error.filename}"
            raise input_error(named, os.strerror(code), "a file that can be read", "check its permissions") from error
        if code in _PLACE:
            size = f"about {needed / 1e9:.2f} GB free, and " if needed and code in (errno.ENOSPC, errno.EDQUOT) else ""
            raise input_error(
                f"output {out}",
                _PLACE[code],
                f"{size}a place that can be written",
                advice,
            ) from error
        raise BackendError(f"output {out}: writing failed ({error}); nothing was written") from error


def _ours(error: Exception, out: Path) -> bool:
    """The error is about what is being written, not about a file that is read for it."""
    name = getattr(error, "filename", None)
    if name is None:
        return True
    path = Path(os.path.abspath(os.fsdecode(name)))
    return path == out or path in out.parents or out.parent in path.parents


def _make(path: Path) -> int | None:
    """Make the hidden folder and lock it; the lock dies with this process, however that ends. ``None``: it was taken away."""
    path.mkdir()
    lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError:
        return lock  # A file system without locks: others go by the process id in the name.
    # Another process may have taken it for a leftover between the lines above.
    if path.exists():
        return lock
    os.close(lock)
    return None


def _lock(path: Path, process: int) -> int | None:
    """Lock a leftover; ``None`` if its writer lives."""
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
        if _alive(process):
            os.close(lock)
            return None
    return lock


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _install(temporary: Path, out: Path, force: bool) -> None:
    if not os.path.lexists(out):
        if not _rename(temporary, out, RENAME_NOREPLACE):
            temporary.rename(out)
    elif not force:
        raise input_error(f"output {out}", "a folder made meanwhile", "a new one", "give --force to replace it")
    elif _rename(temporary, out, RENAME_EXCHANGE):
        shutil.rmtree(temporary, ignore_errors=True)
    else:  # A file system that cannot exchange: a kill between the two renames is mended by clear_leftovers.
        aside = temporary.with_name(temporary.name + ".old")
        out.rename(aside)
        temporary.rename(out)
        shutil.rmtree(aside, ignore_errors=True)
    sync_path(out.parent)


def _rename(old: Path, new: Path, flags: int) -> bool:
    """Linux's renameat2, which Python does not offer; ``False`` where kernel, C library or file system lack it."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        return False
    if call(-100, os.fsencode(old), -100, os.fsencode(new), flags) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
        return False
    if code == errno.EEXIST:
        raise input_error(f"output {new}", "a folder made meanwhile", "a new one", "give --force to replace it")
    raise OSError(code, os.strerror(code), str(new))


def _sync(folder: Path) -> None:
    """Bring the folder and all in it to the disk: the rename must not survive a power cut that its content does not.

    Files get the usual permissions: some libraries write through private ones, which others could not read. A file that
    has another name elsewhere keeps its own, for they are that one's too.
    """
    mask = os.umask(0)
    os.umask(mask)
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink() and path.stat().st_nlink == 1:
            path.chmod(0o666 & ~mask)
        sync_path(path)
    sync_path(folder)


def sync_path(path: Path) -> None:
    """Bring one file or folder to the disk."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
