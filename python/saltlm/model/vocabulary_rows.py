"""The tensors of a checkpoint that have a row for each token: input matrix, head and head bias."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from ..errors import input_error
from ..files.copy import BLOCK
from ..operators.finite import finite_rows
from .architecture import Architecture
from .safetensors_header import DTYPES
from .safetensors_stream import byte_blocks
from .weights import Weights, release_pages


@dataclasses.dataclass(frozen=True, kw_only=True)
class VocabularyKeys:
    """Keys of the vocabulary tensors in a checkpoint.

    Attributes:
        input: of the input matrix.
        output: of an untied head; ``None`` for a tied one.
        bias: of the head's bias; ``None`` where there is none.
        copies: key of a duplicate tensor -> key of the tensor that it repeats.
    """

    input: str
    output: str | None = None
    bias: str | None = None
    copies: Mapping[str, str] = dataclasses.field(default_factory=dict)


def _need(weights: Weights, names: tuple[str, ...], side: str, what: str) -> tuple[str, ...]:
    keys = match_names(weights, names, side)
    if not keys:
        some = ", ".join(sorted(weights.files_of())[:3])
        raise input_error(
            f"{side}, {what}",
            f"no tensor {names[0]} (there are {some}, ...)",
            "it in the weights",
            "the checkpoint is incomplete or of another model; fetch it again",
        )
    return keys


def match_names(weights: Weights, names: Sequence[str], side: str) -> tuple[str, ...]:
    """Keys of the checkpoint that are this tensor, given all its names in the model.

    A key is it if equal to one of the names, or if one of the two is the other with something before it: checkpoints
    of a base model lack the prefix (``transformer.``) that the model with a head has, and the other way round.

    Raises:
        InputError: two different tensors of the checkpoint would do.
    """
    keys = weights.files_of()
    exact = [name for name in names if name in keys]
    if exact:
        return tuple(exact)
    for name in names:
        near = [
            key for key in keys if key.endswith("." + name) or ("." in key and name.endswith("." + key))
        ]  # a lone "weight" would be the end of every name
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
        shape: of the model class under the folder's config.
        side: name of the model in messages.
        head: whether the head and its bias are looked for, too.

    Raises:
        InputError: a tensor is missing, or its shape or dtype is another than the config says.
    """
    inputs = _need(weights, shape.input_names, side, "input matrix")
    if not head:
        inputs = inputs[:1]
    for key in inputs:
        check_shape(weights, key, (shape.rows, shape.width), side, "input matrix")
    if not head:
        return VocabularyKeys(input=inputs[0])
    outputs: tuple[str, ...] = ()
    if not shape.tied:
        outputs = _need(weights, shape.output_names, side, "head")
        for key in outputs:
            check_shape(weights, key, (shape.rows, shape.output_width), side, "head")
    elif different := [key for key in inputs[1:] if not _equal(weights, inputs[0], key)]:
        # The config ties the two, but the file holds two different matrices. transformers then leaves them untied; so does
        # saltlm.
        outputs = tuple(different)
        inputs = tuple(key for key in inputs if key not in different)
    biases = _need(weights, shape.bias_names, side, "head bias") if shape.bias_names else ()
    for key in biases:
        check_shape(weights, key, (shape.rows,), side, "head bias")
    return VocabularyKeys(
        input=inputs[0],
        output=outputs[0] if outputs else None,
        bias=biases[0] if biases else None,
        copies={key: keys[0] for keys in (inputs, outputs, biases) for key in keys[1:]},
    )


def check_shape(weights: Weights, name: str, expected: tuple[int, ...], side: str, what: str) -> None:
    """Compare a tensor with what the config says.

    Raises:
        InputError: shape or dtype are others.
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
    if weights.entry(one).dtype != weights.entry(other).dtype:
        return False
    blocks = zip(byte_blocks(weights.tensor(one)), byte_blocks(weights.tensor(other)), strict=True)
    for a, b in blocks:
        if a.tobytes() != b.tobytes():
            return False
        release_pages()
    return True


def read_digests(weights: Weights, keys: VocabularyKeys, tokenizer: Any, side: str) -> dict[str, str]:
    """Read every vocabulary tensor once: ``FILE#KEY`` -> sha256.

    Raises:
        InputError: a row holds NaN or infinity.
    """
    tokens = {index: token for token, index in tokenizer.get_vocab().items()}
    file_of = weights.files_of()
    names = [key for key in (keys.input, keys.output, keys.bias) if key is not None]
    return {f"{file_of[key]}#{key}": check_rows(weights.tensor(key), key, side, tokens) for key in names}


def check_rows(tensor: torch.Tensor, name: str, side: str, token: Mapping[int, str]) -> str:
    """Read a vocabulary-sized tensor once, block by block: no row may hold NaN or infinity. Returns its sha256.

    Args:
        tensor: [rows, width] or [rows].
        name: its key, for the message.
        side: whose it is, for the message.
        token: row -> token, for the message.

    Raises:
        InputError: some rows are not finite; the first few are named.
    """
    digest = hashlib.sha256()
    bad: list[int] = []
    count = 0
    rows = max(1, BLOCK // max(1, tensor[:1].numel() * tensor.element_size()))
    with ThreadPoolExecutor(1) as beside:  # the digest takes longer than reading, and holds no interpreter lock
        for start in range(0, len(tensor), rows):
            block = tensor[start : start + rows]
            content = memoryview(block.contiguous().view(-1).view(torch.uint8).numpy())
            hashed = beside.submit(digest.update, content)
            finite = finite_rows(block)
            if not finite.all():
                found = (start + torch.nonzero(~finite).flatten()).tolist()
                count += len(found)
                bad += found[: 5 - len(bad)]
            hashed.result()
            release_pages()
    if bad:
        named = ", ".join(f"{row} ({token[row]!r})" if row in token else f"{row} (no token)" for row in bad)
        more = f" and {count - len(bad)} more" if count > len(bad) else ""
        raise input_error(
            f"{side}, {name}", f"NaN or infinity in rows {named}{more}", "finite rows", "repair the model"
        )
    return digest.hexdigest()
