"""The weights of a model folder: which file holds which tensor, and the rows of the vocabulary read from there."""

from __future__ import annotations

import dataclasses
import mmap
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import input_error
from ..files.json_files import read_json
from .safetensors_header import DTYPES, Entry, Header, read_header

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
# Maps of tensors that are in use; see release_pages.
_maps: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json", "consolidated.00.pth", "model.pt")


@dataclasses.dataclass(frozen=True)
class Weights:
    """The safetensors files of a model folder, by their headers alone.

    Attributes:
        headers: file name -> header, in the order of their names.
        index: the content of ``model.safetensors.index.json``, or ``None`` where one file holds all.
    """

    headers: Mapping[str, Header] = dataclasses.field(repr=False)
    index: Mapping[str, object] | None = dataclasses.field(repr=False)

    def files_of(self) -> dict[str, str]:
        """Tensor name -> name of the file that holds it."""
        return {name: file for file, header in self.headers.items() for name in header.entries}

    def entry(self, name: str) -> Entry:
        """The tensor's place, dtype and shape."""
        return self.headers[self.files_of()[name]].entries[name]

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor in its stored dtype, mapped from the file: pages come into memory as they are read.

        It is for reading alone: what is written to it may be lost at any time.
        """
        header = self.headers[self.files_of()[name]]
        entry = header.entries[name]
        start, end = header.data_start + entry.start, header.data_start + entry.end
        if entry.dtype not in DTYPES or start == end or start % DTYPES[entry.dtype].itemsize:
            from safetensors import safe_open

            with safe_open(header.path, framework="pt") as file:
                return file.get_tensor(name)
        # The tensor's own pages alone, and our own map of them, so that they can be given back.
        begin = start - start % mmap.ALLOCATIONGRANULARITY
        with header.path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), end - begin, access=mmap.ACCESS_COPY, offset=begin)
        _maps.add(mapped)
        dtype = DTYPES[entry.dtype]
        count = (end - start) // dtype.itemsize
        return torch.frombuffer(mapped, dtype=dtype, count=count, offset=start - begin).reshape(entry.shape)


def release_pages() -> None:
    """Let go of the pages of mapped tensors that have been read: they count as memory of this process until then.

    Matrices of a large vocabulary are gigabytes each, and a transfer reads them several times. Nothing is lost: the next
    read finds the pages in the system's cache.
    """
    for mapped in list(_maps):
        if hasattr(mapped, "madvise"):  # not on every system
            mapped.madvise(mmap.MADV_DONTNEED)


def find_weights(folder: Path, side: str) -> Weights:
    """Read the headers of all weights of a folder.

    Raises:
        InputError: there are none, they are pickled, a shard is missing, or a file is truncated or corrupt.
    """
    if (folder / SINGLE).is_file():  # transformers, too, prefers it where both are there
        return Weights({SINGLE: read_header(folder / SINGLE)}, None)
    if (folder / INDEX).is_file():
        return _sharded(folder, side)
    pickled = next((name for name in PICKLED if (folder / name).exists()), None)
    if pickled:
        raise input_error(
            f"{side}, {folder / pickled}",
            "pickled weights, which run code when opened",
            "model.safetensors",
            "if you trust them, convert once: AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder)"
            " (AutoModel for an encoder), and save the tokenizer there too",
        )
    advice = "check the folder"
    if any(folder.glob("*.gguf")):
        advice = "name the .gguf file in it with --gguf-file"
    elif (folder / "adapter_config.json").is_file():
        advice = "merge the adapter into its base model first"
    elif folder.parent.name == "snapshots":  # of the hub only what can be read is fetched
        advice = (
            "if the hub has pickled weights of it alone (pytorch_model.bin) and you trust them, load it with AutoModel and"
            " save_pretrained it and its tokenizer to a folder; name that"
        )
    raise input_error(f"{side}, {folder}", "no weights", f"{SINGLE} or {INDEX}", advice)


def _sharded(folder: Path, side: str) -> Weights:
    index = read_json(folder / INDEX)
    where = index.get("weight_map")
    if not isinstance(where, dict) or not where or not all(isinstance(file, str) for file in where.values()):
        raise input_error(f"{side}, {folder / INDEX}", "no weight_map", "tensor name -> file", "fetch the model again")
    headers = {}
    for file in sorted(set(where.values())):
        if Path(file).name != file:
            raise input_error(f"{side}, {INDEX}", f"shard {file!r}", "the name of a file in the folder", "mend it")
        if not (folder / file).is_file():
            raise input_error(
                f"{side}, {folder}", f"no {file}", f"every shard that {INDEX} names", "fetch the missing file"
            )
        headers[file] = read_header(folder / file)
    for name, file in where.items():
        if name not in headers[file].entries:
            raise input_error(
                f"{side}, {folder / file}", f"no tensor {name!r}", f"it there, as {INDEX} says", "fetch the file again"
            )
    return Weights(headers, index)


def with_dtype(config: Mapping[str, Any], dtype: torch.dtype, *, add: bool = False) -> dict[str, Any]:
    """A config.json that names this dtype, also in the configurations of the model's parts (``text_config`` and the like).

    Transformers 5 loads a model in the dtype that config.json names, unless told otherwise; where ``AutoModelForCausalLM``
    takes the text part of a model, it is the dtype that the part's configuration names.

    Args:
        config: content of config.json.
        dtype: a float dtype.
        add: name it also where config.json names none, by the key that transformers 4 and 5 both read.
    """
    name = str(dtype).removeprefix("torch.")
    changed = dict(config)
    keys = [key for key in ("dtype", "torch_dtype") if key in config]
    changed.update(dict.fromkeys(keys or ["torch_dtype"] * add, name))
    for key, part in config.items():
        if key.endswith("_config") and isinstance(part, Mapping):
            changed[key] = with_dtype(part, dtype)
    return changed
