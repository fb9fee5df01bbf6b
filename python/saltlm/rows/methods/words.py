"""Methods that compare tokens across languages: the neighbours of a token are source tokens, shared or not."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from ...model.stored_rows import gather
from ...operators.nearest import EqualRows, largest
from ..assembly import COMPOSED, NO_VECTOR, Block
from ..job import Job, not_built, rows_at, split_by_vector
from ..recipe import Recipe

NEIGHBOURS, TEMPERATURE = 10, 0.1
BLOCK_TOKENS = (
    256  # tokens in a block, whose cosines with all source tokens and neighbours' rows are in memory together
)


def wechsel(job: Job) -> Iterator[Block]:
    """WECHSEL: the 10 nearest source tokens' rows, weighted by the softmax of their cosines over 0.1 (Minixhofer et al. 2022).

    Shared rows stay copies; the authors' code composes them as well. OFA (Liu et al. 2024) uses the same rule with other
    vectors; its factorised matrix is left out, because no standard model has it.
    """
    ids, without_vector = split_by_vector(job)
    yield from without_vector
    usable = np.intersect1d(job.used, np.flatnonzero(job.source_has_vector.numpy()))
    candidates = torch.from_numpy(np.setdiff1d(usable, job.hidden))
    vectors = rows_at(job.source_vectors, candidates, job.device)
    equal, space = EqualRows.of(vectors), torch.nn.functional.normalize(vectors, dim=1)
    if not len(candidates):
        yield not_built(ids, NO_VECTOR)
        return
    done = 0
    for block in ids.split(BLOCK_TOKENS):
        new = torch.nn.functional.normalize(rows_at(job.vectors, block, job.device), dim=1)
        cosines, positions = nearest_source_tokens(new, space, equal)
        weight = (cosines.cpu() / TEMPERATURE).softmax(dim=1)[:, None]
        source = candidates[positions.cpu()]
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


def nearest_source_tokens(
    new: torch.Tensor, space: torch.Tensor, equal: EqualRows
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines, float64 [n, 10], and positions of the nearest rows; equal rows in the order of their positions.

    Tokens that are spelled alike have one vector, so that ties are common and the last bits of a product must not decide:
    twice as many candidates are compared again in float64, and equal vectors get the same cosine.

    Args:
        new: unit rows, float32 [n, P].
        space: unit rows, float32 [c, P].
        equal: the equal rows of ``space``.
    """
    positions = largest(equal.share_columns(new @ space.T), min(2 * NEIGHBOURS, len(space)))[1].sort(dim=1).values
    cosines = (space[positions].double() @ new.double()[:, :, None])[:, :, 0]
    first = equal.first[positions]
    cosines = cosines.gather(1, (first[:, :, None] == first[:, None, :]).int().argmax(dim=2))
    cosines, order = cosines.sort(dim=1, descending=True, stable=True)
    return cosines[:, :NEIGHBOURS], positions.gather(1, order[:, :NEIGHBOURS])
