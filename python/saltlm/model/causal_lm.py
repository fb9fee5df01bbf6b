"""Load a causal LM and its tokenizer from a folder or the hub. Every failure is one InputError."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from ..environment import quiet_transformers
from ..errors import InputError, first_line, input_error
from ..files.json_files import parse_json
from ..files.open_file import FileKind, check_inside, check_model_folder, read_file
from ..protocols import LanguageModel, Tokenizer
from .composite import text_path, writer_class
from .positions import POSITIONS, lost_positions
from .quantization import refuse_undeclared
from .weights import ADAPTER, INDEX, SINGLE, Weights, find_weights, merge_advice, refuse_adapter_alone, refuse_wrapped

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclasses.dataclass(frozen=True, kw_only=True)
class CausalLM:
    """A causal language model with its tokenizer.

    Attributes:
        name: folder or hub name as given; the class name if the caller gave a loaded model.
        model: a transformers model with a language-model head, in evaluation mode.
        tokenizer: the model's tokenizer.
        start_id: id of the token that precedes every text: bos, else eos, else cls; ``None`` if the tokenizer has none.
        rows: number of input rows; every token id must be below it.
        max_positions: the longest input of the model, in tokens; ``None`` if its config names no limit.
    """

    name: str
    model: LanguageModel = dataclasses.field(repr=False)
    tokenizer: Tokenizer = dataclasses.field(repr=False)
    start_id: int | None
    rows: int
    max_positions: int | None

    @property
    def device(self) -> torch.device:
        """Device of the input rows."""
        return self.model.get_input_embeddings().weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the input rows."""
        return self.model.get_input_embeddings().weight.dtype


def load_causal_lm(
    model: str | Path | tuple[LanguageModel, Tokenizer] | CausalLM,
    *,
    device: str = "auto",
    dtype: str | None = None,
    gguf_file: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    whole: bool = False,
) -> CausalLM:
    """Load a causal language model by transformers, or wrap one that is loaded already.

    A model of several parts, such as one with a vision tower, is loaded to be run on text alone.

    Args:
        model: a folder or a hub name; or a loaded pair ``(model, tokenizer)``, or a result of this function, whose device
            and dtype stay.
        device: ``auto`` (a CUDA device if there is one), ``cpu`` or ``cuda[:index]``.
        dtype: ``float32``, ``bfloat16`` or ``float16``; ``None`` is float32 on a CPU, where half precision is slow and
            imprecise, and the checkpoint's dtype on other devices.
        gguf_file: name of a GGUF file in the folder, to load that file.
        revision: branch, tag or commit on the hub.
        trust_remote_code: let transformers run code from the checkpoint.
        whole: load all parts of a model of several parts, also where transformers has a class for its text part alone.

    Returns:
        The model in evaluation mode with its tokenizer.

    Raises:
        InputError: there is no such model, it is not a causal language model, lacks weights, needs code of its own that is
            not trusted, or has pickled weights; its tokenizer cannot be loaded; or an option is out of range.
    """
    if isinstance(model, CausalLM):
        return model
    if isinstance(model, tuple | list):
        if len(model) != 2 or device != "auto" or dtype is not None:
            found = f"{len(model)} parts, device {device!r}, dtype {dtype!r}"
            raise input_error(
                "model", found, "(model, tokenizer) with neither device nor dtype", "move the model yourself"
            )
        return _checked(type(model[0]).__name__, model[0].eval(), model[1])
    target_device = resolve_device(device)
    if dtype is not None and dtype not in DTYPES:
        raise input_error("dtype", repr(dtype), "one of " + ", ".join(DTYPES), "leave it out for the default")
    what = f"model {str(model)!r}"
    if not str(model):
        raise input_error("model", "an empty name", "a folder or a hub name", "check the variable it came from")
    _check_folder(what, Path(model), gguf_file)
    weights = None if gguf_file is not None else _headers(Path(model), what)
    common: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    if gguf_file is not None:
        common["gguf_file"] = gguf_file
    default_dtype = "auto" if target_device.type != "cpu" else torch.float32
    with quiet_transformers():
        from transformers import AutoTokenizer

        with _one_error(what, "a causal language model that transformers can load", "its folder or hub name"):
            model_class: Any = _model_class(str(model), common, whole)
            loaded, info = model_class.from_pretrained(
                str(model),
                dtype=DTYPES[dtype] if dtype else default_dtype,
                use_safetensors=True if gguf_file is None else None,
                output_loading_info=True,
                **common,
            )
        with _one_error(
            f"tokenizer of {what}", "one that transformers can load", "the tokenizer files beside the model"
        ):
            tokenizer = AutoTokenizer.from_pretrained(str(model), **common)
    if gguf_file is None:
        _refuse_unread(str(model), revision, weights, sorted(info["unexpected_keys"]), what)
    for problem, keys in (("missing", info["missing_keys"]), ("misshapen", info["mismatched_keys"])):
        if keys:
            names = sorted(key if isinstance(key, str) else str(key[0]) for key in keys)
            found = f"{len(names)} {problem} tensors ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
            raise input_error(
                what,
                found,
                "all weights of a causal language model",
                "check the model class, and that the copy is complete",
            )
    return _checked(str(model), loaded.to(target_device).eval(), tokenizer)


def _model_class(name: str, options: Mapping[str, Any], whole: bool) -> Any:
    """The class to load: ``AutoModelForCausalLM``, or that of a model of several parts which it does not load."""
    from transformers import AutoConfig, AutoModelForCausalLM

    if "gguf_file" in options:
        return AutoModelForCausalLM
    config = AutoConfig.from_pretrained(name, **options)
    try:
        parts = bool(text_path(config))
    except ValueError:
        return AutoModelForCausalLM
    if not parts or (type(config) in AutoModelForCausalLM._model_mapping and not whole):
        return AutoModelForCausalLM
    return writer_class(config) or AutoModelForCausalLM


def _headers(folder: Path, what: str) -> Weights | None:
    """The headers of a local folder's weights, checked before transformers reads gigabytes; ``None`` for a hub name."""
    if not (os.path.isfile(folder / SINGLE) or os.path.isfile(folder / INDEX)):
        return None
    weights = find_weights(folder, what)
    refuse_wrapped(weights, what)
    refuse_undeclared(folder, weights, (), what)
    return weights


def _refuse_unread(name: str, revision: str | None, weights: Weights | None, unexpected: list[str], what: str) -> None:
    """Refuse quantised weights of which transformers has not read the scales, because config.json does not declare them.

    Args:
        name: folder or hub name.
        revision: on the hub.
        weights: headers of a local folder's weights.
        unexpected: keys that transformers has found in the checkpoint and not loaded.
        what: name of the model in messages.
    """
    folder = Path(name)
    if weights is None and not folder.is_dir():
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(name, "config.json", revision=revision)
        if not isinstance(cached, str):
            return
        folder = Path(cached).parent
        if (folder / SINGLE).is_file() or (folder / INDEX).is_file():
            weights = find_weights(folder, what)
    refuse_undeclared(folder, weights, unexpected, what)


@contextlib.contextmanager
def same_mode(model: Any) -> Iterator[None]:
    """Restore the mode of each module, training or evaluation, after the ``with`` block.

    Args:
        model: a loaded pair ``(model, tokenizer)``; for anything else, such as a folder name, nothing is done.
    """
    modules = list(model[0].modules()) if isinstance(model, tuple | list) and hasattr(model[0], "modules") else []
    training = [module for module in modules if module.training]
    try:
        yield
    finally:
        for module in training:
            module.training = True


def resolve_device(device: str) -> torch.device:
    """The torch device of a device name.

    Args:
        device: ``auto`` (a CUDA device if there is one), ``cpu`` or ``cuda[:index]``.

    Returns:
        The device.

    Raises:
        InputError: another name, or a device that this machine lacks.
    """
    cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto":
        return torch.device("cuda" if cuda else "cpu")
    # Parsed here, because torch.device wraps a large index around (cuda:999 becomes cuda:-25).
    match = re.fullmatch(r"cpu|cuda(?::(\d+))?", device)
    if match and (device == "cpu" or int(match[1] or 0) < cuda):
        return torch.device(device)
    raise input_error("device", repr(device), f"auto, cpu or one of {cuda} CUDA devices", "choose one that is here")


def _checked(name: str, model: Any, tokenizer: Any) -> CausalLM:
    """Check that model and tokenizer can be run as a causal LM."""
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
        max_positions=_positions_of(model.config, model),
    )


def _positions_of(config: Any, model: Any) -> int | None:
    """The longest input of a transformers model, in tokens; ``None`` if its config names no limit.

    Args:
        config: the model's config.
        model: the model, also on the meta device; ``None`` goes by the config alone.
    """
    config = config.get_text_config()
    values = (getattr(config, name, None) for name in POSITIONS)
    positions = next((value for value in values if isinstance(value, int) and value > 0), None)
    return positions if positions is None or model is None else positions - lost_positions(model, positions)


def positions_in(folder: Path, what: str, *, trust_remote_code: bool = False) -> int | None:
    """The longest input of the model in a folder, in tokens, from its config.json; no weights are read.

    Args:
        folder: the model folder.
        what: name of the model in messages.
        trust_remote_code: let transformers run code from the checkpoint.

    Returns:
        The same as :attr:`CausalLM.max_positions` of the loaded model; ``None`` if the config names no limit.

    Raises:
        InputError: the folder is not a model folder, or its config cannot be read.
    """
    _check_folder(what, folder, None)
    with quiet_transformers():
        from transformers import AutoConfig, AutoModelForCausalLM

        with _one_error(what, "a causal language model that transformers can load", "its folder or hub name"):
            config = AutoConfig.from_pretrained(str(folder), trust_remote_code=trust_remote_code)
        model = None
        with contextlib.suppress(Exception), torch.device("meta"):  # the config alone still gives the usual limit
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
        return _positions_of(config, model)


def within_positions(length: int, positions: int | None) -> int:
    """The smaller of a length in tokens and the longest input of the model.

    Args:
        length: an upper bound or a default, in tokens, in [1, inf).
        positions: the longest input of the model, in tokens; ``None`` for no limit.
    """
    return length if positions is None else min(length, positions)


def resolve_length(name: str, given: int | None, default: int, positions: int | None, what: str) -> int:
    """The input length to use: the given one, after a check that it fits the model, or else the default, reduced to fit.

    Args:
        name: name of the option, for the message.
        given: length that the user gave, in tokens; ``None`` if not given.
        default: length to use otherwise, in tokens.
        positions: the longest input of the model, in tokens; ``None`` for no limit.
        what: name of the model in the message.

    Raises:
        InputError: the given length exceeds the longest input of the model.

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
    """Refuse a path that is not a model folder, before transformers takes it for a hub name."""
    expected = "a folder with config.json, safetensors weights and a tokenizer, or a hub name"
    # Unlike pathlib's methods, os.path's functions return False for a name that is too long or has forbidden characters.
    if os.path.isfile(folder):
        raise input_error(what, "a file", expected, "give the folder that holds it")
    if not os.path.exists(folder):
        if folder.is_absolute() or len(folder.parts) > 2 or str(folder).startswith((".", "~")):
            raise input_error(what, "no such folder", expected, "check the path")
        return
    if gguf_file is not None:
        if not os.path.isfile(folder / gguf_file):
            raise input_error(what, f"no file {gguf_file!r}", "a GGUF file of that name in it", "check the name")
        check_model_folder(folder, what)
        check_inside(folder / gguf_file, folder, f"{what}, {gguf_file}")
        return
    refuse_adapter_alone(folder, what)
    try:
        check_model_folder(folder, what)
        parse_json(read_file(folder / "config.json", FileKind.SETTINGS))
    except OSError as error:
        raise input_error(what, "no readable config.json", expected, "check that it is a model folder") from error
    except InputError:
        raise
    except ValueError as error:
        raise input_error(what, f"a broken config.json ({error})", "valid JSON", "fetch the file again") from error
    _check_weights(what, folder, expected)


def _check_weights(what: str, folder: Path, expected: str) -> None:
    """Refuse a folder without safetensors weights."""
    if all(path.name.startswith("adapter_") for path in folder.glob("*.safetensors")):
        pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
        if pickled:
            advice = "convert them: load the model with transformers where you trust it, then save_pretrained"
            raise input_error(what, f"pickled weights ({pickled[0]}), which can run code", "safetensors", advice)
        if (folder / ADAPTER).is_file():
            raise input_error(what, "no weights but those of an adapter", expected, merge_advice(folder))
        raise input_error(what, "no weights", expected, "check that the copy is complete")


@contextlib.contextmanager
def _one_error(what: str, expected: str, name: str) -> Iterator[None]:
    """Turn any error of transformers, and of the loaders below it, into one InputError."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise input_error(what, "code of its own", expected, "pass trust_remote_code if you trust it") from error
        raise input_error(
            what, f"{type(error).__name__}: {first_line(error)[:300]}", expected, f"check {name}"
        ) from error
