"""Greedy support: orthogonal matching pursuit of many rows at once."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ...operators.nearest import EqualRows
from ...operators.ops import Support, backend

# What is unexplained below this share of the row (float32 rounding of 64 steps) counts as explained.
EXPLAINED = 1e-6
# A pick this close to the span of the earlier ones adds nothing but rounding error.
DEPENDENT = 1e-5
# What the compiled pursuit takes, and the memory that the anchors' Gram matrix may: 16,384 anchors.
MOST_PICKS, GRAM_BYTES = 256, 1 << 30
CHUNK_VALUES = 1 << 22  # products of a chunk of rows with all anchors (16 MB): they stay in the last-level cache


def pursue(
    new: torch.Tensor,
    anchors: torch.Tensor,
    most: int,
    *,
    gram: torch.Tensor | None = None,
    equal: EqualRows | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Support:
    """Pick anchors for each row, one after the other: the one with the largest absolute product with the residual.

    The residual is what of the row lies outside the span of the anchors picked so far. A row stops early when nothing is
    left of it, or when the pick lies in that span already. Compiled, the products are kept up to date from the anchors' Gram
    matrix; products within float32 rounding of each other may be picked in either order. Of equal anchors the first is picked.

    Args:
        new: float32 or float64 [N, E].
        anchors: likewise [A, E].
        most: picks per row, in [1, A].
        gram: of :func:`gram_of` for the same anchors and ``most``, where they are used more than once.
        equal: which anchors are equal, likewise.
        progress: called with the rows done.

    Returns:
        The picks in order; the weights, which a pursuit has none of, are equal.
    """
    rows_each = max(1, min(1024, CHUNK_VALUES // max(1, len(anchors))))
    sizes, picks, done = [], [], 0
    if len(new):
        equal = EqualRows.of(anchors) if equal is None else equal
        gram = gram_of(anchors, most, equal) if gram is None else gram
    for block in new.split(rows_each) if len(new) else ():
        if gram is None:
            size, picked = _pursue(block, anchors, most, equal)
        else:
            size, picked = _pursue_by_gram(block, anchors, gram, most, equal)
        inside = torch.arange(most, device=new.device) < size[:, None]
        sizes.append(size)
        picks.append(picked[inside])
        done += len(block)
        progress(done)
    size = torch.cat(sizes) if sizes else torch.zeros(0, dtype=torch.int64, device=new.device)
    offsets = torch.cat([size.new_zeros(1), size.cumsum(0)])
    ids = torch.cat(picks) if picks else size
    weights = (1 / size.double()).repeat_interleave(size)
    return Support(offsets=offsets, ids=ids.int(), weights=weights)


def gram_of(anchors: torch.Tensor, most: int, equal: EqualRows) -> torch.Tensor | None:
    """The products [A, A] of the anchors for the compiled pursuit; ``None`` where it does not take the problem."""
    return equal.share_rows(equal.share_columns(anchors @ anchors.T)) if _by_gram(anchors, most) else None


def _by_gram(anchors: torch.Tensor, most: int) -> bool:
    """Whether the compiled pursuit takes this problem, and takes it faster than products do."""
    count, width = anchors.shape
    plain = anchors.dtype == torch.float32 and anchors.device.type == "cpu" and backend("cpu").name == "compiled"
    return plain and most <= MOST_PICKS and most < width and 4 * count * count <= GRAM_BYTES


def _pursue_by_gram(
    new: torch.Tensor, anchors: torch.Tensor, gram: torch.Tensor, most: int, equal: EqualRows
) -> tuple[torch.Tensor, torch.Tensor]:
    """As :func:`_pursue`; rows of which float32 sums cannot tell what is left are handed to that."""
    squares = new.double().square().sum(dim=1)
    picked, size = torch.ops.saltlm.pursue(equal.share_columns(new @ anchors.T), gram, squares, most)
    picked, size = picked.long(), size.long()
    careful = (size < 0).nonzero().squeeze(1)
    if len(careful):
        size[careful], picked[careful] = _pursue(new[careful], anchors, most, equal)
    return size, picked


def _pursue(new: torch.Tensor, anchors: torch.Tensor, most: int, equal: EqualRows) -> tuple[torch.Tensor, torch.Tensor]:
    # new [n, E] -> how many picks of each row count [n], the picks [n, most]
    rows, width = new.shape
    basis = new.new_zeros(rows, most, width)
    picked = torch.zeros(rows, most, dtype=torch.int64, device=new.device)
    size = torch.zeros(rows, dtype=torch.int64, device=new.device)
    residual, length = new.clone(), new.norm(dim=1)
    going = length > 0
    for step in range(most):
        scores = equal.share_columns(residual @ anchors.T).abs_()
        scores.scatter_(1, picked[:, :step], -1.0)
        pick = scores.argmax(dim=1)
        picked[:, step] = pick
        atom = anchors[pick]
        own = atom.norm(dim=1)
        earlier = basis[:, :step]
        for _ in range(2 if step else 0):  # twice is enough (Kahan): one pass leaves rounding errors of the first
            atom = atom - ((earlier @ atom[:, :, None]).transpose(1, 2) @ earlier)[:, 0]
        rest = atom.norm(dim=1)
        going &= rest > DEPENDENT * own
        direction = torch.where(going[:, None], atom / rest.clamp_min(torch.finfo(atom.dtype).tiny)[:, None], 0.0)
        basis[:, step] = direction
        residual = residual - (residual * direction).sum(dim=1, keepdim=True) * direction
        size += going
        going &= residual.norm(dim=1) > EXPLAINED * length
        if not going.any():
            break
    return size, picked
