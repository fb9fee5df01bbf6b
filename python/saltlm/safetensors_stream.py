"""One safetensors file: its header, and a copy with some tensors replaced; the others stay in the kernel or on the disk."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch

from .errors import BackendError, InputError, input_error

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
NAMES = {dtype: name for name, dtype in DTYPES.items()}

# The format's own limit on the header; a larger length field means that this is no safetensors file.
HEADER_LIMIT = 100_000_000
LFS_POINTER = b"version https://git-lfs"
BLOCK = 8 << 20
KERNEL_BLOCK = 64 << 20
# File systems share blocks of this size between files, where both files have the bytes at the same place in a block.
PAGE = 4096
WORTH_SHARING = 1 << 20
CLONE = 0x40049409  # FICLONE; fcntl names it from Python 3.14 on only

Progress = Callable[[int], None]


@dataclasses.dataclass(frozen=True)
class Entry:
    """One tensor in a file.

    Attributes:
        name: its key.
        dtype: the format's name of the dtype, such as ``BF16``.
        shape: its shape.
        start: first byte, counted from the end of the header.
        end: the byte after its last.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def item_bytes(self) -> float:
        """Bytes of one element; under one for packed dtypes."""
        return (self.end - self.start) / max(1, math.prod(self.shape))


@dataclasses.dataclass(frozen=True)
class Header:
    """What a safetensors file says it holds.

    Attributes:
        path: the file.
        data_start: offset of the first tensor byte in the file.
        entries: the tensors by name, in the order of their bytes.
        metadata: the ``__metadata__`` of the file, if it has one.
    """

    path: Path
    data_start: int
    entries: Mapping[str, Entry] = dataclasses.field(repr=False)
    metadata: Mapping[str, str] | None

    @property
    def data_bytes(self) -> int:
        """Bytes of all tensors."""
        return max((entry.end for entry in self.entries.values()), default=0)


def read_header(path: Path) -> Header:
    """Read and check the header of a safetensors file; no tensor byte is read.

    Raises:
        InputError: the file is missing, a git-LFS pointer, truncated, or not a safetensors file.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(max(8, len(LFS_POINTER)))
            refuse_lfs_pointer(path, start)
            length = int.from_bytes(start[:8], "little")
            if len(start) < 8 or (length <= HEADER_LIMIT and size < 8 + length):
                needed = f"a header of {8 + length} bytes" if len(start) >= 8 else "at least 8 bytes"
                raise _broken(path, f"{size} bytes, which ends inside the header", needed)
            if length > HEADER_LIMIT:
                raise _broken(path, f"a header length of {length} bytes", f"one of at most {HEADER_LIMIT}")
            file.seek(8)
            content = json.loads(file.read(length))
    except FileNotFoundError:
        raise input_error(str(path), "no such file", "a safetensors file", "fetch the checkpoint again") from None
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise _broken(path, f"a header that is not JSON ({error})", "a JSON header") from None
    except OSError as error:
        raise input_error(str(path), f"{error.strerror}", "a readable file", "check its permissions") from None
    header = _parse(path, 8 + length, content)
    if header.data_start + header.data_bytes != size:
        raise _broken(path, f"a file of {size} bytes", f"{header.data_start + header.data_bytes}, as its header says")
    return header


def refuse_lfs_pointer(path: Path, start: bytes) -> None:
    """Raise if a file that starts with these bytes is only a pointer to the real one.

    Raises:
        InputError: it is a git-LFS pointer.
    """
    if start.startswith(LFS_POINTER):
        raise input_error(
            str(path), "a git-LFS pointer, not the file itself", "the real file", "run `git lfs pull` in that folder"
        )


def _broken(path: Path, found: str, expected: str) -> InputError:
    return input_error(str(path), f"a truncated or corrupt safetensors file: {found}", expected, "fetch the file again")


def _parse(path: Path, data_start: int, content: object) -> Header:
    try:
        metadata = content.pop("__metadata__", None)  # type: ignore[attr-defined]
        found = [
            Entry(name, str(value["dtype"]), tuple(map(int, value["shape"])), *map(int, value["data_offsets"]))
            for name, value in content.items()  # type: ignore[attr-defined]
        ]
    except (AttributeError, KeyError, TypeError, ValueError):
        raise _broken(path, "a header of another form", "name -> dtype, shape, data_offsets") from None
    found.sort(key=lambda entry: (entry.start, entry.end))
    place = 0
    for entry in found:
        known = DTYPES.get(entry.dtype)
        wanted = math.prod(entry.shape) * known.itemsize if known else entry.end - entry.start
        if entry.start != place or entry.end < entry.start or entry.end - entry.start != wanted:
            span = f"tensor {entry.name!r} of shape {list(entry.shape)} at bytes {entry.start} to {entry.end}"
            raise _broken(path, span, f"{wanted} bytes from {place}")
        place = entry.end
    return Header(path, data_start, {entry.name: entry for entry in found}, metadata)


def replaced_header(header: Header, replacements: Mapping[str, torch.Tensor]) -> tuple[bytes, dict[str, Entry]]:
    """The header bytes and tensor places of a copy of ``header`` in which these tensors take the place of their namesakes.

    Tensors are put in order of falling element size, as safetensors itself does, so that each begins at a multiple of it
    whatever the sizes of those before; otherwise the order is kept.
    """
    shaped = []
    for entry in header.entries.values():
        new = replacements.get(entry.name)
        if new is not None:
            size = new.numel() * new.element_size()
            entry = dataclasses.replace(entry, dtype=NAMES[new.dtype], shape=tuple(new.shape), start=0, end=size)
        shaped.append(entry)
    shaped.sort(key=lambda entry: -entry.item_bytes)
    placed, place = {}, 0
    for entry in shaped:
        size = entry.end - entry.start
        placed[entry.name] = dataclasses.replace(entry, start=place, end=place + size)
        place += size
    content: dict[str, object] = {} if header.metadata is None else {"__metadata__": dict(header.metadata)}
    for entry in placed.values():
        offsets = [entry.start, entry.end]
        content[entry.name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": offsets}
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    text += b" " * _padding(8 + len(text), [span for span in _spans(header, placed, replacements) if span.name is None])
    return len(text).to_bytes(8, "little") + text, placed


@dataclasses.dataclass
class _Span:
    """A replaced tensor, or tensors side by side both in the old file (from ``old`` on) and in the new (from ``new`` on)."""

    name: str | None
    old: int
    new: int
    count: int


def _spans(header: Header, placed: Mapping[str, Entry], replacements: Mapping[str, torch.Tensor]) -> list[_Span]:
    """What to write, by place in the new file; ``old`` counts from the start of the file, ``new`` from the header's end."""
    spans: list[_Span] = []
    for name, entry in placed.items():
        count, old = entry.end - entry.start, header.data_start + header.entries[name].start
        last = spans[-1] if spans else None
        if name in replacements:
            spans.append(_Span(name, old, entry.start, count))
        elif last is not None and last.name is None and last.old + last.count == old:
            last.count += count
        else:
            spans.append(_Span(None, old, entry.start, count))
    return spans


def _padding(start: int, kept: list[_Span]) -> int:
    """Spaces more in the header that put most kept bytes at the old place in a block, for file systems that share blocks."""
    gain: dict[int, int] = {}
    for span in kept:
        shift = (span.old - span.new - start) % PAGE
        if span.count >= WORTH_SHARING and shift % 8 == 0:
            gain[shift] = gain.get(shift, 0) + span.count
    return max(gain, key=lambda shift: (gain[shift], -shift)) if gain else 0


def rewrite(
    header: Header,
    target: Path,
    replacements: Mapping[str, torch.Tensor],
    *,
    progress: Progress | None = None,
) -> None:
    """Write a copy of a safetensors file with some tensors replaced; bytes of the others never enter this process's memory.

    Args:
        header: the file, by its header.
        target: where the copy goes; must not exist.
        replacements: tensors by name, each of which the file holds; other shapes and float dtypes are allowed.
        progress: told of the number of bytes that came to stand in ``target``.

    Raises:
        OSError: reading or writing failed.
        BackendError: the file shrank while it was read.
    """
    if unknown := replacements.keys() - header.entries.keys():
        raise ValueError(f"{header.path} holds no tensor {sorted(unknown)}")
    start, placed = replaced_header(header, replacements)
    report = progress or (lambda count: None)
    with header.path.open("rb") as source, target.open("xb") as file:
        place = file.fileno()
        if os.fstat(source.fileno()).st_size != header.data_start + header.data_bytes:
            raise _changed(header.path)
        _write(place, memoryview(start), 0)
        os.ftruncate(place, len(start) + max((entry.end for entry in placed.values()), default=0))
        for span in _spans(header, placed, replacements):
            offset = len(start) + span.new
            if span.name is None:
                _copy_range(source.fileno(), place, span.old, offset, span.count, report)
                continue
            for block in byte_blocks(replacements[span.name]):
                _write(place, block, offset)
                _begin_flush(place, offset, len(block))
                offset += len(block)
                report(len(block))


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
            _copy_range(old.fileno(), new.fileno(), 0, 0, size, progress or (lambda count: None))


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


def kept_bytes(header: Header, replacements: Mapping[str, torch.Tensor], *, shared: bool = False) -> int:
    """Bytes on the disk that a copy of the file takes without the tensors ``replacements``; holes take none.

    A file that cannot be read counts as one without holes: whoever copies it will meet the reason.

    Args:
        header: the file.
        replacements: as in :func:`rewrite`.
        shared: the file system shares blocks between this file and its copy, where their places in a block agree.
    """
    start, placed = replaced_header(header, replacements)
    total = len(start)
    spans = [span for span in _spans(header, placed, replacements) if span.name is None]
    for span in spans:
        if shared and (span.old - span.new - len(start)) % PAGE == 0:
            total += min(span.count, 2 * PAGE)  # the blocks at its two ends hold other bytes, too
        else:
            total += _data_bytes(header.path, span.old, span.old + span.count)
    return total


def _data_bytes(path: Path, start: int, end: int) -> int:
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


def byte_blocks(tensor: torch.Tensor) -> Iterator[memoryview]:
    """The bytes of a tensor, row-major and little-endian as the format wants them, about 8 MB at a time."""
    if not tensor.numel():
        return
    flat = tensor.reshape(len(tensor), -1) if tensor.dim() else tensor.reshape(1, 1)
    rows = max(1, BLOCK // max(1, flat.shape[1] * flat.element_size()))
    for start in range(0, len(flat), rows):
        block = flat[start : start + rows].detach().cpu().contiguous()
        yield memoryview(block.reshape(-1).view(torch.uint8).numpy())


def _write(file: int, data: memoryview, offset: int) -> None:
    while len(data):
        count = os.pwrite(file, data, offset)
        data, offset = data[count:], offset + count


def _copy_range(source: int, target: int, start: int, place: int, count: int, report: Progress) -> None:
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
            _begin_flush(target, start + shift, done)
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


def _begin_flush(file: int, offset: int, count: int) -> None:
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


def _changed(what: object) -> BackendError:
    return BackendError(f"{what} changed while it was read; is another program writing it?")


def _copy_some(source: int, target: int, start: int, place: int, count: int) -> int:
    try:
        done = os.copy_file_range(source, target, min(count, KERNEL_BLOCK), start, place)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF, errno.EPERM):
            raise
        block = os.pread(source, min(count, BLOCK), start)
        done = len(block)
        _write(target, memoryview(block), place)
    if not done:
        raise _changed(f"byte {start} of a file")
    return done
