"""A copy of a safetensors file with some tensors replaced; the others stay in the kernel or on the disk."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from ..files.copy import BLOCK, PAGE, Progress, begin_flush, changed, copy_range, data_bytes, write_at
from .safetensors_header import NAMES, Entry, Header

# Kept bytes worth a few more spaces in the header, so that file systems can share their blocks.
WORTH_SHARING = 1 << 20


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
            raise changed(header.path)
        write_at(place, memoryview(start), 0)
        os.ftruncate(place, len(start) + max((entry.end for entry in placed.values()), default=0))
        for span in _spans(header, placed, replacements):
            offset = len(start) + span.new
            if span.name is None:
                copy_range(source.fileno(), place, span.old, offset, span.count, report)
                continue
            for block in byte_blocks(replacements[span.name]):
                write_at(place, block, offset)
                begin_flush(place, offset, len(block))
                offset += len(block)
                report(len(block))


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
            total += data_bytes(header.path, span.old, span.old + span.count)
    return total


def byte_blocks(tensor: torch.Tensor) -> Iterator[memoryview]:
    """The bytes of a tensor, row-major and little-endian as the format wants them, about 8 MB at a time."""
    if not tensor.numel():
        return
    flat = tensor.reshape(len(tensor), -1) if tensor.dim() else tensor.reshape(1, 1)
    rows = max(1, BLOCK // max(1, flat.shape[1] * flat.element_size()))
    for start in range(0, len(flat), rows):
        block = flat[start : start + rows].detach().cpu().contiguous()
        yield memoryview(block.reshape(-1).view(torch.uint8).numpy())
