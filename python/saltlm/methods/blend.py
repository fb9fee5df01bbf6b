"""The average of a subword mean and a regression, which are wrong in different ways."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import torch

from ..assemble import COMPOSED, SOLVED, Block
from . import local, local_map, whole
from .blend_weight import weigher
from .job import Job
from .pieces import Pieces

REGRESSIONS: dict[str, Callable[[Job], Iterator[Block]]] = {
    "ridge-map": whole.ridge_map,
    "local-map": local_map.local_map,
    "salt": local.salt,
    "focus": local.focus,
    "clp": whole.clp,
    "clp-plus": local.clp_plus,
    "omp": local.omp,
    "sava-affine": whole.sava_affine,
    "sava-orthogonal": whole.sava_orthogonal,
}
DEFAULT = "ridge-map"
BESIDE = {
    "map": "pieces and map", "anchors": "pieces and anchors", "all anchors": "pieces and all anchors",
    "map and anchors": "pieces, map and anchors", "none": "none",
}  # fmt: skip


def blend(job: Job) -> Iterator[Block]:
    """``w m + (1 - w) g``: m the uniform mean of the source pieces, g the row of the method ``blend_with``.

    w is ``blend_weight``, or given by that rule for each token. A token with one of the two takes that one whole, so that no
    row shrinks; with neither it is left.
    """
    regression, pieces = REGRESSIONS[job.config.blend_with or DEFAULT], Pieces(job)
    weight = weigher(job, regression)
    for block in regression(job):
        spelled = torch.from_numpy(pieces.spelled(block.ids.numpy()))
        for with_pieces in (True, False):
            part = block.part(spelled == with_pieces)
            if len(part.ids):
                yield _mixed(job, part, pieces, weight) if with_pieces else part


def _mixed(job: Job, block: Block, pieces: Pieces, weight: Callable[[Block], torch.Tensor]) -> Block:
    """The block with the means of its tokens' pieces in it; where it has no rows, the means alone."""
    ids = block.ids.numpy()
    means, head = piece_means(job, pieces, ids)
    if block.rows is None:
        count = torch.from_numpy(pieces.count(ids).astype("int32"))
        head = None if head is None else head.float()
        alone = {"origin": COMPOSED, "rule": "pieces", "recipe": pieces.recipe(ids)}
        return Block(block.ids, means.float(), head, support_size=count, **alone)
    share = weight(block).cpu().double()
    recipe = pieces.recipe(ids, share)
    if block.recipe is not None:
        recipe = recipe.beside(block.recipe, 1 - share)
    share = share[:, None]
    rows = share * means + (1 - share) * block.rows.double()
    if head is not None:
        head = (share * head + (1 - share) * block.head.double()).float()
    return dataclasses.replace(
        block, rows=rows.float(), head=head, origin=SOLVED, rule=BESIDE[block.rule], recipe=recipe
    )


def piece_means(job: Job, pieces: Pieces, ids: object) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Float64 [n, D] and [n, D']: mean input and output rows of the pieces of target ``ids``, all of which have some."""
    flat = pieces.flat(ids)
    head = job.head.gather(flat)
    return pieces.mean(ids, job.source_rows[flat]), None if head is None else pieces.mean(ids, head)
