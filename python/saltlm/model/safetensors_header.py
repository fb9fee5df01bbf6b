"""The header of a safetensors file: name, dtype, shape and byte range of each tensor."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

import torch

from ..errors import InputError, input_error
from ..files.file_errors import LFS_POINTER, refuse_lfs_pointer

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
NAMES = {dtype: name for name, dtype in DTYPES.items()}

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
    """Check that the tensors follow each other without gap or overlap, each with as many bytes as its dtype and shape take."""
    try:
        if not isinstance(content, dict):
            raise TypeError
        metadata = content.pop("__metadata__", None)
        entries = [
            Entry(name, str(value["dtype"]), tuple(map(int, value["shape"])), *map(int, value["data_offsets"]))
            for name, value in content.items()
        ]
    except (AttributeError, KeyError, TypeError, ValueError):
        raise _broken(path, "a header of another form", "name -> dtype, shape, data_offsets") from None
    entries.sort(key=lambda entry: (entry.start, entry.end))
    offset = 0
    for entry in entries:
        dtype = DTYPES.get(entry.dtype)
        size = math.prod(entry.shape) * dtype.itemsize if dtype else entry.end - entry.start
        if entry.start != offset or entry.end < entry.start or entry.end - entry.start != size:
            span = f"tensor {entry.name!r} of shape {list(entry.shape)} at bytes {entry.start} to {entry.end}"
            raise _broken(path, span, f"{size} bytes from {offset}")
        offset = entry.end
    return Header(path, data_start, {entry.name: entry for entry in entries}, metadata)
