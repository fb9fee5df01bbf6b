"""The tensors outside the vocabulary: dtype, shape and size, or all bytes, against the source's."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import torch

from ..model.checkpoint import Source
from ..model.positions import keep_positions
from ..model.safetensors_header import NAMES
from ..model.safetensors_stream import byte_blocks
from ..model.weights import release_pages
from .results import Check, judged


def check_body(written: Source, source: Source, *, full: bool, expanded: bool) -> Check:
    """Compare every tensor outside the vocabulary with the source's.

    Args:
        written: the folder.
        source: the source model.
        full: compare the bytes as well.
        expanded: whether the transfer kept the vocabulary of the source, and so its padding id.

    Raises:
        InputError: the class computes other positions with the padding id of the folder.
    """
    expected = _body_keys(source)
    present = set(_body_keys(written).values())
    # Tensors that the transfer changes because the class counts positions from the padding id.
    moved: Mapping[str, torch.Tensor] = {}
    if not expanded:
        moved = keep_positions(source, written.tokenizer.pad_token_id).tensors or {}
    wrong = [f"{name!r:.80} is missing" for name in sorted(set(expected.values()) - present)]
    wrong += [f"{name!r:.80} is not in the source" for name in sorted(present - set(expected.values()))]
    for key, name in expected.items():
        if name not in present:
            continue
        entry, here = source.weights.entry(key), written.weights.entry(name)
        dtype, shape = (
            (NAMES[moved[key].dtype], tuple(moved[key].shape)) if key in moved else (entry.dtype, entry.shape)
        )
        if (here.dtype, here.shape) != (dtype, shape):
            wrong.append(f"{name!r:.80} is {here.dtype} {list(here.shape)}, expected {dtype} {list(shape)}")
        elif full and not _equal(written.weights.tensor(name), moved.get(key, source.weights.tensor(key))):
            wrong.append(f"{name!r:.80} has other values")
    what = "bytes" if full else "dtype and shape"
    return judged("body", f"{what} of {len(expected):,} tensors outside the vocabulary", names=wrong)


def _body_keys(model: Source) -> dict[str, str]:
    """Key -> key as written, of the tensors outside the vocabulary."""
    vocabulary = {model.input_name, model.output_name, model.bias_name, *model.copies}
    vocabulary |= {table.key for table in model.tables}
    return {key: model.weights.unwrapped.get(key, key) for key in model.weights.files_of() if key not in vocabulary}


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors have equal bytes."""
    for a, b in itertools.zip_longest(byte_blocks(one), byte_blocks(other)):
        if a is None or b is None or a.tobytes() != b.tobytes():
            return False
        release_pages()
    return True
