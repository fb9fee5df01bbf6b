"""The tensors of a checkpoint with one row per token: input matrix, head, head bias, tables outside the model class."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import torch

from ..errors import input_error
from ..files.copy import BLOCK
from ..operators.checks import finite_rows
from ..protocols import Tokenizer
from .architecture import Architecture
from .quantization import Declared, refuse_quantized_rows
from .renaming import LoadedKeys
from .safetensors_header import DTYPES, Entry
from .safetensors_stream import byte_blocks
from .weights import Weights, release_pages

# Last module names of tables of input rows and of output rows outside the model class, as in multi-token-prediction layers.
OUTPUT_TABLE = re.compile(r"head|embed_out|unembed|logits|output|vocab_proj", re.IGNORECASE)
INPUT_TABLE = re.compile(r"emb|wte|wordpiece|tok", re.IGNORECASE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TableKey:
    """One more tensor with a row per token.

    Attributes:
        key: key in the checkpoint.
        role: ``input`` or ``output``: which rows it holds, and so how new rows are built; ``bias`` of an output table.
        names: its names in the model class; empty if the class does not have it.
    """

    key: str
    role: Literal["input", "output", "bias"]
    names: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class VocabularyKeys:
    """Keys of the vocabulary tensors in a checkpoint.

    Attributes:
        input: key of the input matrix.
        output: key of the head; ``None`` if it is tied.
        bias: key of the head's bias; ``None`` if it has none.
        copies: key of a duplicate tensor -> key of the tensor that it duplicates.
        tables: further tensors with a row per token.
    """

    input: str
    output: str | None = None
    bias: str | None = None
    copies: Mapping[str, str] = dataclasses.field(default_factory=dict)
    tables: tuple[TableKey, ...] = ()


def _require_keys(
    weights: Weights, loaded: LoadedKeys, names: tuple[str, ...], side: str, what: str, *, body: bool = True
) -> list[str]:
    """Keys under which a checkpoint holds one tensor of the model.

    Args:
        weights: the weight files.
        loaded: what transformers makes of the keys.
        names: all names of the tensor in the model; more than one if it is tied.
        side: name of the model in messages.
        what: the tensor's role in messages.
        body: whether the rest of the checkpoint is needed as well; if not, a key that is a name with an unknown prefix
            serves, although transformers would not load it.

    Raises:
        InputError: the checkpoint lacks it, transformers computes it of other tensors, or keys of one name differ.
    """
    keys = loaded.keys_of(names)
    if not keys and not body:
        keys = tuple(key for key in loaded.names if any(key.endswith("." + name) for name in names))[:1]
    if not keys:
        end = names[0].rpartition(".")[0].rpartition(".")[2] or names[0]
        examples = sorted(loaded.names)
        examples = [key for key in examples if end in key] or examples
        raise input_error(
            f"{side}, {what}",
            f"no tensor {names[0]}, nor one that transformers loads as it (there are {', '.join(examples[:3])}, ...)",
            "it in the weights",
            "the checkpoint is incomplete or of another model; fetch it again",
        )
    if computed := [key for key in keys if key in loaded.computed]:
        raise input_error(
            f"{side}, {what}",
            f"{computed[0]}, of which transformers computes {loaded.names[computed[0]]} when it loads the model",
            "rows that are stored as the model has them",
            "load the model with transformers, save_pretrained it with save_original_format=False, and name that folder",
        )
    first_of: dict[str, str] = {}
    for key in keys:
        name = loaded.names[key]
        if first_of.setdefault(name, key) != key and not same_tensor(weights, first_of[name], key):
            raise input_error(
                f"{side}, {what}",
                f"two different tensors that transformers loads as {name}: {first_of[name]} and {key}",
                "one tensor",
                "remove the one that does not belong to the model",
            )
    return list(keys)


def find_keys(
    weights: Weights,
    shape: Architecture,
    loaded: LoadedKeys,
    side: str,
    *,
    head: bool,
    declared: Declared | None = None,
) -> VocabularyKeys:
    """Find the vocabulary tensors of a checkpoint and compare their shapes with the config.

    Args:
        weights: the weight files.
        shape: architecture of the model class under the folder's config.
        loaded: what transformers makes of the keys.
        side: name of the model in messages.
        head: whether to find the head and its bias, and tables outside the model class, too.
        declared: what the folder says about a quantisation.

    Raises:
        InputError: a tensor is missing, its shape differs from the config's, its dtype is not supported or it is quantised,
            or a table outside the model class cannot be rebuilt.
    """
    names = shape.input_names
    if head:
        names += shape.output_names + shape.bias_names + tuple(name for table in shape.tables for name in table.names)
    refuse_quantized_rows(weights, loaded.names, names, declared, side)
    inputs = _require_keys(weights, loaded, shape.input_names, side, "input matrix", body=head)
    if not head:
        inputs = inputs[:1]
    for key in inputs:
        check_shape(weights, key, (shape.rows, shape.width), side, "input matrix")
    if not head:
        return VocabularyKeys(input=inputs[0])
    outputs: list[str] = []
    if not shape.tied:
        outputs = _require_keys(weights, loaded, shape.output_names, side, "head")
        for key in outputs:
            check_shape(weights, key, (shape.rows, shape.output_width), side, "head")
    elif different := [key for key in inputs[1:] if not same_tensor(weights, inputs[0], key)]:
        # The config ties head and input matrix, but the file holds two different matrices. transformers then leaves them
        # untied, and so does saltlm.
        outputs = different
        inputs = [key for key in inputs if key not in different]
    biases = _require_keys(weights, loaded, shape.bias_names, side, "head bias") if shape.bias_names else []
    for key in biases:
        check_shape(weights, key, (shape.rows,), side, "head bias")
    copies = {key: keys[0] for keys in (inputs, outputs, biases) for key in keys[1:]}
    in_class, class_copies = _class_tables(weights, shape, loaded, side)
    known = [keys[0] for keys in (inputs, outputs, biases) if keys]
    tables, table_copies = _tables(weights, shape, loaded, side, [*known, *(table.key for table in in_class)])
    return VocabularyKeys(
        input=inputs[0],
        output=outputs[0] if outputs else None,
        bias=biases[0] if biases else None,
        copies=copies | class_copies | table_copies,
        tables=in_class + tables,
    )


def _class_tables(
    weights: Weights, shape: Architecture, loaded: LoadedKeys, side: str
) -> tuple[tuple[TableKey, ...], dict[str, str]]:
    """The tables that the model class has besides input matrix and head; and further keys of one, with its first key."""
    tables, copies = [], {}
    for table in shape.tables:
        first, *others = _require_keys(weights, loaded, table.names, side, "vocabulary table")
        check_shape(weights, first, table.shape, side, "vocabulary table")
        copies.update(dict.fromkeys(others, first))
        tables.append(TableKey(key=first, role=table.role, names=table.names))
    return tuple(tables), copies


def _tables(
    weights: Weights, shape: Architecture, loaded: LoadedKeys, side: str, known: Sequence[str]
) -> tuple[tuple[TableKey, ...], dict[str, str]]:
    """Tensors outside the model class with as many rows as the vocabulary.

    Args:
        weights: the weight files.
        shape: architecture of the model class.
        loaded: what transformers makes of the keys.
        side: name of the model in messages.
        known: keys of input matrix, head and head bias.

    Returns:
        The tables to rebuild; and those that are equal to one of the known tensors or to an earlier table, with its key.

    Raises:
        InputError: a tensor has as many rows as the vocabulary, and it is not clear what they are.
    """
    # Two last parts of the names of body tensors: a tensor called like one of them is a body tensor of another layer.
    body = {_ending(name) for name in loaded.tensors if name not in _vocabulary_names(shape)}
    outside = set(loaded.outside())
    tables: list[TableKey] = []
    copies: dict[str, str] = {}
    for header in weights.headers.values():
        for key, entry in header.entries.items():
            if key not in outside or not entry.shape or entry.shape[0] != shape.rows:
                continue
            name = loaded.names[key]
            if _ending(name) in body:
                continue
            original = next(
                (other for other in (*known, *(table.key for table in tables)) if same_tensor(weights, other, key)),
                None,
            )
            if original is not None:
                copies[key] = original
            else:
                tables.append(TableKey(key=key, role=_role(entry, name, shape, side)))
    return tuple(sorted(tables, key=lambda table: table.key)), copies


def _vocabulary_names(shape: Architecture) -> set[str]:
    tables = {name for table in shape.tables for name in table.names}
    return {*shape.input_names, *shape.output_names, *shape.bias_names, *tables}


def _ending(name: str) -> str:
    """The last two parts of a name, such as ``up_proj.weight``."""
    return ".".join(name.split(".")[-2:])


def _role(entry: Entry, name: str, shape: Architecture, side: str) -> Literal["input", "output", "bias"]:
    """Which rows a table outside the model class holds, by its name and width.

    Raises:
        InputError: neither tells.
    """
    parts = name.split(".")
    module = parts[-2] if len(parts) > 1 else parts[-1]
    # "embed_out" and "unembed" are heads, so that heads are looked for first.
    output, table = OUTPUT_TABLE.search(module), INPUT_TABLE.search(module)
    plain = entry.dtype in DTYPES
    if plain and output and parts[-1] == "bias" and len(entry.shape) == 1:
        return "bias"
    if plain and len(entry.shape) == 2 and (output or table):
        return "output" if output else "input"
    raise input_error(
        f"{side}, {entry.name}",
        f"a tensor of {entry.dtype} {list(entry.shape)} outside the model class {shape.name}, with a row for each token",
        "a table of input or output rows in a float dtype, called like an embedding or a head",
        "remove it from the checkpoint if the model does not need it, or choose another model",
    )


def check_shape(weights: Weights, name: str, expected: tuple[int, ...], side: str, what: str) -> None:
    """Check the shape and the dtype of a tensor.

    Args:
        weights: the weight files.
        name: key of the tensor.
        expected: shape by the config.
        side: name of the model in messages.
        what: the tensor's role in messages, such as ``head``.

    Raises:
        InputError: the shape differs, or the dtype is none of :data:`~saltlm.model.safetensors_header.DTYPES`.
    """
    entry = weights.entry(name)
    if entry.shape != expected:
        raise input_error(
            f"{side}, {what} {name}",
            f"shape {list(entry.shape)}",
            f"{list(expected)}, as config.json says",
            "weights and config.json are of different models; fetch both again",
        )
    if entry.dtype not in DTYPES:
        raise input_error(f"{side}, {what} {name}", f"dtype {entry.dtype}", "one of " + ", ".join(DTYPES), "convert it")


def same_tensor(weights: Weights, one: str, other: str) -> bool:
    """Whether two tensors have the same dtype, the same shape and equal bits."""
    first, second = weights.entry(one), weights.entry(other)
    if (first.dtype, first.shape) != (second.dtype, second.shape):
        return False
    blocks = zip(byte_blocks(weights.tensor(one)), byte_blocks(weights.tensor(other)), strict=True)
    for a, b in blocks:
        if a.tobytes() != b.tobytes():
            return False
        release_pages()
    return True


def read_digests(weights: Weights, keys: VocabularyKeys, tokenizer: Tokenizer, side: str) -> dict[str, str]:
    """Read every vocabulary tensor once, check that its rows are finite, and hash it.

    Args:
        weights: the weight files.
        keys: keys of the vocabulary tensors.
        tokenizer: names the tokens in messages.
        side: name of the model in messages.

    Returns:
        ``FILE#KEY`` -> hexadecimal sha256 of the tensor's bytes.

    Raises:
        InputError: a row holds NaN or infinity.
    """
    tokens = {index: token for token, index in tokenizer.get_vocab().items()}
    file_of = weights.files_of()
    names = [key for key in (keys.input, keys.output, keys.bias) if key is not None]
    names += [table.key for table in keys.tables]
    return {f"{file_of[key]}#{key}": check_rows(weights.tensor(key), key, side, tokens) for key in names}


def check_rows(tensor: torch.Tensor, name: str, side: str, token: Mapping[int, str]) -> str:
    """Read a vocabulary tensor once, block by block: check that its rows are finite, and hash it.

    Args:
        tensor: [rows, width] or [rows].
        name: key of the tensor, for the message.
        side: name of the model, for the message.
        token: row -> token, for the message.

    Returns:
        Hexadecimal sha256 of the tensor's bytes.

    Raises:
        InputError: some rows hold NaN or infinity; the message names the first five.
    """
    digest = hashlib.sha256()
    bad: list[int] = []
    count = 0
    rows = max(1, BLOCK // max(1, tensor[:1].numel() * tensor.element_size()))
    with ThreadPoolExecutor(1) as hasher:  # hashing takes longer than the check, and releases the interpreter lock
        for start in range(0, len(tensor), rows):
            block = tensor[start : start + rows]
            content = block.contiguous().view(-1).view(torch.uint8).numpy().data
            hashed = hasher.submit(digest.update, content)
            finite = finite_rows(block)
            if not finite.all():
                rows_here = (start + torch.nonzero(~finite).flatten()).tolist()
                count += len(rows_here)
                bad += rows_here[: 5 - len(bad)]
            hashed.result()
            release_pages()
    if bad:
        named = ", ".join(f"{row} ({token[row]!r})" if row in token else f"{row} (no token)" for row in bad)
        more = f" and {count - len(bad)} more" if count > len(bad) else ""
        raise input_error(
            f"{side}, {name}", f"NaN or infinity in rows {named}{more}", "finite rows", "repair the model"
        )
    return digest.hexdigest()
