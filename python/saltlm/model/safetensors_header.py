"""The header of a safetensors file: name, dtype, shape and byte range of each tensor."""

from __future__ import annotations

import collections
import dataclasses
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TypeGuard

import torch

from ..errors import InputError, first_line, input_error
from ..files.file_errors import LFS_POINTER, refuse_lfs_pointer
from ..files.open_file import open_file

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
# Bits of one element of each dtype that the format has.
ITEM_BITS = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8"), 8),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}
MAX_DIMENSIONS = 64  # of a tensor in torch and numpy

# The format limits the header to this many bytes; a larger length field means that the file is not a safetensors file.
HEADER_LIMIT = 100_000_000


@dataclasses.dataclass(frozen=True)
class Entry:
    """One tensor of a safetensors file.

    Attributes:
        name: key of the tensor.
        dtype: the format's name of the dtype, such as ``BF16``.
        shape: shape of the tensor.
        start: offset of its first byte from the end of the header.
        end: offset of the byte after its last one.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def item_bytes(self) -> float:
        """Bytes of one element; less than 1 for packed dtypes."""
        return (self.end - self.start) / max(1, math.prod(self.shape))


@dataclasses.dataclass(frozen=True)
class Header:
    """Header of a safetensors file.

    Attributes:
        path: the file.
        data_start: offset of the first tensor byte in the file.
        entries: tensor name -> entry, in the order of their offsets.
        metadata: the ``__metadata__`` of the file; ``None`` if it has none.
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
    """Read and check the header of a safetensors file, without reading any tensor.

    Raises:
        InputError: the file is missing, a git-LFS pointer, truncated, or not a safetensors file.
    """
    try:
        with open_file(path) as file:
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
            content = _parse_json(path, file.read(length))
    except FileNotFoundError:
        raise input_error(str(path), "no such file", "a safetensors file", "fetch the checkpoint again") from None
    except OSError as error:
        raise input_error(str(path), f"{error.strerror}", "a readable file", "check its permissions") from None
    header = _parse(path, 8 + length, content)
    if header.data_start + header.data_bytes != size:
        raise _broken(path, f"a file of {size} bytes", f"{header.data_start + header.data_bytes}, as its header says")
    return header


def _broken(path: Path, found: str, expected: str) -> InputError:
    return input_error(str(path), f"a truncated or corrupt safetensors file: {found}", expected, "fetch the file again")


def _parse_json(path: Path, header: bytes) -> object:
    """The JSON of a header; names that occur twice in one object are refused, because readers differ in which one counts."""

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        content = dict(pairs)
        if len(content) < len(pairs):
            twice = collections.Counter(name for name, _ in pairs).most_common(1)[0][0]
            raise _broken(path, f"a header that has {_shown(twice)} twice", "each name once")
        return content

    if not header.startswith(b"{"):
        raise _broken(path, "a header that does not begin with {", "a JSON header")
    try:
        return json.loads(header.decode(), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:  # ValueError: not UTF-8, not JSON, or an integer of too many digits
        raise _broken(path, f"a header that is not JSON ({first_line(error)})", "a JSON header") from None


def _parse(path: Path, data_start: int, content: object) -> Header:
    """Check that the tensors follow each other without gap or overlap, each with as many bytes as its dtype and shape take."""
    if not isinstance(content, dict):
        raise _broken(path, f"a header that is a {type(content).__name__}", "name -> dtype, shape, data_offsets")
    metadata = content.pop("__metadata__", None)
    if metadata is not None and not (
        isinstance(metadata, dict) and all(isinstance(value, str) and _encodes(value) for value in metadata.values())
    ):
        raise _broken(path, "__metadata__ of another form", "name -> text")
    entries = [_entry(path, name, value) for name, value in content.items()]
    if metadata is not None and not all(map(_encodes, metadata)):
        raise _broken(path, "__metadata__ with a name that is not Unicode", "name -> text")
    entries.sort(key=lambda entry: (entry.start, entry.end))
    offset = 0
    for entry in entries:
        bits = math.prod(entry.shape) * ITEM_BITS[entry.dtype]
        if bits % 8 or entry.start != offset or entry.end - entry.start != bits // 8:
            span = f"tensor {_shown(entry.name)} of shape {list(entry.shape)} ({entry.dtype})"
            span += f" at bytes {entry.start} to {entry.end}"
            expected = f"{bits // 8} bytes from {offset}" if bits % 8 == 0 else "a whole number of bytes"
            raise _broken(path, span, expected)
        offset = entry.end
    return Header(path, data_start, {entry.name: entry for entry in entries}, metadata)


def _entry(path: Path, name: str, value: object) -> Entry:
    """One entry of the header, with its types and ranges checked."""
    fields = value if isinstance(value, dict) else {}
    dtype, shape, offsets = (fields.get(field) for field in ("dtype", "shape", "data_offsets"))
    if not (
        _encodes(name) and isinstance(dtype, str) and _is_sizes(shape) and _is_sizes(offsets) and len(offsets) == 2
    ):
        expected = "a dtype, a shape and two data_offsets, integers from 0"
        raise _broken(path, f"an entry of another form for tensor {_shown(name)}", expected)
    if dtype not in ITEM_BITS:
        found = f"tensor {_shown(name)} of the unknown dtype {_shown(dtype)}"
        raise input_error(str(path), found, "one of " + ", ".join(ITEM_BITS), "convert the model to one of them")
    return Entry(name, dtype, tuple(shape), *offsets)


def _is_sizes(value: object) -> TypeGuard[list[int]]:
    """Whether a JSON value is a list of few integers from 0 that fit into 64 bits; ``true`` is no integer."""
    return (
        isinstance(value, list)
        and len(value) <= MAX_DIMENSIONS
        and all(type(size) is int and 0 <= size < 1 << 63 for size in value)
    )


def _encodes(text: str) -> bool:
    """Whether a text is valid Unicode; an escaped half of a surrogate pair is not, and cannot be written."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shown(text: str) -> str:
    """A name in a message: quoted, at most 80 characters, without what a terminal would act on."""
    return repr(text if len(text) <= 80 else text[:77] + "...")
