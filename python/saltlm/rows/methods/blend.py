"""The average of a subword mean and a regression, which are wrong in different ways."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator

import torch

from ...config import RegressionName, TransferConfig
from ...model.stored_rows import gather
from ...operators.finite import finite_rows
from ..assembly import COMPOSED, SOLVED, Block
from ..job import Job, row_blocks
from . import local, local_map, whole
from .blend_weight import weigher
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
DEFAULT: RegressionName = "ridge-map"
# What holds where the user chooses nothing. The default's are near the best for each of six languages before any training
# (bench/LOG.md, "weight and length of a blend").
UNSET: dict[str, dict[str, float]] = {
    "blend": {"blend_weight": 0.5, "blend_length": 1.0},
    "auto": {"blend_weight": 0.35, "blend_length": 1.4},
}
BESIDE = {
    "map": "pieces and map", "anchors": "pieces and anchors", "all anchors": "pieces and all anchors",
    "map and anchors": "pieces, map and anchors", "none": "none",
}  # fmt: skip


def blend(job: Job) -> Iterator[Block]:
    """``y + l (w (m - y) + (1 - w) (g - y))``: m the uniform mean of the source pieces, g the row of ``blend_with``.

    w is ``blend_weight``, or given by that rule for each token; l is ``blend_length``, and y the mean of the anchors' rows,
    from which the row moves l times as far as the plain average. A token with one of the two takes that one as it is, as does
    one whose g is not finite; with neither it is left.
    """
    job = dataclasses.replace(job, config=as_blend(job.config))
    regression, pieces = REGRESSIONS[job.config.blend_with or DEFAULT], Pieces(job)
    weight, middle = weigher(job, regression), mean_rows(job)
    for block in regression(job):
        spelled = torch.from_numpy(pieces.spelled(block.ids.numpy()))
        usable = torch.zeros_like(spelled) if block.rows is None else finite_rows(block.rows)
        if block.head is not None:
            usable &= finite_rows(block.head)
        for with_pieces, with_rows in itertools.product((True, False), repeat=2):
            part = block.part((spelled == with_pieces) & (usable == with_rows))
            if with_pieces and not with_rows:
                part = dataclasses.replace(part, rows=None, head=None)
            if len(part.ids):
                yield _mixed(job, part, pieces, weight, middle) if with_pieces else part


def as_blend(config: TransferConfig) -> TransferConfig:
    """The blend that a configuration of ``blend`` or ``auto`` is, what the user has left open filled in."""
    open_ = {name: value for name, value in UNSET[config.method].items() if getattr(config, name) is None}
    return dataclasses.replace(config, method="blend", **open_)


def mean_rows(job: Job) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Float64 [D] and [D']: means of the anchors' rows, and of their output rows where the head has its own."""
    ids = torch.from_numpy(job.alignment.source_id[job.anchors].astype("int64"))
    rows, heads = 0, None
    for part in row_blocks(job, ids):
        rows = rows + gather(job.source_rows, part).double().sum(dim=0)
        head = job.head.gather(part)
        if head is not None:
            heads = head.double().sum(dim=0) + (0 if heads is None else heads)
    return rows / len(ids), None if heads is None else heads / len(ids)


def _mixed(
    job: Job, block: Block, pieces: Pieces, weight: Callable[[Block], torch.Tensor],
    middle: tuple[torch.Tensor, torch.Tensor | None],
) -> Block:  # fmt: skip
    """The block with the means of its tokens' pieces in it; where it has no rows, the means alone."""
    ids = block.ids.numpy()
    means, head = piece_means(job, pieces, ids)
    if block.rows is None:
        count = torch.from_numpy(pieces.count(ids).astype("int32"))
        head = None if head is None else head.float()
        alone = {"origin": COMPOSED, "rule": "pieces", "recipe": pieces.recipe(ids)}
        return Block(block.ids, means.float(), head, support_size=count, **alone)
    share = weight(block).cpu().double()
    length = job.config.blend_length
    # What neither side has, (1 - l) y, is the same for every row, and in no recipe.
    recipe = pieces.recipe(ids, length * share)
    if block.recipe is not None:
        recipe = recipe.beside(block.recipe, length * (1 - share))
    share = share[:, None]
    rows = _lengthened(share * means + (1 - share) * block.rows.double(), middle[0], length)
    if head is not None:
        head = _lengthened(share * head + (1 - share) * block.head.double(), middle[1], length).float()
    return dataclasses.replace(
        block, rows=rows.float(), head=head, origin=SOLVED, rule=BESIDE[block.rule], recipe=recipe
    )


def _lengthened(rows: torch.Tensor, middle: torch.Tensor, length: float) -> torch.Tensor:
    """Rows ``length`` times as far from the middle."""
    return rows if length == 1 else middle + length * (rows - middle)


def piece_means(job: Job, pieces: Pieces, ids: object) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Float64 [n, D] and [n, D']: mean input and output rows of the pieces of target ``ids``, all of which have some."""
    flat = pieces.flat(ids)
    head = job.head.gather(flat)
    return pieces.mean(ids, gather(job.source_rows, flat)), None if head is None else pieces.mean(ids, head)
