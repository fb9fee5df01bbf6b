"""Copies of files and of parts of them: shared blocks where the file system can, else inside the kernel; holes stay holes."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from ..errors import BackendError

BLOCK = 8 << 20
KERNEL_BLOCK = 64 << 20
# File systems share blocks of this size between files, where both files have the bytes at the same place in a block.
PAGE = 4096
CLONE = 0x40049409  # FICLONE; fcntl names it from Python 3.14 on only

Progress = Callable[[int], None]


def copy_file(source: Path, target: Path, *, progress: Progress | None = None) -> None:
    """Copy a file: shared blocks where the file system can, else inside the kernel, else block by block; holes stay holes.

    Raises:
        OSError: reading or writing failed.
    """
    with source.open("rb") as old, target.open("xb") as new:
        size = os.fstat(old.fileno()).st_size
        if _clone(old.fileno(), new.fileno()):
            if progress:
                progress(size)
        else:
            os.ftruncate(new.fileno(), size)
            copy_range(old.fileno(), new.fileno(), 0, 0, size, progress or (lambda count: None))


def link_file(source: Path, target: Path) -> None:
    """Give a file a second name: one file then, so that whoever changes it in place under one name changes both.

    Raises:
        OSError: the file system cannot, the two are on different ones, or the system lets only the file's owner do it.
    """
    # A model in the hub's cache is a folder of symlinks; a link to such a one would dangle when the cache is cleared.
    os.link(source.resolve(strict=True), target)


def shares_blocks(source: Path, folder: Path) -> bool:
    """Whether a copy of ``source`` in ``folder`` shares its blocks and so takes no room; tried out, leaving nothing behind."""
    try:
        with source.open("rb") as old:
            # A file without a name: it is gone when closed, also by a kill.
            new = os.open(folder, os.O_TMPFILE | os.O_WRONLY, 0o600)
            try:
                return _clone(old.fileno(), new)
            finally:
                os.close(new)
    except (OSError, AttributeError):  # the file system, or the system, has no files without a name
        return False


def data_bytes(path: Path, start: int, end: int) -> int:
    """Bytes of a stretch of a file that are no holes; all of them where the file cannot be read."""
    try:
        with path.open("rb") as file:
            return sum(stop - begin for begin, stop in _data(file.fileno(), start, end))
    except OSError:
        return end - start


def _clone(source: int, target: int) -> bool:
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


def copy_range(source: int, target: int, start: int, place: int, count: int, report: Progress) -> None:
    """Copy bytes between open files; holes of the source, where the file system tells of them, are skipped."""
    end, shift = start + count, place - start
    for data, hole in _data(source, start, end):
        report(data - start)
        start = data
        while start < hole:
            most = hole - start
            if start % PAGE and shift % PAGE == 0:  # from the next block on the kernel may share instead of copy
                most = min(most, PAGE - start % PAGE)
            done = _copy_some(source, target, start, start + shift, most)
            begin_flush(target, start + shift, done)
            report(done)
            start += done
    report(end - start)


def _data(file: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Begin and end of the stretches between ``start`` and ``end`` that are no holes, where the file system tells."""
    while start < end:
        begin = _seek(file, start, os.SEEK_DATA, end)
        if begin == end:
            return
        stop = _seek(file, begin, os.SEEK_HOLE, end)
        yield begin, stop
        start = stop


def begin_flush(file: int, offset: int, count: int) -> None:
    """Have the kernel begin to write these bytes to the disk, so that the fsync at the end finds little to wait for."""
    with contextlib.suppress(OSError, AttributeError):  # advice alone: nothing is lost where it is not taken
        os.posix_fadvise(file, offset, count, os.POSIX_FADV_DONTNEED)


def _seek(file: int, offset: int, whence: int, end: int) -> int:
    try:
        return min(end, os.lseek(file, offset, whence))
    except OSError as error:
        if error.errno == errno.ENXIO:
            return end
        return offset if whence == os.SEEK_DATA else end


def changed(what: object) -> BackendError:
    """The error of a file that shrank while it was read."""
    return BackendError(f"{what} changed while it was read; is another program writing it?")


def _copy_some(source: int, target: int, start: int, place: int, count: int) -> int:
    try:
        done = os.copy_file_range(source, target, min(count, KERNEL_BLOCK), start, place)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF, errno.EPERM):
            raise
        block = os.pread(source, min(count, BLOCK), start)
        done = len(block)
        write_at(target, memoryview(block), place)
    if not done:
        raise changed(f"byte {start} of a file")
    return done
