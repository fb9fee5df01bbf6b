"""Greedy support: orthogonal matching pursuit of many rows at once."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..ops import Support

# What is unexplained below this share of the row (float32 rounding of 64 steps) counts as explained.
EXPLAINED = 1e-6
# A pick this close to the span of the earlier ones adds nothing but rounding error.
DEPENDENT = 1e-5
CHUNK_VALUES = 1 << 22  # products of a chunk of rows with all anchors (16 MB): they stay in the last-level cache


def pursue(
    new: torch.Tensor, anchors: torch.Tensor, most: int, *, progress: Callable[[int], None] = lambda done: None
) -> Support:
    """Pick anchors for each row, one after the other: the one with the largest absolute product with the residual.

    The residual is what of the row lies outside the span of the anchors picked so far. A row stops early when nothing is
    left of it, or when the pick lies in that span already.

    Args:
        new: float32 or float64 [N, E].
        anchors: likewise [A, E].
        most: picks per row, in [1, A].
        progress: called with the rows done.

    Returns:
        The picks in order; the weights, which a pursuit has none of, are equal.
    """
    rows_each = max(1, min(1024, CHUNK_VALUES // max(1, len(anchors))))
    sizes, picks, done = [], [], 0
    for block in new.split(rows_each) if len(new) else ():
        size, picked = _pursue(block, anchors, most)
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


def _pursue(new: torch.Tensor, anchors: torch.Tensor, most: int) -> tuple[torch.Tensor, torch.Tensor]:
    # new [n, E] -> how many picks of each row count [n], the picks [n, most]
    rows, width = new.shape
    basis = new.new_zeros(rows, most, width)
    picked = torch.zeros(rows, most, dtype=torch.int64, device=new.device)
    size = torch.zeros(rows, dtype=torch.int64, device=new.device)
    residual, length = new.clone(), new.norm(dim=1)
    going = length > 0
    for step in range(most):
        scores = (residual @ anchors.T).abs_()
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
