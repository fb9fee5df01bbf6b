"""Which tensors of a model hold vocabulary rows: found by building the model class on torch's meta device."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import re
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from ..environment import quiet_transformers
from ..errors import InputError, first_line, input_error
from . import composite

# Beginning of the config entries that hold the number of rows of a table of per-layer inputs.
TABLE_SIZE = "vocab_size_per_layer"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelTable:
    """A matrix of vocabulary rows besides input matrix and head.

    Attributes:
        names: all names of the matrix in the model.
        role: ``input`` for a matrix whose rows are looked up, ``output`` for one that gives logits.
        shape: rows and width by the config.
    """

    names: tuple[str, ...]
    role: Literal["input", "output"]
    shape: tuple[int, int]


# Names of a padding id in model classes.
PAD_NAME = re.compile(r"_?pad(ding)?(_token)?_?(id|idx|index)")
# Methods that a forward pass does not call.
NOT_RUN = ("__init__", "_init_weights", "dummy_inputs")
# Modules of base classes that all models share.
LIBRARIES = (
    "builtins",
    "torch",
    "typing",
    "abc",
    "transformers.modeling_",
    "transformers.generation",
    "transformers.utils",
    "transformers.integrations",
    "transformers.activations",
    "transformers.loss",
)


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
        size_paths: paths of the entries of config.json that hold the number of rows.
        text_path: leads from the config to that of the text part; empty for a text model.
        tables: matrices of vocabulary rows besides these.
        model: the model itself, on the meta device.
        reads_pad: whether the class reads the padding id when it runs, beyond its use for the input matrix.
    """

    name: str
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    bias_names: tuple[str, ...]
    rows: int
    width: int
    output_width: int
    tied: bool
    size_paths: tuple[tuple[str, ...], ...]
    model: Any = dataclasses.field(repr=False, compare=False)
    text_path: tuple[str, ...] = ()
    tables: tuple[ModelTable, ...] = ()
    reads_pad: bool = False


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
        architecture = _inspect(model, config, raw, side, causal)
        if causal:
            tables = _tables(model, config, architecture, side, trust_remote_code)
            architecture = dataclasses.replace(architecture, tables=tables)
            _check_size_paths(config, raw, architecture, side)
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
        path = composite.text_path(config)
    except ValueError:
        parts = ", ".join(config.sub_configs) or "several"
        raise input_error(
            side,
            f"a model with several text parts ({config.model_type}: {parts})",
            "a model with one text part",
            "take its language model",
        ) from None
    if path and causal:
        _refuse_composite(config, side)
        return
    remote = trust_remote_code and isinstance(raw.get("auto_map"), dict) and "AutoModelForCausalLM" in raw["auto_map"]
    if not causal:
        known = type(config) in AutoModel._model_mapping or (path and composite.writer_class(config) is not None)
        if not known and not (trust_remote_code and raw.get("auto_map")):
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


def _refuse_composite(config: Any, side: str) -> None:
    """Refuse a model of several parts whose text part is no causal LM, or whose token ids saltlm cannot move."""
    writer = composite.writer_class(config)
    encoder_decoder = config.is_encoder_decoder or config.get_text_config().is_encoder_decoder
    if writer is None or encoder_decoder or not writer.can_generate():
        named = config.architectures[0] if config.architectures else config.model_type
        raise input_error(
            side,
            f"{named}, which is no causal LM",
            "a causal LM, or a model of several parts whose text part is one",
            "choose another source",
        )
    for path, part in composite.parts_of(config):
        offset = getattr(part, "vocab_offset", None)
        if isinstance(offset, int) and offset:
            raise input_error(
                side,
                f"a part that reads the token ids from {offset} on by a matrix of its own"
                f" ({'.'.join((*path, 'vocab_offset'))})",
                "one input matrix for all token ids",
                f"take its text part: load it by the class for {config.get_text_config().model_type} and save it",
            )


def _build(config: Any, side: str, causal: bool, trust_remote_code: bool) -> Any:
    """The model of a config on the meta device."""
    from transformers import AutoModel, AutoModelForCausalLM

    auto = AutoModelForCausalLM if causal else AutoModel
    name = auto.__name__
    try:
        with torch.device("meta"):
            if composite.text_path(config) and (causal or type(config) not in AutoModel._model_mapping):
                writer = composite.writer_class(config)
                name = writer.__name__
                model = writer(copy.deepcopy(config))
            else:
                model = auto.from_config(config, trust_remote_code=trust_remote_code)
        model.tie_weights()  # transformers 5.0 does not tie them on the meta device
        return model
    except Exception as error:  # on a contradictory config a model class may raise any error
        raise _unusable(side, f"a config no {name} can be built from", error) from None


def _names(model: Any, tensor: torch.Tensor | None) -> tuple[str, ...]:
    """All names of a tensor in a model."""
    if tensor is None:
        return ()
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return tuple(name for name, other in tensors if other is tensor)


def _inspect(model: Any, config: Any, raw: Mapping[str, Any], side: str, causal: bool) -> Architecture:
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
    if output is not None and len(output) != len(weight):
        raise input_error(
            side,
            f"an input matrix of {len(weight)} rows and a head of {len(output)}",
            "as many rows in both",
            "choose another source",
        )
    path = composite.text_path(config)
    keys = [_size_key(config), *_table_sizes(config)]
    return Architecture(
        name=type(model).__name__,
        input_names=_names(model, weight),
        output_names=() if output is weight else _names(model, output),
        bias_names=_names(model, bias),
        rows=len(weight),
        width=weight.shape[1],
        output_width=(weight if output is None else output).shape[1],
        tied=output is weight,
        size_paths=tuple(entry for key in keys for entry in composite.entry_paths(raw, path, key)),
        text_path=path,
        model=model,
        reads_pad=causal and _reads_pad(model),
    )


def _size_key(config: Any) -> str:
    """Name of the vocabulary size in the config of the text part."""
    return str(config.get_text_config().attribute_map.get("vocab_size", "vocab_size"))


def _reads_pad(model: Any) -> bool:
    """Whether code of the model, other than its construction, reads a padding id; positions may then depend on it.

    The names in the compiled methods of its modules are searched, which costs no run of the model. A hit is no proof:
    :mod:`saltlm.model.positions` runs a small model of the class to find out what the id changes.
    """
    classes = {base for module in model.modules() for base in type(module).__mro__}
    functions = (
        function
        for base in classes
        if not base.__module__.startswith(LIBRARIES)
        for name, function in vars(base).items()
        if name not in NOT_RUN
    )
    return any(_names_pad(function) for function in functions)


def _names_pad(function: Any) -> bool:
    """Whether a function, or one that it wraps or defines, reads an attribute or a global that is named as a padding id."""
    function = inspect.unwrap(getattr(function, "__func__", getattr(function, "fget", function)))
    codes = [function.__code__] if hasattr(function, "__code__") else []
    while codes:
        code = codes.pop()
        if any(PAD_NAME.fullmatch(name) for name in code.co_names):
            return True
        codes += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return False


def _table_sizes(config: Any) -> list[str]:
    """Names of the entries that hold the numbers of rows of tables of per-layer inputs."""
    text = vars(config.get_text_config())
    return [key for key, value in text.items() if key.startswith(TABLE_SIZE) and isinstance(value, int)]


def _tables(
    model: Any, config: Any, architecture: Architecture, side: str, trust_remote_code: bool
) -> tuple[ModelTable, ...]:
    """The vocabulary-sized matrices of a model besides input matrix, head and head bias.

    They are those whose number of rows differs in a second model with one more token: matrices of an embedding module, which
    are read at input tokens, and of a linear layer, which give logits.

    Raises:
        InputError: the model has other tensors whose shape depends on the number of tokens, or the second model cannot be
            built although the config has a table of per-layer inputs.
    """
    larger = copy.deepcopy(config)
    text, sizes = larger.get_text_config(), _table_sizes(config)
    try:
        text.vocab_size = architecture.rows + 1
        for key in sizes:
            setattr(text, key, getattr(text, key) + 1)
        other = _build(larger, side, True, trust_remote_code)
    except (InputError, AttributeError):
        if sizes:
            raise
        return ()  # The class cannot be built with that size; only the shapes in the checkpoint are checked then.
    shapes = {name: tensor.shape for name, tensor in other.state_dict().items()}
    grown = {name for name, tensor in model.state_dict().items() if shapes.get(name) != tensor.shape}
    known = {*architecture.input_names, *architecture.output_names, *architecture.bias_names}
    if not known.intersection(grown):
        key = _size_key(config)
        raise input_error(side, f"rows whose number does not follow {key}", "a text model", "choose another model")
    tables: dict[tuple[str, ...], ModelTable] = {}
    unknown = []
    for name in sorted(grown - known):
        table = _table(model, name, shapes.get(name))
        if table is None:
            unknown.append(name)
        else:
            tables.setdefault(table.names, table)
    if unknown:
        raise input_error(
            side,
            f"vocabulary-sized tensors of an unknown kind ({', '.join(unknown[:3])})",
            "input matrix, head, head bias and tables of token rows only",
            "choose another model",
        )
    return tuple(tables.values())


def _table(model: Any, name: str, larger: torch.Size | None) -> ModelTable | None:
    """The matrix of this name, if it has one row for each token; ``None`` for another kind of tensor.

    Args:
        model: the model.
        name: of the tensor.
        larger: shape of the tensor in a model with one more token.
    """
    module_name, _, attribute = name.rpartition(".")
    module = model.get_submodule(module_name)
    weight = getattr(module, attribute)
    if attribute != "weight" or weight.dim() != 2 or larger != (len(weight) + 1, weight.shape[1]):
        return None
    if not isinstance(module, torch.nn.Embedding | torch.nn.Linear):
        return None
    return ModelTable(
        names=_names(model, weight),
        role="input" if isinstance(module, torch.nn.Embedding) else "output",
        shape=(len(weight), weight.shape[1]),
    )


def _check_size_paths(config: Any, raw: Mapping[str, Any], architecture: Architecture, side: str) -> None:
    """Check that a model of several parts takes its vocabulary size from the entries of config.json that would be changed."""
    if not architecture.text_path:
        return
    changed = dict(raw)
    for path in architecture.size_paths:
        changed = composite.with_entry(changed, path, architecture.rows + 1)
    text = type(config).from_dict(changed).get_text_config()
    if text.vocab_size != architecture.rows + 1:
        raise input_error(
            side,
            f"a vocabulary size that does not follow {' and '.join('.'.join(path) for path in architecture.size_paths)}",
            "a size that config.json sets",
            "choose another model",
        )
