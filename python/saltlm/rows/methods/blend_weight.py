"""How much of a blend is the mean of the source pieces: a number for all tokens, or a rule."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
import torch

from ...model.stored_rows import gather
from ..assembly import Block
from ..job import Job
from .pieces import Pieces

# Pieces, and neighbours, at which the rules give half to each side: about the medians on real pairs.
HALF_PIECES, HALF_SUPPORT = 2, 32
# Share of the anchors that the rule ``precision`` hides to measure both sides on.
HIDDEN = 0.2
# Tokens of 1, 2, ... pieces are bands of their own, those of this many and more are one.
BANDS = 4
FEW = 10  # a band with fewer hidden tokens takes the share of all

Regression = Callable[[Job], Iterator[Block]]


def weigher(job: Job, regression: Regression) -> Callable[[Block], torch.Tensor]:
    """The share of the pieces' mean [M], in [0, 1], for the tokens of a block.

    - a number: that one;
    - ``pieces``: ``2 / (2 + n)`` for a token of n pieces;
    - ``support``: ``32 / (32 + K)`` for a token with K neighbours;
    - ``precision``: :func:`fitted_shares` of its band of pieces.
    """
    rule, pieces = job.config.blend_weight, Pieces(job)

    def count(block: Block) -> torch.Tensor:
        return torch.from_numpy(pieces.count(block.ids.numpy()))

    if rule == "pieces":
        return lambda block: HALF_PIECES / (HALF_PIECES + count(block).double())
    if rule == "support":
        return lambda block: HALF_SUPPORT / (HALF_SUPPORT + block.support_size.double())
    if rule == "precision":
        shares = fitted_shares(job, regression)
        return lambda block: shares[count(block).clamp(1, BANDS) - 1]
    return lambda block: torch.full((len(block.ids),), float(rule), dtype=torch.float64)


def fitted_shares(job: Job, regression: Regression) -> torch.Tensor:
    """Float64 [BANDS]: the share of the pieces' mean that fits hidden shared tokens best, by their count of pieces.

    Whole groups of anchors are hidden, as in the self-check; the regression predicts their rows g from the others, and pieces
    that leave out the token and its twins give their means m. With t the true rows, the share that minimises the summed
    ``|w m + (1 - w) g - t|^2`` of a band is ``sum (m - g)(t - g) / sum |m - g|^2``, kept within [0, 1]. A band with few
    hidden tokens takes the share of all of them; with none at all it is a half.
    """
    from ..hidden import hide_in

    found = hide_in(job, HIDDEN, job.config.seed)
    totals = torch.zeros(BANDS, 3, dtype=torch.float64)
    if found is not None:
        quiet = dataclasses.replace(found.job, new=found.tokens)
        totals = _sums(quiet, regression(quiet))
    whole = totals.sum(dim=0)
    totals = torch.where(totals[:, 2:] >= FEW, totals, whole)
    return torch.where(totals[:, 1] > 0, totals[:, 0] / totals[:, 1], 0.5).clamp(0, 1)


def _sums(job: Job, blocks: Iterator[Block]) -> torch.Tensor:
    """[BANDS, 3]: sum of (m - g)(t - g), of |m - g|^2, and the count of tokens."""
    pieces, totals = Pieces(job), torch.zeros(BANDS, 3, dtype=torch.float64)
    for block in blocks:
        at = torch.from_numpy(pieces.spelled(block.ids.numpy()))
        if block.rows is None or not at.any():
            continue
        ids = block.ids[at].numpy()
        source = torch.from_numpy(job.alignment.source_id[ids].astype(np.int64))
        built = block.rows[at].double()
        apart = pieces.mean(ids, gather(job.source_rows, pieces.flat(ids))) - built
        true = gather(job.source_rows, source).double() - built
        found = torch.stack(
            [(apart * true).sum(dim=1), apart.square().sum(dim=1), torch.ones(len(ids)).double()], dim=1
        )
        band = torch.from_numpy(np.minimum(pieces.count(ids), BANDS)) - 1
        totals.index_add_(0, band, found)
    return totals
