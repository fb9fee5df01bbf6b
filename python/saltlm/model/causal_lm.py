"""A model folder or hub name -> a causal LM and its tokenizer, ready to run; every way this fails is one clear error."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ..environment import quiet_transformers
from ..errors import InputError, input_error

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Where configurations keep the longest input, the most common name first.
POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "max_target_positions")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CausalLM:
    """A causal language model with its tokenizer.

    Attributes:
        name: folder or hub name as given, or the class of a model that came loaded.
        model: a transformers model with a language-model head, in evaluation mode.
        tokenizer: its tokenizer.
        start_id: the token that stands before every text: bos, else eos, else cls; ``None`` if there is none of them.
        rows: number of input rows; every token id must be below it.
        max_positions: the longest input the model takes, in tokens; ``None`` if its configuration names no limit.
    """

    name: str
    model: Any = dataclasses.field(repr=False)
    tokenizer: Any = dataclasses.field(repr=False)
    start_id: int | None
    rows: int
    max_positions: int | None

    @property
    def device(self) -> torch.device:
        """Where the input rows lie."""
        return self.model.get_input_embeddings().weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the input rows."""
        return self.model.get_input_embeddings().weight.dtype


def load_causal_lm(
    model: str | Path | tuple[Any, Any] | CausalLM,
    *,
    device: str = "auto",
    dtype: str | None = None,
    gguf_file: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> CausalLM:
    """Load a causal language model with stock transformers, or take one that is loaded already.

    Args:
        model: a folder or a hub name; or a pair ``(model, tokenizer)`` or what this function gave, which stay where and as
            they are.
        device: ``auto`` (a CUDA device if there is one), ``cpu`` or ``cuda[:index]``.
        dtype: ``float32``, ``bfloat16`` or ``float16``; ``None`` is float32 on a CPU, whose half precision is slow and
            coarse, and the checkpoint's own elsewhere.
        gguf_file: name of the GGUF file inside the folder, for a model that is one.
        revision: revision on the hub.
        trust_remote_code: let transformers run code that the checkpoint brings along.

    Returns:
        The model in evaluation mode with its tokenizer.

    Raises:
        InputError: there is no such model, or it is no causal language model, lacks weights, brings code that was not
            asked for, stores pickled weights, or its tokenizer cannot be loaded; or an option is out of range.
    """
    if isinstance(model, CausalLM):
        return model
    if isinstance(model, tuple | list):
        if len(model) != 2 or device != "auto" or dtype is not None:
            found = f"{len(model)} parts, device {device!r}, dtype {dtype!r}"
            raise input_error(
                "model", found, "(model, tokenizer) with neither device nor dtype", "move the model yourself"
            )
        return _ready(type(model[0]).__name__, model[0].eval(), model[1])
    where = resolve_device(device)
    if dtype is not None and dtype not in DTYPES:
        raise input_error("dtype", repr(dtype), "one of " + ", ".join(DTYPES), "leave it out for the default")
    what = f"model {str(model)!r}"
    if not str(model):
        raise input_error("model", "an empty name", "a folder or a hub name", "check the variable it came from")
    _check_folder(what, Path(model), gguf_file)
    common = {"revision": revision, "trust_remote_code": trust_remote_code}
    if gguf_file is not None:
        common["gguf_file"] = gguf_file
    stored = "auto" if where.type != "cpu" else torch.float32
    with quiet_transformers():
        from transformers import AutoModelForCausalLM, AutoTokenizer

        with _one_error(what, "a causal language model that transformers can load", "its folder or hub name"):
            loaded, info = AutoModelForCausalLM.from_pretrained(
                str(model),
                dtype=DTYPES[dtype] if dtype else stored,
                use_safetensors=True if gguf_file is None else None,
                output_loading_info=True,
                **common,
            )
        with _one_error(
            f"tokenizer of {what}", "one that transformers can load", "the tokenizer files beside the model"
        ):
            tokenizer = AutoTokenizer.from_pretrained(str(model), **common)
    for kind, keys in (("missing", info["missing_keys"]), ("misshapen", info["mismatched_keys"])):
        if keys:
            names = sorted(key if isinstance(key, str) else str(key[0]) for key in keys)
            found = f"{len(names)} {kind} tensors ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
            raise input_error(
                what, found, "all weights of a causal language model", "check that it is one and is whole"
            )
    return _ready(str(model), loaded.to(where).eval(), tokenizer)


@contextlib.contextmanager
def same_mode(model: Any) -> Iterator[None]:
    """Leave each module of a model in the mode, training or evaluation, that it had before; a name has none."""
    parts = list(model[0].modules()) if isinstance(model, tuple | list) and hasattr(model[0], "modules") else []
    trained = [part for part in parts if part.training]
    try:
        yield
    finally:
        for part in trained:
            part.training = True


def resolve_device(device: str) -> torch.device:
    """The torch device that ``auto``, ``cpu`` or ``cuda[:index]`` stands for here.

    Args:
        device: one of these.

    Returns:
        The device.

    Raises:
        InputError: another name, or a device this machine lacks.
    """
    cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto":
        return torch.device("cuda" if cuda else "cpu")
    # Read here: torch.device wraps a large index around (cuda:999 becomes cuda:-25).
    found = re.fullmatch(r"cpu|cuda(?::(\d+))?", device)
    if found and (device == "cpu" or int(found[1] or 0) < cuda):
        return torch.device(device)
    raise input_error("device", repr(device), f"auto, cpu or one of {cuda} CUDA devices", "choose one that is here")


def _ready(name: str, model: Any, tokenizer: Any) -> CausalLM:
    what = f"model {name!r}"
    if not hasattr(model, "get_input_embeddings") or model.get_input_embeddings() is None:
        raise input_error(what, "no input rows", "a transformers model with a language-model head", "check the model")
    if getattr(model.config, "is_encoder_decoder", False):
        raise input_error(what, "an encoder-decoder", "a causal language model", "evaluate a decoder-only model")
    if len(tokenizer) == 0:
        raise input_error(
            f"tokenizer of {what}", "an empty vocabulary", "at least one token", "check the tokenizer files"
        )
    candidates = (tokenizer.bos_token_id, tokenizer.eos_token_id, getattr(tokenizer, "cls_token_id", None))
    return CausalLM(
        name=name,
        model=model,
        tokenizer=tokenizer,
        start_id=next((token for token in candidates if token is not None), None),
        rows=model.get_input_embeddings().weight.shape[0],
        max_positions=_positions_of(model.config),
    )


def _positions_of(config: Any) -> int | None:
    """The longest input by a transformers configuration, in tokens; ``None`` where it names no limit."""
    config = config.get_text_config()
    found = (getattr(config, name, None) for name in POSITIONS)
    return next((value for value in found if isinstance(value, int) and value > 0), None)


def positions_in(folder: Path, what: str, *, trust_remote_code: bool = False) -> int | None:
    """The longest input that the model of a folder takes, in tokens, by its config.json alone.

    Args:
        folder: the model folder.
        what: what to call the model in messages.
        trust_remote_code: let transformers run code that the checkpoint brings along.

    Returns:
        What :attr:`CausalLM.max_positions` of the loaded model is: ``None`` where the configuration names no limit.

    Raises:
        InputError: it is no model folder, or its configuration cannot be read.
    """
    _check_folder(what, folder, None)
    with quiet_transformers():
        from transformers import AutoConfig

        with _one_error(what, "a causal language model that transformers can load", "its folder or hub name"):
            return _positions_of(AutoConfig.from_pretrained(str(folder), trust_remote_code=trust_remote_code))


def within_positions(length: int, positions: int | None) -> int:
    """A length in tokens that is an upper bound or a default, cut to what the model takes.

    Args:
        length: in tokens, in [1, inf).
        positions: the longest input that the model takes; ``None`` is no limit.
    """
    return length if positions is None else min(length, positions)


def resolve_length(name: str, given: int | None, default: int, positions: int | None, what: str) -> int:
    """The length of the input for a model: the one given, which must fit, or the default, which is made to fit.

    Args:
        name: of the option, for messages.
        given: in tokens; ``None`` where the user has given none.
        default: in tokens; cut to the model's positions.
        positions: the longest input that the model takes; ``None`` is no limit.
        what: what to call the model in messages.

    Raises:
        InputError: the length given is longer than the model takes.

    Example:
        >>> resolve_length("seq_length", None, 512, 128, "the model")
        128
        >>> resolve_length("seq_length", 64, 512, 128, "the model")
        64
    """
    if given is None:
        return within_positions(default, positions)
    if positions is not None and given > positions:
        raise input_error(
            name, f"{given}", f"at most the {positions} positions of {what}", "choose less, or leave it out"
        )
    return given


def _check_folder(what: str, folder: Path, gguf_file: str | None) -> None:
    """Refuse what is plainly no model folder before transformers takes it for a hub name."""
    expected = "a folder with config.json, safetensors weights and a tokenizer, or a hub name"
    # os.path's tests, unlike pathlib's, take a name that is too long or forbidden for one that is not there.
    if os.path.isfile(folder):
        raise input_error(what, "a file", expected, "give the folder it lies in")
    if not os.path.exists(folder):
        if folder.is_absolute() or len(folder.parts) > 2 or str(folder).startswith((".", "~")):
            raise input_error(what, "no such folder", expected, "check the path")
        return
    if gguf_file is not None:
        if not os.path.isfile(folder / gguf_file):
            raise input_error(what, f"no file {gguf_file!r}", "a GGUF file of that name in it", "check the name")
        return
    try:
        json.loads((folder / "config.json").read_bytes())
    except OSError as error:
        raise input_error(what, "no readable config.json", expected, "check that it is a model folder") from error
    except ValueError as error:
        raise input_error(what, f"a broken config.json ({error})", "valid JSON", "fetch the file again") from error
    if not any(folder.glob("*.safetensors")):
        pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
        if pickled:
            advice = "convert them: load the model with transformers where you trust it, then save_pretrained"
            raise input_error(what, f"pickled weights ({pickled[0]}), which can run code", "safetensors", advice)
        raise input_error(what, "no weights", expected, "check that the copy is whole")


@contextlib.contextmanager
def _one_error(what: str, expected: str, name: str) -> Iterator[None]:
    """Turn whatever loading raises into one sentence: transformers and the loaders below it raise nearly every kind."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        if "trust_remote_code" in str(error):
            raise input_error(what, "code of its own", expected, "pass trust_remote_code if you trust it") from error
        raise input_error(what, f"{type(error).__name__}: {lines[0][:300]}", expected, f"check {name}") from error
