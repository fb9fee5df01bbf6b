"""The header of a safetensors file: which tensors it holds, and where; no tensor byte is read."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

import torch

from ..errors import InputError, input_error
from ..files.read import LFS_POINTER, refuse_lfs_pointer

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
NAMES = {dtype: name for name, dtype in DTYPES.items()}

# The format's own limit on the header; a larger length field means that this is no safetensors file.
HEADER_LIMIT = 100_000_000


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
