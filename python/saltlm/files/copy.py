"""Copy files and byte ranges of files.

Where the file system can, the copy shares its blocks with the original (reflink); else the kernel copies
(``copy_file_range``); else this process does. Holes of sparse files stay holes.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from ..errors import BackendError
from ..progress import Increment
from .open_file import open_file

BLOCK = 8 << 20
KERNEL_BLOCK = 64 << 20
# File systems share blocks of this size, if the bytes have the same offset within a block in both files.
PAGE = 4096
CLONE = 0x40049409  # FICLONE; the fcntl module defines it from Python 3.14 on only


def copy_file(source: Path, target: Path, *, progress: Increment | None = None) -> None:
    """Copy a file.

    Args:
        source: the file to copy.
        target: the copy; must not exist.
        progress: called with the number of bytes that were copied since the last call.

    Raises:
        OSError: reading or writing failed.
        InputError: ``source`` is no regular file.
        BackendError: ``source`` shrank while it was read.
    """
    with open_file(source) as old, target.open("xb") as new:
        size = os.fstat(old.fileno()).st_size
        if _clone(old.fileno(), new.fileno()):
            if progress:
                progress(size)
        else:
            os.ftruncate(new.fileno(), size)
            copy_range(old.fileno(), new.fileno(), 0, 0, size, progress or (lambda count: None))


def link_file(source: Path, target: Path) -> None:
    """Create a hard link. Both names then stand for one file: a change in place under one name shows under the other.

    Args:
        source: an existing file, or a symlink to one.
        target: the new name.

    Raises:
        OSError: the file system has no hard links, the two paths are on different file systems, or the system lets only
            the file's owner link it.
    """
    # A model in the hub's cache is a folder of symlinks. A link to the symlink would dangle when the cache is cleared.
    os.link(source.resolve(strict=True), target)


def shares_blocks(source: Path, folder: Path) -> bool:
    """Whether a copy of ``source`` in ``folder`` shares its blocks and so takes no space; found by making a copy.

    The trial copy has no name, so nothing is left behind.
    """
    try:
        with open_file(source) as old:
            # A file without a name disappears when it is closed, also if the process is killed.
            new = os.open(folder, os.O_TMPFILE | os.O_WRONLY, 0o600)
            try:
                return _clone(old.fileno(), new)
            finally:
                os.close(new)
    except (OSError, AttributeError):  # this file system or operating system has no files without a name
        return False


def data_bytes(path: Path, start: int, end: int) -> int:
    """Bytes between the offsets ``start`` and ``end`` of a file that are not holes; all of them if it cannot be read."""
    try:
        with open_file(path) as file:
            return sum(stop - begin for begin, stop in _data_ranges(file.fileno(), start, end))
    except OSError:
        return end - start


def _clone(source: int, target: int) -> bool:
    """Make an open file share all blocks of another; ``False`` where the file system cannot."""
    import fcntl

    try:
        fcntl.ioctl(target, CLONE, source)
    except OSError:
        return False
    return True


def write_at(file: int, data: memoryview, offset: int) -> None:
    """Write all of ``data`` into an open file, ``offset`` bytes from its start."""
    while len(data):
        count = os.pwrite(file, data, offset)
        data, offset = data[count:], offset + count


def copy_range(source: int, target: int, start: int, target_start: int, count: int, progress: Increment) -> None:
    """Copy bytes between open files. Holes of the source are skipped where the file system reports them.

    Args:
        source: file descriptor to read from.
        target: file descriptor to write to; already of its final size.
        start: offset of the first byte in ``source``.
        target_start: offset of the first byte in ``target``.
        count: number of bytes.
        progress: called with the number of bytes that were copied or skipped since the last call.

    Raises:
        OSError: reading or writing failed.
        BackendError: ``source`` ends too early.
    """
    end, shift = start + count, target_start - start
    for data, hole in _data_ranges(source, start, end):
        progress(data - start)
        start = data
        while start < hole:
            max_bytes = hole - start
            if start % PAGE and shift % PAGE == 0:  # stop at a block boundary: from there the kernel may share blocks
                max_bytes = min(max_bytes, PAGE - start % PAGE)
            done = _copy_some(source, target, start, start + shift, max_bytes)
            begin_flush(target, start + shift, done)
            progress(done)
            start += done
    progress(end - start)


def _data_ranges(file: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Begin and end of each range between ``start`` and ``end`` that is not a hole; one range if holes are not known."""
    while start < end:
        begin = _seek(file, start, os.SEEK_DATA, end)
        if begin == end:
            return
        stop = _seek(file, begin, os.SEEK_HOLE, end)
        yield begin, stop
        start = stop


def begin_flush(file: int, offset: int, count: int) -> None:
    """Ask the kernel to start writing these bytes to the disk, so that the final fsync waits less."""
    with contextlib.suppress(OSError, AttributeError):  # advice to the kernel: the result is the same without it
        os.posix_fadvise(file, offset, count, os.POSIX_FADV_DONTNEED)


def _seek(file: int, offset: int, whence: int, end: int) -> int:
    """Offset of the next data or hole, at most ``end``; a file system that knows no holes has data everywhere."""
    try:
        return min(end, os.lseek(file, offset, whence))
    except OSError as error:
        if error.errno == errno.ENXIO:
            return end
        return offset if whence == os.SEEK_DATA else end


def changed_while_read(name: object) -> BackendError:
    """The error of a file that shrank while it was read; ``name`` is the file, or words for it."""
    return BackendError(f"{name} changed while it was read; is another program writing it?")


def _copy_some(source: int, target: int, start: int, target_start: int, count: int) -> int:
    """Copy up to ``count`` bytes; returns how many."""
    try:
        done = os.copy_file_range(source, target, min(count, KERNEL_BLOCK), start, target_start)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF, errno.EPERM):
            raise
        block = os.pread(source, min(count, BLOCK), start)
        done = len(block)
        write_at(target, memoryview(block), target_start)
    if not done:
        raise changed_while_read(f"byte {start} of a file")
    return done
