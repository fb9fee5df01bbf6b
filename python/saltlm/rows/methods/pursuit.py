"""Supports picked greedily: orthogonal matching pursuit of many rows together."""

from __future__ import annotations

import torch

from ...operators.nearest import EqualRows
from ...operators.ops import Support, backend
from ...operators.ragged import offsets_of
from ...progress import Increment

# A residual below this share of the row's norm (float32 rounding of 64 steps) counts as zero.
EXPLAINED = 1e-6
# A picked row whose part outside the span of the earlier picks is below this share of its norm is in their span.
DEPENDENT = 1e-5
# Limits of the compiled pursuit: picks of a row, and memory of the anchors' Gram matrix (16,384 anchors).
MAX_PICKS, GRAM_BYTES = 256, 1 << 30
CHUNK_VALUES = (
    1 << 22
)  # products of a chunk of rows with all anchors (16 MB), so that they stay in the last-level cache


def pursue(
    new: torch.Tensor,
    anchors: torch.Tensor,
    max_picks: int,
    *,
    gram: torch.Tensor | None = None,
    equal: EqualRows | None = None,
    progress: Increment = lambda done: None,
) -> Support:
    """Pick anchors for each row, one after the other: the one with the largest absolute product with the residual.

    The residual is the part of the row outside the span of the anchors picked so far. A row has fewer picks if its residual
    becomes zero, or if the next pick is in that span already. The compiled pursuit updates the products from the anchors'
    Gram matrix; of two products that differ by float32 rounding it may pick either first. Of equal anchors the first is
    picked.

    Args:
        new: float32 or float64 [N, E].
        anchors: [A, E] of the same dtype.
        max_picks: of a row, in [1, A].
        gram: from :func:`gram_of` for the same anchors and ``max_picks``; pass it where they are used more than once.
        equal: the equal anchors; pass it where they are used more than once.
        progress: called with the number of rows done.

    Returns:
        The picks in their order, with equal weights (a pursuit gives none).
    """
    if not len(new):
        empty = torch.zeros(0, dtype=torch.int64, device=new.device)
        return Support(offsets=offsets_of(empty), ids=empty.int(), weights=empty.double())
    if equal is None:
        equal = EqualRows.of(anchors)
    if gram is None:
        gram = gram_of(anchors, max_picks, equal)
    sizes, picks, done = [], [], 0
    for block in new.split(max(1, min(1024, CHUNK_VALUES // max(1, len(anchors))))):
        if gram is None:
            size, picked = pursue_by_products(block, anchors, max_picks, equal)
        else:
            size, picked = _pursue_by_gram(block, anchors, gram, max_picks, equal)
        inside = torch.arange(max_picks, device=new.device) < size[:, None]
        sizes.append(size)
        picks.append(picked[inside])
        done += len(block)
        progress(done)
    size = torch.cat(sizes)
    weights = (1 / size.double()).repeat_interleave(size)
    return Support(offsets=offsets_of(size), ids=torch.cat(picks).int(), weights=weights)


def gram_of(anchors: torch.Tensor, max_picks: int, equal: EqualRows) -> torch.Tensor | None:
    """Products [A, A] of the anchors for the compiled pursuit; ``None`` where that does not run or is not faster."""
    if not uses_gram(anchors, max_picks):
        return None
    return equal.share_rows(equal.share_columns(anchors @ anchors.T))


def uses_gram(anchors: torch.Tensor, max_picks: int) -> bool:
    """Whether the compiled pursuit accepts the anchors and is faster than matrix products."""
    count, width = anchors.shape
    accepted = anchors.dtype == torch.float32 and anchors.device.type == "cpu" and backend("cpu").name == "compiled"
    return accepted and max_picks <= MAX_PICKS and max_picks < width and 4 * count * count <= GRAM_BYTES


def _pursue_by_gram(
    new: torch.Tensor, anchors: torch.Tensor, gram: torch.Tensor, max_picks: int, equal: EqualRows
) -> tuple[torch.Tensor, torch.Tensor]:
    """The compiled pursuit; rows whose residual is too small for float32 sums go to :func:`pursue_by_products`."""
    squares = new.double().square().sum(dim=1)
    picked, size = torch.ops.saltlm.pursue(equal.share_columns(new @ anchors.T), gram, squares, max_picks)
    picked, size = picked.long(), size.long()
    inexact = (size < 0).nonzero().squeeze(1)
    if len(inexact):
        size[inexact], picked[inexact] = pursue_by_products(new[inexact], anchors, max_picks, equal)
    return size, picked


def pursue_by_products(
    new: torch.Tensor, anchors: torch.Tensor, max_picks: int, equal: EqualRows
) -> tuple[torch.Tensor, torch.Tensor]:
    """The pursuit by products of the residuals with all anchors, in the dtype of the rows.

    Args:
        new: reals [n, E].
        anchors: reals [A, E].
        max_picks: of a row, in [1, A].
        equal: the equal anchors.

    Returns:
        int64 [n], the number of valid picks of each row, and int64 [n, max_picks], the picks.
    """
    rows, width = new.shape
    basis = new.new_zeros(rows, max_picks, width)
    picked = torch.zeros(rows, max_picks, dtype=torch.int64, device=new.device)
    size = torch.zeros(rows, dtype=torch.int64, device=new.device)
    residual, length = new.clone(), new.norm(dim=1)
    active = length > 0
    for step in range(max_picks):
        scores = equal.share_columns(residual @ anchors.T).abs_()
        scores.scatter_(1, picked[:, :step], -1.0)
        pick = scores.argmax(dim=1)
        picked[:, step] = pick
        atom = anchors[pick]
        atom_length = atom.norm(dim=1)
        earlier = basis[:, :step]
        for _ in range(
            2 if step else 0
        ):  # twice is enough (Kahan): the second pass removes the rounding errors of the first
            atom = atom - ((earlier @ atom[:, :, None]).transpose(1, 2) @ earlier)[:, 0]
        outside = atom.norm(dim=1)
        active &= outside > DEPENDENT * atom_length
        direction = torch.where(active[:, None], atom / outside.clamp_min(torch.finfo(atom.dtype).tiny)[:, None], 0.0)
        basis[:, step] = direction
        residual = residual - (residual * direction).sum(dim=1, keepdim=True) * direction
        size += active
        active &= residual.norm(dim=1) > EXPLAINED * length
        if not active.any():
            break
    return size, picked
