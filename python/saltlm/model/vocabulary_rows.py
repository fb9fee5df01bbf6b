"""The tensors of a checkpoint that have one row per token: input matrix, head and head bias."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from ..errors import input_error
from ..files.copy import BLOCK
from ..operators.checks import finite_rows
from ..protocols import Tokenizer
from .architecture import Architecture
from .safetensors_header import DTYPES
from .safetensors_stream import byte_blocks
from .weights import Weights, release_pages


@dataclasses.dataclass(frozen=True, kw_only=True)
class VocabularyKeys:
    """Keys of the vocabulary tensors in a checkpoint.

    Attributes:
        input: key of the input matrix.
        output: key of the head; ``None`` if it is tied.
        bias: key of the head's bias; ``None`` if it has none.
        copies: key of a duplicate tensor -> key of the tensor that it duplicates.
    """

    input: str
    output: str | None = None
    bias: str | None = None
    copies: Mapping[str, str] = dataclasses.field(default_factory=dict)


def _require_keys(weights: Weights, names: tuple[str, ...], side: str, what: str) -> tuple[str, ...]:
    """Keys of a tensor by :func:`match_names`; an error if the checkpoint lacks it."""
    keys = match_names(weights, names, side)
    if not keys:
        examples = ", ".join(sorted(weights.files_of())[:3])
        raise input_error(
            f"{side}, {what}",
            f"no tensor {names[0]} (there are {examples}, ...)",
            "it in the weights",
            "the checkpoint is incomplete or of another model; fetch it again",
        )
    return keys


def match_names(weights: Weights, names: Sequence[str], side: str) -> tuple[str, ...]:
    """Keys under which a checkpoint holds one tensor of the model.

    A key matches a name if both are equal, or if one is the other with a prefix: checkpoints of a base model lack the
    prefix (such as ``transformer.``) that the model with a head has, or the reverse.

    Args:
        weights: the weight files.
        names: all names of the tensor in the model; more than one if it is tied.
        side: name of the model in messages.

    Returns:
        The keys; more than one if the checkpoint holds the tensor several times, none if it lacks it.

    Raises:
        InputError: several tensors of the checkpoint match one name by a prefix.
    """
    keys = weights.files_of()
    exact = [name for name in names if name in keys]
    if exact:
        return tuple(exact)
    for name in names:
        # A key without a dot, such as "weight", would be the end of every name.
        near = [key for key in keys if key.endswith("." + name) or ("." in key and name.endswith("." + key))]
        if len(near) > 1:
            raise input_error(
                side, f"tensors {', '.join(sorted(near)[:4])}", f"one tensor for {name}", "give a text model alone"
            )
        if near:
            return tuple(near)
    return ()


def find_keys(weights: Weights, shape: Architecture, side: str, *, head: bool) -> VocabularyKeys:
    """Find the vocabulary tensors of a checkpoint and compare their shapes with the config.

    Args:
        weights: the weight files.
        shape: architecture of the model class under the folder's config.
        side: name of the model in messages.
        head: whether to find the head and its bias, too.

    Raises:
        InputError: a tensor is missing, its shape differs from the config's, or its dtype is not supported.
    """
    inputs = _require_keys(weights, shape.input_names, side, "input matrix")
    if not head:
        inputs = inputs[:1]
    for key in inputs:
        check_shape(weights, key, (shape.rows, shape.width), side, "input matrix")
    if not head:
        return VocabularyKeys(input=inputs[0])
    outputs: tuple[str, ...] = ()
    if not shape.tied:
        outputs = _require_keys(weights, shape.output_names, side, "head")
        for key in outputs:
            check_shape(weights, key, (shape.rows, shape.output_width), side, "head")
    elif different := [key for key in inputs[1:] if not _equal(weights, inputs[0], key)]:
        # The config ties head and input matrix, but the file holds two different matrices. transformers then leaves them
        # untied, and so does saltlm.
        outputs = tuple(different)
        inputs = tuple(key for key in inputs if key not in different)
    biases = _require_keys(weights, shape.bias_names, side, "head bias") if shape.bias_names else ()
    for key in biases:
        check_shape(weights, key, (shape.rows,), side, "head bias")
    return VocabularyKeys(
        input=inputs[0],
        output=outputs[0] if outputs else None,
        bias=biases[0] if biases else None,
        copies={key: keys[0] for keys in (inputs, outputs, biases) for key in keys[1:]},
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


def _equal(weights: Weights, one: str, other: str) -> bool:
    """Whether two tensors of equal shape have equal bits."""
    if weights.entry(one).dtype != weights.entry(other).dtype:
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
