"""Covers of shared tokens by pieces other than themselves: what a subword mean would make of them if they were new."""

from __future__ import annotations

import numpy as np

from .. import _rust
from ..align import Alignment


def hidden_pieces(alignment: Alignment, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Covers of target tokens by source pieces that are neither they nor their twins in case or word start.

    Args:
        alignment: of source and target.
        tokens: int64 [n], target ids that have a source id.

    Returns:
        offsets int64 [n + 1] and piece ids int32, as in :class:`~saltlm.align.Alignment`.
    """
    twins: dict[str, list[int]] = {}
    for piece, word in enumerate(alignment.source.words()):
        if word:
            twins.setdefault(word.casefold(), []).append(piece)
    words = alignment.target.words()
    forbidden = [
        sorted({int(alignment.source_id[token]), *twins.get((words[token] or "").casefold(), ())}) for token in tokens
    ]
    offsets = np.concatenate([[0], np.cumsum([len(ids) for ids in forbidden])]).astype(np.int64)
    flat = np.array([piece for ids in forbidden for piece in ids], dtype=np.int64)
    return _rust.covers_without(alignment.source, alignment.target, tokens.astype(np.int64), offsets, flat)
