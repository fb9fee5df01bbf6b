"""The weight files of a model folder: which file holds which tensor, and tensors mapped from the files."""

from __future__ import annotations

import dataclasses
import mmap
import re
import weakref
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import input_error
from ..files.json_files import parse_json, read_json
from ..files.open_file import FileKind, open_file, read_file
from .safetensors_header import DTYPES, Entry, Header, read_header

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
# Safetensors files that saltlm writes besides the weights: no shard may have such a name.
RESERVED = ("provenance.safetensors",)
# Memory maps of all tensors that are in use; release_pages goes through them.
_maps: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()
ADAPTER = "adapter_config.json"
# Files beside the model's own whose tensors belong to the model but not to its class: multi-token-prediction layers.
BESIDE = ("*mtp*.safetensors", "*nextn*.safetensors")
# Modules that torch and its training libraries put around a module; their names get into the keys of the state dict.
WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\.")
PARALLEL = "module."  # of DataParallel and DistributedDataParallel, before every key
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json", "consolidated.00.pth", "model.pt")


@dataclasses.dataclass(frozen=True)
class Weights:
    """The safetensors files of a model folder. Only their headers are read.

    Attributes:
        headers: file name -> header, sorted by file name.
        index: content of ``model.safetensors.index.json``; ``None`` if one file holds all tensors.
        beside: names of the files in ``headers`` that lie beside the model's own (:data:`BESIDE`), which transformers does
            not read.
        unwrapped: key in the files -> key without the names of wrapper modules such as ``_orig_mod.``; only keys that
            have such names.
    """

    headers: Mapping[str, Header] = dataclasses.field(repr=False)
    index: Mapping[str, object] | None = dataclasses.field(repr=False)
    beside: tuple[str, ...] = ()
    unwrapped: Mapping[str, str] = dataclasses.field(default_factory=dict, repr=False)

    def files_of(self) -> dict[str, str]:
        """Tensor name -> name of the file that holds it."""
        return {name: file for file, header in self.headers.items() for name in header.entries}

    def entry(self, name: str) -> Entry:
        """Byte range, dtype and shape of a tensor."""
        return self.headers[self.files_of()[name]].entries[name]

    def tensor(self, name: str) -> torch.Tensor:
        """A tensor in its stored dtype, mapped from the file: pages enter memory when they are read.

        Do not write to it: :func:`release_pages` discards changes.
        """
        header = self.headers[self.files_of()[name]]
        entry = header.entries[name]
        start, end = header.data_start + entry.start, header.data_start + entry.end
        if entry.dtype not in DTYPES or start == end or start % DTYPES[entry.dtype].itemsize:
            from safetensors import safe_open

            with safe_open(header.path, framework="pt") as opened:
                return opened.get_tensor(name)
        # Only the tensor's pages are mapped, and by a map of this module, so that release_pages can release them.
        begin = start - start % mmap.ALLOCATIONGRANULARITY
        with open_file(header.path) as file:
            mapped = mmap.mmap(file.fileno(), end - begin, access=mmap.ACCESS_COPY, offset=begin)
        _maps.add(mapped)
        dtype = DTYPES[entry.dtype]
        count = (end - start) // dtype.itemsize
        return torch.frombuffer(mapped, dtype=dtype, count=count, offset=start - begin).reshape(entry.shape)


def release_pages() -> None:
    """Release the pages of all mapped tensors; until then each page that was read counts as memory of this process.

    A matrix of a large vocabulary has gigabytes, and a transfer reads it several times. The next read takes the pages from
    the system's file cache.
    """
    for mapped in list(_maps):
        if hasattr(mapped, "madvise"):  # not on every system
            mapped.madvise(mmap.MADV_DONTNEED)


def find_weights(folder: Path, side: str) -> Weights:
    """Read the headers of all weight files of a folder.

    Args:
        folder: the model folder.
        side: name of the model in messages.

    Raises:
        InputError: there are no weight files, they are pickled, a shard is missing, or a file is truncated or corrupt.
    """
    if (folder / SINGLE).is_file():  # transformers, too, prefers it if both exist
        return _complete(folder, {SINGLE: read_header(folder / SINGLE)}, None, side)
    if (folder / INDEX).is_file():
        return _sharded(folder, side)
    pickled = next((name for name in PICKLED if (folder / name).exists()), None)
    if pickled:
        raise input_error(
            f"{side}, {folder / pickled}",
            "pickled weights, which run code when opened",
            "model.safetensors",
            f"convert them once, without running their code: saltlm convert {folder} --out NEW_FOLDER; name that folder",
        )
    advice = "check the folder"
    if any(folder.glob("*.gguf")):
        advice = "name the .gguf file in it with --gguf-file"
    elif (folder / "adapter_config.json").is_file():
        advice = merge_advice(folder)
    elif folder.parent.name == "snapshots":  # from the hub only safetensors files are fetched
        advice = (
            "if the hub has pickled weights of it alone (pytorch_model.bin), convert them once, without running their code:"
            " saltlm convert NAME --out NEW_FOLDER; name that folder"
        )
    raise input_error(f"{side}, {folder}", "no weights", f"{SINGLE} or {INDEX}", advice)


def _sharded(folder: Path, side: str) -> Weights:
    """Read the headers of all shards that the index names, and check that each tensor is where the index says."""
    index = read_json(folder / INDEX)
    shard_of = index.get("weight_map")
    if not isinstance(shard_of, dict) or not shard_of or not all(isinstance(file, str) for file in shard_of.values()):
        raise input_error(f"{side}, {folder / INDEX}", "no weight_map", "tensor name -> file", "fetch the model again")
    metadata = index.get("metadata")
    if metadata is not None and not isinstance(metadata, dict):
        found = f"metadata that is a {type(metadata).__name__}"
        raise input_error(f"{side}, {folder / INDEX}", found, "a JSON object", "fetch the model again")
    headers = {}
    for file in sorted(set(shard_of.values())):
        if Path(file).name != file:
            raise input_error(f"{side}, {INDEX}", f"shard {file!r}", "the name of a file in the folder", "repair it")
        if not file.endswith(".safetensors") or file.startswith(".") or file in RESERVED:
            raise input_error(
                f"{side}, {INDEX}",
                f"shard {file!r}, a name that saltlm gives to a file of its own"
                if file in RESERVED
                else f"shard {file!r}",
                "a name that ends in .safetensors and belongs to no other file, such as model-00001-of-00002.safetensors",
                "rename the file, also in the index",
            )
        if not (folder / file).is_file():
            raise input_error(
                f"{side}, {folder}", f"no {file}", f"every shard that {INDEX} names", "fetch the missing file"
            )
        headers[file] = read_header(folder / file)
    for name, file in shard_of.items():
        if name not in headers[file].entries:
            raise input_error(
                f"{side}, {folder / file}", f"no tensor {name!r}", f"it there, as {INDEX} says", "fetch the file again"
            )
    return _complete(folder, headers, index, side)


def _complete(folder: Path, headers: dict[str, Header], index: Mapping[str, object] | None, side: str) -> Weights:
    """The weights with the files beside the model's own; a tensor that two files hold is refused."""
    beside = {path.name for pattern in BESIDE for path in folder.glob(pattern) if path.is_file()} - headers.keys()
    headers = dict(sorted({**headers, **{name: read_header(folder / name) for name in beside}}.items()))
    file_of: dict[str, str] = {}
    for file, header in headers.items():
        for name in header.entries:
            if name in file_of:
                raise input_error(
                    f"{side}, {folder}",
                    f"tensor {name!r} in {file_of[name]} and in {file}",
                    "each tensor in one file",
                    "fetch the model again, or remove the file that does not belong to it",
                )
            file_of[name] = file
    return Weights(headers, index, tuple(sorted(beside)), unwrapped_keys(file_of, side))


def unwrapped_keys(keys: Iterable[str], side: str) -> dict[str, str]:
    """Keys without the names of wrapper modules: those of :data:`WRAPPERS` anywhere, ``module.`` before every key.

    Args:
        keys: all keys of a checkpoint.
        side: name of the model in messages.

    Returns:
        Key -> key without them; only keys that have such names.

    Raises:
        InputError: two keys are equal without them.
    """
    plain = {key: WRAPPERS.sub("", key) for key in keys}
    while plain and all(key.startswith(PARALLEL) for key in plain.values()):
        plain = {key: name.removeprefix(PARALLEL) for key, name in plain.items()}
    key_of: dict[str, str] = {}
    for key, name in plain.items():
        if name in key_of:
            found = f"tensors {key_of[name]!r} and {key!r}"
            raise input_error(side, found, f"one tensor {name}", "remove the one that does not belong to the model")
        key_of[name] = key
    return {key: name for key, name in plain.items() if key != name}


def refuse_wrapped(weights: Weights, what: str) -> None:
    """Refuse weights whose keys have the names of wrapper modules, for a step that transformers loads the model for.

    Raises:
        InputError: a key has such a name.
    """
    if weights.unwrapped:
        key, name = next(iter(weights.unwrapped.items()))
        raise input_error(
            what,
            f"keys of a wrapped or compiled model ({key})",
            f"keys that transformers knows ({name})",
            "save the model again from the module inside (model._orig_mod or model.module)",
        )


def merge_advice(folder: Path) -> str:
    """What a user can do with a folder that holds an adapter alone."""
    try:
        base = parse_json(read_file(folder / ADAPTER, FileKind.SETTINGS, inside=folder))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):
        base = None
    base = base if isinstance(base, str) and base.isprintable() and 0 < len(base) <= 200 else "BASE"
    return (
        "it is an adapter; merge it into its base model:"
        f" peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({base!r}), {str(folder)!r})"
        ".merge_and_unload().save_pretrained(new_folder), save the tokenizer there too, and name new_folder"
    )


def refuse_adapter_alone(folder: Path, what: str) -> None:
    """Refuse a folder that holds an adapter without the model that it belongs to.

    Raises:
        InputError: the folder has an adapter_config.json and no config.json.
    """
    if (folder / ADAPTER).is_file() and not (folder / "config.json").is_file():
        found = f"an adapter alone ({ADAPTER} without config.json)"
        raise input_error(what, found, "a whole model", merge_advice(folder))


def with_dtype(config: Mapping[str, Any], dtype: torch.dtype, *, add: bool = False) -> dict[str, Any]:
    """A copy of a config with this dtype, also in the configs of the model's parts (``text_config`` and others).

    transformers 5 loads a model in the dtype of config.json by default. If ``AutoModelForCausalLM`` loads only the text part of
    a model, it uses the dtype of that part's config.

    Args:
        config: content of config.json.
        dtype: a float dtype.
        add: if the config has no dtype, add one, under the key that both transformers 4 and 5 read.
    """
    name = str(dtype).removeprefix("torch.")
    changed = dict(config)
    keys = [key for key in ("dtype", "torch_dtype") if key in config]
    changed.update(dict.fromkeys(keys or ["torch_dtype"] * add, name))
    for key, part in config.items():
        if key.endswith("_config") and isinstance(part, Mapping):
            changed[key] = with_dtype(part, dtype)
    return changed
