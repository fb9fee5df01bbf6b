"""Which tensors of a model hold vocabulary rows: found by building the model class on torch's meta device."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..environment import quiet_transformers
from ..errors import InputError, first_line, input_error


@dataclasses.dataclass(frozen=True, kw_only=True)
class Architecture:
    """The vocabulary-sized tensors of a model class under one config.

    Attributes:
        name: the model class.
        input_names: all names of the input matrix in the model; more than one if it is tied.
        output_names: all names of the head matrix; empty if it is the input matrix or there is no head.
        bias_names: all names of the head's vocabulary-sized bias; empty if there is none.
        rows: number of rows by the config.
        width: width of the input matrix.
        output_width: width of the head matrix, or of the input matrix if there is no other.
        tied: whether the config ties head and input matrix.
        vocab_key: key of the vocabulary size in config.json.
        model: the model itself, on the meta device.
    """

    name: str
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    bias_names: tuple[str, ...]
    rows: int
    width: int
    output_width: int
    tied: bool
    vocab_key: str
    model: Any = dataclasses.field(repr=False, compare=False)


def find_architecture(
    folder: Path, raw: Mapping[str, Any], *, side: str, causal: bool, trust_remote_code: bool
) -> Architecture:
    """Build the model of a folder's config on the meta device, which allocates no memory, and find its vocabulary tensors.

    Args:
        folder: the model folder.
        raw: content of its config.json.
        side: name of the model in messages, such as ``source my-model``.
        causal: build the causal LM class; ``False`` builds the encoder, decoder or encoder-decoder without a head.
        trust_remote_code: let transformers run code from the folder.

    Raises:
        InputError: the config is broken, needs remote code, or belongs to a model that saltlm cannot give new rows.
    """
    from transformers import AutoConfig

    _refuse_by_config(raw, side, causal, trust_remote_code)
    with quiet_transformers():
        try:
            config = AutoConfig.from_pretrained(str(folder), trust_remote_code=trust_remote_code)
        except Exception as error:  # each config class has checks of its own, with errors of any type
            raise _unusable(side, "a config transformers cannot read", error) from None
        _refuse_model_class(config, raw, side, causal, trust_remote_code)
        model = _build(config, side, causal, trust_remote_code)
        architecture = _inspect(model, config, side, causal)
        if causal:
            _refuse_unknown_rows(model, config, architecture, side, trust_remote_code)
    return architecture


def _unusable(side: str, found: str, error: Exception) -> InputError:
    return input_error(side, f"{found} ({first_line(error)})", "a model that transformers knows", "check config.json")


def _refuse_by_config(raw: Mapping[str, Any], side: str, causal: bool, trust_remote_code: bool) -> None:
    """Refuse by config.json alone, before transformers reads it: unknown classes and remote code."""
    from transformers import CONFIG_MAPPING

    model_type = raw.get("model_type")
    auto_map = raw.get("auto_map")
    remote: dict[str, Any] = auto_map if isinstance(auto_map, dict) else {}
    auto_class = "AutoModelForCausalLM" if causal else "AutoModel"
    known = model_type in CONFIG_MAPPING
    if remote and not known and not trust_remote_code:
        raise input_error(
            side,
            f"a model that needs its own code (model_type {model_type!r}, auto_map {sorted(remote)})",
            "a model class of the transformers library",
            "read that code; if you trust it, give --trust-remote-code",
        )
    if not known and auto_class not in remote:
        advice = "check config.json" if model_type is None else "update transformers, or choose another model"
        raise input_error(f"{side}, config.json", f"model_type {model_type!r}", "one that transformers knows", advice)


def _refuse_model_class(config: Any, raw: Mapping[str, Any], side: str, causal: bool, trust_remote_code: bool) -> None:
    """Refuse a model without a single matrix of token rows, and a source that is not a causal LM."""
    from transformers import AutoModel, AutoModelForCausalLM
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES as MASKED

    try:
        several = config.get_text_config() is not config
    except ValueError:  # several of its parts read text
        several = True
    if several:
        parts = ", ".join(config.sub_configs) or "several"
        raise input_error(
            side, f"a model of several parts ({config.model_type}: {parts})", "a text model", "take its language model"
        )
    if "vocab_size_per_layer_input" in raw:
        raise input_error(side, "a vocabulary table in every layer", "one input matrix", "choose another model")
    remote = trust_remote_code and isinstance(raw.get("auto_map"), dict) and "AutoModelForCausalLM" in raw["auto_map"]
    if not causal:
        if type(config) not in AutoModel._model_mapping and not (trust_remote_code and raw.get("auto_map")):
            raise input_error(side, f"model_type {config.model_type!r}", "a text model", "choose another donor")
        return
    named = [str(name) for name in raw.get("architectures") or []]
    encoder = config.model_type in MASKED and not getattr(config, "is_decoder", False)
    no_class = type(config) not in AutoModelForCausalLM._model_mapping and not remote
    classes = {c for value in CAUSAL.values() for c in ((value,) if isinstance(value, str) else value)}
    other_head = named and not remote and not any(n in classes or n.endswith("Model") for n in named)
    if encoder or no_class or other_head or config.is_encoder_decoder:
        raise input_error(
            side,
            f"{named[0] if named else config.model_type}, which is no causal LM",
            "a causal LM such as LlamaForCausalLM",
            "swap source and target if you mixed them up",
        )


def _build(config: Any, side: str, causal: bool, trust_remote_code: bool) -> Any:
    """The model of a config on the meta device."""
    from transformers import AutoModel, AutoModelForCausalLM

    auto = AutoModelForCausalLM if causal else AutoModel
    try:
        with torch.device("meta"):
            model = auto.from_config(config, trust_remote_code=trust_remote_code)
        model.tie_weights()  # transformers 5.0 does not tie them on the meta device
        return model
    except Exception as error:  # on a contradictory config a model class may raise any error
        raise _unusable(side, f"a config no {auto.__name__} can be built from", error) from None


def _names(model: Any, tensor: torch.Tensor | None) -> tuple[str, ...]:
    """All names of a tensor in a model."""
    if tensor is None:
        return ()
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return tuple(name for name, other in tensors if other is tensor)


def _inspect(model: Any, config: Any, side: str, causal: bool) -> Architecture:
    """The vocabulary tensors that the model itself reports."""
    try:
        weight = getattr(model.get_input_embeddings(), "weight", None)
    except NotImplementedError:
        weight = None
    if not isinstance(weight, torch.nn.Parameter) or weight.dim() != 2:
        raise input_error(
            side, f"{type(model).__name__}, which has no matrix of token rows", "a text model", "choose another model"
        )
    head = model.get_output_embeddings() if causal else None
    output, bias = getattr(head, "weight", None), getattr(head, "bias", None)
    if causal and output is None:
        raise input_error(side, f"{type(model).__name__}, which has no head", "a causal LM", "choose another source")
    vocab_key = config.attribute_map.get("vocab_size", "vocab_size")
    return Architecture(
        name=type(model).__name__,
        input_names=_names(model, weight),
        output_names=() if output is weight else _names(model, output),
        bias_names=_names(model, bias),
        rows=len(weight),
        width=weight.shape[1],
        output_width=(weight if output is None else output).shape[1],
        tied=output is weight,
        vocab_key=vocab_key,
        model=model,
    )


def _refuse_unknown_rows(
    model: Any, config: Any, architecture: Architecture, side: str, trust_remote_code: bool
) -> None:
    """Refuse a model with vocabulary-sized tensors other than input matrix, head and head bias.

    They are the tensors whose shape differs in a second model with one more token.
    """
    larger = copy.deepcopy(config)
    try:
        larger.vocab_size = architecture.rows + 1
        other = _build(larger, side, True, trust_remote_code)
    except (InputError, AttributeError):
        return  # The class cannot be built with that size; only the shapes in the checkpoint are checked then.
    shapes = {name: tensor.shape for name, tensor in other.state_dict().items()}
    grown = {name for name, tensor in model.state_dict().items() if shapes.get(name) != tensor.shape}
    known = {*architecture.input_names, *architecture.output_names, *architecture.bias_names}
    if not known.intersection(grown):
        key = architecture.vocab_key
        raise input_error(side, f"rows whose number does not follow {key}", "a text model", "choose another model")
    if unknown := sorted(grown - known):
        raise input_error(
            side,
            f"vocabulary-sized tensors of an unknown kind ({', '.join(unknown[:3])})",
            "input matrix, head and head bias only",
            "choose another model",
        )
