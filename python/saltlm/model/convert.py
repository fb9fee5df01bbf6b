"""Convert a model folder that saltlm cannot read: pickled weights to safetensors, a slow BPE tokenizer to ``tokenizer.json``.

Pickled files are read by torch's restricted reader (``weights_only=True``): it builds tensors and plain containers, and refuses
anything else, so that no code of the file runs. A full load, which runs such code, is never tried.
"""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ..environment import quiet_transformers
from ..errors import first_line, input_error
from ..files.copy import copy_file
from ..files.json_files import read_json, write_json
from ..files.open_file import check_file
from ..files.output_folder import check_output, whole_folder
from ..protocols import Tokenizer
from .locate import TERMS, local_folder
from .slow_tokenizer import fast_form
from .tokenizer import TOKENIZER_FILES, check_files
from .tokenizer_alone import find_alone
from .tokenizer_file import FILE, set_roles
from .weights import INDEX, SINGLE

PICKLE, PICKLE_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
# Settings of a slow tokenizer that its fast form takes over.
SETTINGS = ("model_max_length", "padding_side", "truncation_side", "chat_template")


@dataclasses.dataclass(frozen=True)
class Conversion:
    """What :func:`convert` wrote.

    Attributes:
        out: the new folder.
        weights: names of the weight files that were written; empty if the model's own were copied, or it has none.
        tokenizer: whether ``tokenizer.json`` was written.
        added_rows: rows of zeros that were appended to the vocabulary tensors: for symbols that the merges of the slow
            tokenizer use and its vocabulary lacks.
    """

    out: Path
    weights: tuple[str, ...]
    tokenizer: bool
    added_rows: int

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**dataclasses.asdict(self), "out": str(self.out), "weights": list(self.weights)}


def convert(model: str | Path, out: str | Path, *, revision: str | None = None, force: bool = False) -> Conversion:
    """Write a copy of a model folder with safetensors weights and a ``tokenizer.json``.

    Args:
        model: folder or hub name of a model with pickled weights (``pytorch_model.bin``, one file or shards), with a slow BPE
            tokenizer of the PhoBERT kind, or both; or such a tokenizer alone.
        out: folder to write, whole or not at all.
        revision: branch, tag or commit on the hub.
        force: replace an existing model folder.

    Raises:
        InputError: there is nothing to convert, the weights hold more than tensors, or no fast tokenizer gives the same ids;
            nothing has been written then.
        BackendError: the file system failed; nothing has been written then.
    """
    what = f"model {model}"
    alone = find_alone(model)
    folder = (
        alone.folder if alone and alone.file is None else local_folder(model, what, revision=revision, pickled=True)
    )
    check_files(folder, what)
    destination = check_output(Path(out), protected=[folder], force=force)
    pickled = _pickled_files(folder, what)
    tokenizer, slow_size = _converted_tokenizer(folder, what)
    if not pickled and tokenizer is None:
        raise input_error(
            what,
            "neither pickled weights (pytorch_model.bin) nor a slow BPE tokenizer",
            "one of them",
            "nothing is to be converted; name the folder itself where it is needed",
        )
    added = 0 if tokenizer is None else max(tokenizer.get_vocab().values()) + 1 - slow_size
    sizes = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    with whole_folder(destination, needed=sizes, force=force) as part:
        _copy_rest(folder, part, tokenizer is not None)
        config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
        rows = config.get("vocab_size") if added else None
        files = pickled or (sorted(folder.glob("*.safetensors")) if rows else [])
        written = _write_weights(files, part, what, rows, added)
        if not pickled and not rows:
            for path in [*sorted(folder.glob("*.safetensors")), folder / INDEX]:
                if path.is_file():
                    copy_file(path, part / path.name)
        if tokenizer is not None:
            tokenizer.save_pretrained(part)
            config.pop("tokenizer_class", None)
        if config:
            write_json(part / "config.json", {**config, "vocab_size": rows + added} if rows else config)
    return Conversion(destination, tuple(written), tokenizer is not None, added)


def _pickled_files(folder: Path, what: str) -> list[Path]:
    """The pickled weight files; none if the folder has safetensors files."""
    if (folder / SINGLE).is_file() or (folder / INDEX).is_file():
        return []
    if (folder / PICKLE).is_file():
        return [folder / PICKLE]
    if not (folder / PICKLE_INDEX).is_file():
        return []
    shards = set(read_json(folder / PICKLE_INDEX).get("weight_map", {}).values())
    for name in shards:
        if Path(str(name)).name != name or not (folder / name).is_file():
            raise input_error(what, f"no {name}", f"every shard that {PICKLE_INDEX} names", "fetch the missing file")
    return sorted(folder / name for name in shards)


def _converted_tokenizer(folder: Path, what: str) -> tuple[Tokenizer | None, int]:
    """The fast form of a slow tokenizer, and the number of the slow one's tokens; ``None`` if there is nothing to convert."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if (folder / FILE).is_file():
        return None, 0
    with quiet_transformers():
        try:
            slow: Any = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
        except Exception as error:  # the tokenizer classes raise errors of any type for files that they do not expect
            found = f"a tokenizer that transformers cannot load ({first_line(error)})"
            raise input_error(f"{what}, {folder}", found, "a tokenizer", "save it again") from None
        if slow.is_fast:
            return None, 0
        backend = fast_form(slow)
        if backend is None:
            raise input_error(
                f"{what}, {folder}",
                f"{type(slow).__name__}, whose ids no fast tokenizer gives that saltlm can build",
                "a BPE with merges that mark word ends by </w>",
                "write a tokenizer.json that gives the same ids, or choose another model",
            )
        fast = PreTrainedTokenizerFast(tokenizer_object=backend, **{key: getattr(slow, key) for key in SETTINGS})
        roles = {
            key.removesuffix("_token"): str(token)
            for key, token in slow.special_tokens_map.items()
            if isinstance(token, str)
        }
        set_roles(fast, roles)
    return fast, len(slow)


def _copy_rest(folder: Path, part: Path, without_tokenizer: bool) -> None:
    """Copy generation config, card, licence files and, unless a new one is written, the tokenizer files."""
    names = {"generation_config.json", "README.md", *(() if without_tokenizer else TOKENIZER_FILES)}
    names |= {path.name for pattern in TERMS for path in folder.glob(pattern)}
    for name in sorted(names):
        if (folder / name).is_file():
            copy_file(folder / name, part / name)


def _write_weights(files: list[Path], part: Path, what: str, rows: int | None, added: int) -> list[str]:
    """Write the tensors of weight files as safetensors files, one for each; returns their names."""
    names, weight_map, total = [], {}, 0
    for path in files:
        name = (
            SINGLE if len(files) == 1 else path.name.replace("pytorch_model", "model").replace(".bin", ".safetensors")
        )
        tensors = _separate({key: _padded(tensor, rows, added) for key, tensor in _tensors(path, what).items()})
        save_file(tensors, part / name, metadata={"format": "pt"})
        names.append(name)
        weight_map.update(dict.fromkeys(tensors, name))
        total += sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if len(files) > 1:
        write_json(part / INDEX, {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))})
    return names


def _tensors(path: Path, what: str) -> dict[str, torch.Tensor]:
    """The tensors of a weight file, by name."""
    check_file(path, inside=path.parent, what=f"{what}, {path.name}")
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    try:
        content = _load(path)
    except pickle.UnpicklingError as error:
        raise input_error(
            f"{what}, {path.name}",
            f"a pickled file with more than tensors ({first_line(error)})",
            "tensors alone, which can be read without running code",
            "take safetensors weights of the model, or choose another one",
        ) from None
    except Exception as error:  # torch raises errors of any type on damaged files
        found = f"a file that torch cannot read ({first_line(error)})"
        raise input_error(f"{what}, {path.name}", found, "pickled weights", "fetch the file again") from None
    if not isinstance(content, dict) or not content or not all(isinstance(v, torch.Tensor) for v in content.values()):
        raise input_error(
            f"{what}, {path.name}",
            "a file that is no state dict",
            "tensor name -> tensor",
            "take the model's own weights",
        )
    return {str(key): tensor for key, tensor in content.items()}


def _load(path: Path) -> Any:
    """The content of a pickled file, by the reader that runs no code; mapped where the file's format allows it."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, ValueError):  # files of torch before 1.6 cannot be mapped
        return torch.load(path, map_location="cpu", weights_only=True)


def _padded(tensor: torch.Tensor, rows: int | None, added: int) -> torch.Tensor:
    """A vocabulary tensor with rows of zeros appended; any other tensor as it is."""
    if rows is None or not tensor.ndim or len(tensor) != rows:
        return tensor
    return torch.cat([tensor, tensor.new_zeros(added, *tensor.shape[1:])])


def _separate(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Contiguous tensors that share no memory, as safetensors files need them: a tied matrix is stored twice."""
    seen: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage().data_ptr()
        alone = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
        result[name] = tensor if alone and storage not in seen else tensor.contiguous().clone()
        seen.add(storage)
    return result
