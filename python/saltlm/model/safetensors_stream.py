"""Copy a safetensors file with some tensors replaced; the bytes of the other tensors are copied by the kernel or shared."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from ..files.copy import BLOCK, PAGE, begin_flush, changed_while_read, copy_range, data_bytes, write_at
from ..files.open_file import open_file
from ..progress import Increment
from .safetensors_header import NAMES, Entry, Header

# Ranges of at least this many copied bytes are aligned by spaces in the header, so that file systems can share their blocks.
MIN_SHARED_BYTES = 1 << 20


def replaced_header(
    header: Header, replacements: Mapping[str, torch.Tensor], renames: Mapping[str, str] | None = None
) -> tuple[bytes, dict[str, Entry]]:
    """The header of a copy of the file in which some tensors are replaced.

    Tensors are sorted by element size, the largest first, as safetensors itself does, so that each tensor starts at a
    multiple of its element size; tensors of equal element size keep their order.

    Args:
        header: of the original file.
        replacements: tensor name -> new tensor.
        renames: tensor name -> name in the copy, for tensors that get another name.

    Returns:
        The header's bytes with the length field, and tensor name in the original -> entry of the copy.
    """
    shaped = []
    for entry in header.entries.values():
        new = replacements.get(entry.name)
        if new is not None:
            size = new.numel() * new.element_size()
            entry = dataclasses.replace(entry, dtype=NAMES[new.dtype], shape=tuple(new.shape), start=0, end=size)
        shaped.append(entry)
    shaped.sort(key=lambda entry: -entry.item_bytes)
    entries, offset = {}, 0
    for entry in shaped:
        size = entry.end - entry.start
        entries[entry.name] = dataclasses.replace(entry, start=offset, end=offset + size)
        offset += size
    content: dict[str, object] = {} if header.metadata is None else {"__metadata__": dict(header.metadata)}
    for entry in entries.values():
        offsets = [entry.start, entry.end]
        content[(renames or {}).get(entry.name, entry.name)] = {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": offsets,
        }
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    text += b" " * _padding(
        8 + len(text), [span for span in _spans(header, entries, replacements) if span.name is None]
    )
    return len(text).to_bytes(8, "little") + text, entries


@dataclasses.dataclass
class _Span:
    """A byte range of the copy: one replaced tensor, or tensors that are adjacent in both files.

    Attributes:
        name: name of the replaced tensor; ``None`` for copied tensors.
        old: offset in the original file.
        new: offset in the copy, from the end of its header.
        count: number of bytes.
    """

    name: str | None
    old: int
    new: int
    count: int


def _spans(header: Header, entries: Mapping[str, Entry], replacements: Mapping[str, torch.Tensor]) -> list[_Span]:
    """Byte ranges to write, in the order of their offsets in the copy."""
    spans: list[_Span] = []
    for name, entry in entries.items():
        count, old = entry.end - entry.start, header.data_start + header.entries[name].start
        last = spans[-1] if spans else None
        if name in replacements:
            spans.append(_Span(name, old, entry.start, count))
        elif last is not None and last.name is None and last.old + last.count == old:
            last.count += count
        else:
            spans.append(_Span(None, old, entry.start, count))
    return spans


def _padding(start: int, copied: list[_Span]) -> int:
    """Number of extra spaces in the header that gives as many copied bytes as possible their old offset within a block.

    File systems can share only blocks whose bytes have the same offset within a block in both files.

    Args:
        start: size of the header without extra spaces, in bytes.
        copied: byte ranges of tensors that are not replaced.
    """
    gain: dict[int, int] = {}
    for span in copied:
        shift = (span.old - span.new - start) % PAGE
        if span.count >= MIN_SHARED_BYTES and shift % 8 == 0:
            gain[shift] = gain.get(shift, 0) + span.count
    return max(gain, key=lambda shift: (gain[shift], -shift)) if gain else 0


def rewrite(
    header: Header,
    target: Path,
    replacements: Mapping[str, torch.Tensor],
    *,
    renames: Mapping[str, str] | None = None,
    progress: Increment | None = None,
) -> None:
    """Write a copy of a safetensors file with some tensors replaced; the kernel copies the bytes of the others.

    Args:
        header: header of the original file.
        target: path of the copy; must not exist.
        replacements: tensor name -> new tensor; the file holds all these names. Shape and float dtype may change.
        renames: tensor name -> name in the copy, for tensors that get another name.
        progress: called with the number of bytes that were written since the last call.

    Raises:
        ValueError: the file has no tensor of a name in ``replacements``.
        OSError: reading or writing failed.
        BackendError: the file shrank while it was read.
    """
    if unknown := replacements.keys() - header.entries.keys():
        raise ValueError(f"{header.path} holds no tensor {sorted(unknown)}")
    start, entries = replaced_header(header, replacements, renames)
    report = progress or (lambda count: None)
    with open_file(header.path) as source, target.open("xb") as file:
        descriptor = file.fileno()
        if os.fstat(source.fileno()).st_size != header.data_start + header.data_bytes:
            raise changed_while_read(header.path)
        write_at(descriptor, memoryview(start), 0)
        os.ftruncate(descriptor, len(start) + max((entry.end for entry in entries.values()), default=0))
        for span in _spans(header, entries, replacements):
            offset = len(start) + span.new
            if span.name is None:
                copy_range(source.fileno(), descriptor, span.old, offset, span.count, report)
                continue
            for block in byte_blocks(replacements[span.name]):
                write_at(descriptor, block, offset)
                begin_flush(descriptor, offset, len(block))
                offset += len(block)
                report(len(block))


def kept_bytes(
    header: Header,
    replacements: Mapping[str, torch.Tensor],
    *,
    renames: Mapping[str, str] | None = None,
    shared: bool = False,
) -> int:
    """Bytes on the disk that a copy of the file by :func:`rewrite` takes without its new tensors.

    Holes take no space. A file that cannot be read counts as one without holes; the copy will raise the error.

    Args:
        header: header of the original file.
        replacements: as in :func:`rewrite`.
        renames: as in :func:`rewrite`.
        shared: whether the file system shares blocks between the file and its copy; shared blocks take no space.
    """
    start, entries = replaced_header(header, replacements, renames)
    total = len(start)
    spans = [span for span in _spans(header, entries, replacements) if span.name is None]
    for span in spans:
        if shared and (span.old - span.new - len(start)) % PAGE == 0:
            total += min(span.count, 2 * PAGE)  # the first and the last block hold other bytes, too, and are not shared
        else:
            total += data_bytes(header.path, span.old, span.old + span.count)
    return total


def byte_blocks(tensor: torch.Tensor) -> Iterator[memoryview]:
    """The bytes of a tensor, row-major and little-endian as safetensors stores them, in blocks of about 8 MiB."""
    if not tensor.numel():
        return
    flat = tensor.reshape(len(tensor), -1) if tensor.dim() else tensor.reshape(1, 1)
    rows = max(1, BLOCK // max(1, flat.shape[1] * flat.element_size()))
    for start in range(0, len(flat), rows):
        block = flat[start : start + rows].detach().cpu().contiguous()
        yield block.reshape(-1).view(torch.uint8).numpy().data
