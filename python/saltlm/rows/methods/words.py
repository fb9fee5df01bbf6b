"""Methods that compare tokens across languages: the neighbours are source tokens, shared or not."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from ...model.stored_rows import gather
from ...operators.nearest import EqualRows, largest
from ..assembly import COMPOSED, NO_VECTOR, Block
from ..job import Job, left, rows_at, split_by_vector
from ..recipe import Recipe

NEIGHBOURS, TEMPERATURE = 10, 0.1
ROWS = 256  # tokens at once: their neighbours' rows are gathered, and their cosines with all source tokens held


def wechsel(job: Job) -> Iterator[Block]:
    """WECHSEL: the 10 nearest source tokens' rows, weighted by the softmax of their cosines over 0.1 (Minixhofer et al. 2022).

    Shared rows stay copies, where WECHSEL's own code composes them too. OFA (Liu et al. 2024) has the same rule over vectors
    made otherwise; its factorised matrix, which no standard model has a place for, is left out.
    """
    ids, without = split_by_vector(job)
    yield from without
    usable = np.intersect1d(job.used, np.flatnonzero(job.source_auxiliary.known.numpy()))
    candidates = torch.from_numpy(np.setdiff1d(usable, job.hidden))
    vectors = rows_at(job.source_auxiliary.vectors, candidates, job.device)
    equal, space = EqualRows.of(vectors), torch.nn.functional.normalize(vectors, dim=1)
    if not len(candidates):
        yield left(ids, NO_VECTOR)
        return
    done = 0
    for block in ids.split(ROWS):
        new = torch.nn.functional.normalize(rows_at(job.auxiliary.vectors, block, job.device), dim=1)
        near, at = _nearest(new, space, equal)
        weight = (near.cpu() / TEMPERATURE).softmax(dim=1)[:, None]
        source = candidates[at.cpu()]
        head = job.head.gather(source.flatten())
        yield Block(
            ids=block,
            rows=(weight @ gather(job.source_rows, source.flatten()).view(*source.shape, -1).double())[:, 0].float(),
            head=None if head is None else (weight @ head.view(*source.shape, -1).double())[:, 0].float(),
            origin=COMPOSED,
            support_size=torch.full((len(block),), source.shape[1], dtype=torch.int32),
            rule="source tokens",
            recipe=Recipe.of(torch.arange(len(block) + 1) * source.shape[1], source.flatten(), weight.flatten()),
        )
        done += len(block)
        job.progress(done, len(ids))


def _nearest(new: torch.Tensor, space: torch.Tensor, equal: EqualRows) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines, float64 [n, 10], and positions of the nearest rows; of equal ones the smaller position comes first.

    Tokens that are spelled alike share a vector, so ties are common and the last bits of a product must not decide: twice as
    many candidates are compared again in float64, and equal vectors share one cosine.
    """
    at = largest(equal.share_columns(new @ space.T), min(2 * NEIGHBOURS, len(space)))[1].sort(dim=1).values
    exact = (space[at].double() @ new.double()[:, :, None])[:, :, 0]
    first = equal.first[at]
    exact = exact.gather(1, (first[:, :, None] == first[:, None, :]).int().argmax(dim=2))
    near, order = exact.sort(dim=1, descending=True, stable=True)
    return near[:, :NEIGHBOURS], at.gather(1, order[:, :NEIGHBOURS])
