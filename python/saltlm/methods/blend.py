"""The average of a subword mean and a regression, which are wrong in different ways."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import torch

from ..assemble import BLOCK, COMPOSED, NO_PLM_ROW, SOLVED, Block
from .job import Job, left, rows_at, split_by_plm_row
from .pieces import Pieces
from .whole import AffineMap, block_of

RIDGE = 1.0


def blend(job: Job) -> Iterator[Block]:
    """``w m + (1 - w) g``: m the uniform mean of the source pieces, g the ridge map with intercept over all anchors.

    w is ``blend_weight``. A token with one of the two takes that one whole, so that no row shrinks; with neither it is left.
    """
    weight, pieces = job.config.blend_weight, Pieces(job)
    mapped = torch.from_numpy(np.isin(job.new, split_by_plm_row(job)[0].numpy()))
    fitted = AffineMap.fit(job, RIDGE if job.config.ridge is None else job.config.ridge)
    done = 0
    for block, has_map in zip(torch.from_numpy(job.new).split(BLOCK), mapped.split(BLOCK), strict=True):
        has_pieces = torch.from_numpy(pieces.spelled(block.numpy()))
        for with_map, with_pieces in ((True, True), (True, False), (False, True)):
            ids = block[(has_map == with_map) & (has_pieces == with_pieces)]
            if len(ids):
                yield _built(job, ids, fitted if with_map else None, pieces if with_pieces else None, weight)
        if not (has_map | has_pieces).all():
            yield left(block[~(has_map | has_pieces)], NO_PLM_ROW)
        done += len(block)
        job.progress(done, len(job.new))


def _built(job: Job, ids: torch.Tensor, fitted: AffineMap | None, pieces: Pieces | None, weight: float) -> Block:
    """Rows of tokens that all have the same of the two."""
    means = recipe = None
    if pieces is not None:
        flat = pieces.flat(ids.numpy())
        sides = (job.source_rows[flat], job.head.gather(flat))
        recipe = pieces.recipe(ids.numpy(), 1.0 if fitted is None else weight)
        means = torch.cat([pieces.mean(ids.numpy(), side) for side in sides if side is not None], dim=1)
    if fitted is None:
        count = torch.from_numpy(pieces.count(ids.numpy()).astype("int32"))
        block = block_of(job, ids, means, COMPOSED, rule="pieces")
        return dataclasses.replace(block, support_size=count, recipe=recipe)
    rows, residual = fitted(rows_at(job.plm_rows, ids, job.device))
    if means is not None:
        rows = weight * means + (1 - weight) * rows
    rule = "map" if means is None else "pieces and map"
    return dataclasses.replace(block_of(job, ids, rows, SOLVED, fitted, residual, rule), recipe=recipe)
