"""Methods that look at a few anchors for each new token: a support rule and a coefficient rule."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch

from ...model.stored_rows import block_rows, gather
from ...operators.finite import finite_rows
from ...operators.nearest import EqualRows
from ...operators.ops import combine, salt_coefficients, support_chunks, support_lstsq
from ..assembly import COMPOSED, NO_PLM_ROW, NO_VECTOR, SOLVED, STATUSES, Block
from ..job import (
    NO_SUPPORT,
    Job,
    anchor_sides,
    have_row,
    left,
    recipe_of,
    rows_at,
    split_by_plm_row,
    split_by_vector,
    support_blocks,
)
from .coefficients import Part, parts
from .pursuit import gram_of, pursue

SOLVABLE = NO_SUPPORT - 1  # codes up to this are rows the solver stands by
NON_FINITE = STATUSES.index("non_finite")
PURSUED = 64  # anchors that tokensurgeon's pursuit takes


def salt(job: Job) -> Iterator[Block]:
    """SALT: a regression from PLM to LLM space on each token's sparsemax neighbours (section 3.2; METHOD: steps 3 and 4)."""
    auxiliary, plm = job.auxiliary, job.plm_rows
    known = auxiliary.known.numpy()[job.new]
    # A PLM row of zeros tells nothing of its token: its combination is a row of zeros, which is no start.
    reachable = known & have_row(plm, job.new)
    for outcome, ids in ((NO_VECTOR, job.new[~known]), (NO_PLM_ROW, job.new[known & ~reachable])):
        if len(ids):
            yield left(ids, outcome)
    ids = torch.from_numpy(job.new[reachable])
    config = job.config
    options = {"ridge": config.ridge, "center": config.center, "max_support": config.max_support}

    def solved() -> Iterator[Part]:
        anchors = rows_at(auxiliary.vectors, job.anchors, job.device), rows_at(plm, job.anchors, job.device)
        for block in support_blocks(ids):
            vectors, rows = rows_at(auxiliary.vectors, block, job.device), rows_at(plm, block, job.device)
            begin = 0
            for support, solution in salt_coefficients(vectors, anchors[0], rows, anchors[1], **options):
                end = begin + len(solution.rank)
                yield Part(ids=block[begin:end], support=support, **vars(solution))
                begin = end

    yield from _applied(job, parts(job, "salt", tuple(options.values()), solved), _stored_sides(job), len(ids))


def _stored_sides(job: Job) -> tuple[torch.Tensor, torch.Tensor | None]:
    """:func:`anchor_sides`, in bfloat16 where the model is: half the memory, and ``combine`` reads it as it is."""
    stored = [job.source_rows] + ([] if job.head.rows is None else [job.head.rows])
    if job.head.bias is not None or any(matrix.dtype != torch.bfloat16 for matrix in stored):
        return anchor_sides(job)
    source = torch.from_numpy(job.alignment.source_id[job.anchors].astype("int64"))
    sides = [gather(matrix, source).to(job.device) for matrix in stored]
    return sides[0], sides[1] if len(sides) > 1 else None


def focus(job: Job) -> Iterator[Block]:
    """FOCUS: the anchors' rows weighted by the sparsemax of their auxiliary cosines (Dobler & de Melo 2023, section 3)."""
    ids, without = split_by_vector(job)
    yield from without
    yield from _weighted(job, ids, job.auxiliary.vectors)


def clp_plus(job: Job) -> Iterator[Block]:
    """CLP+: the anchors' rows weighted by the sparsemax of their cosines in the PLM's own space (Yamaguchi et al. 2024)."""
    ids, without = split_by_plm_row(job)
    yield from without
    yield from _weighted(job, ids, job.plm_rows)


def _weighted(job: Job, ids: torch.Tensor, space: torch.Tensor) -> Iterator[Block]:
    """Rows ``sum_j w_j L_j`` with w the sparsemax weights over cosines in ``space`` [T or fewer, any]."""
    cap = job.config.max_support

    def found() -> Iterator[Part]:
        anchors = rows_at(space, job.anchors, job.device)
        for block in support_blocks(ids):
            begin = 0
            for support in support_chunks(rows_at(space, block, job.device), anchors, max_support=cap):
                end = begin + len(support.offsets) - 1
                yield Part(ids=block[begin:end], support=support, coefficients=support.weights)
                begin = end

    name = "sparsemax of PLM rows" if space is job.plm_rows else "sparsemax of vectors"
    yield from _applied(job, parts(job, name, (cap,), found), anchor_sides(job), len(ids))


def omp(job: Job) -> Iterator[Block]:
    """Orthogonal matching pursuit of the token's PLM row over the anchors' PLM rows (Goddard & Fernandes Neto 2025).

    The anchors are picked greedily by the largest absolute product with what is still unexplained, rows unscaled, at most
    ``max_support`` (64) of them; the least-squares coefficients on the picked ones are applied to the source's rows.
    """
    ids, without = split_by_plm_row(job)
    yield from without
    config = job.config
    most = min(config.max_support or PURSUED, len(job.anchors))

    def pursued() -> Iterator[Part]:
        anchors, done = rows_at(job.plm_rows, job.anchors, job.device), 0
        equal = EqualRows.of(anchors)
        gram = gram_of(anchors, most, equal) if len(ids) else None
        for block in support_blocks(ids):
            new = rows_at(job.plm_rows, block, job.device)
            picked = pursue(
                new,
                anchors,
                most,
                gram=gram,
                equal=equal,
                progress=lambda rows, done=done: job.progress(done + rows, len(ids)),
            )
            done += len(block)
            solution = support_lstsq(new, anchors, picked, ridge=config.ridge, center=config.center)
            yield Part(ids=block, support=picked, **vars(solution))

    yield from _applied(
        job, parts(job, "omp", (most, config.ridge, config.center), pursued), anchor_sides(job), len(ids)
    )


def _applied(
    job: Job, found: Iterator[Part], sides: tuple[torch.Tensor, torch.Tensor | None], total: int
) -> Iterator[Block]:
    """Blocks of the rows that coefficients give, and of the tokens that they give none."""
    done = 0
    most = block_rows(job.width)
    narrow = (piece for part in found for piece in part.split(most))  # kept parts may be those of a narrower model
    for part in narrow:
        rows, head = (None if side is None else combine(part.support, part.coefficients, side).cpu() for side in sides)
        size = part.support.offsets.diff().cpu().int()
        recipe = recipe_of(job, part.support, part.coefficients)
        done += len(part.ids)
        if part.status is None:
            good, status = size > 0, torch.full((len(size),), 0, dtype=torch.uint8)
            status[~good] = NO_SUPPORT
            solution = {"origin": COMPOSED}
        else:
            status = part.status.cpu() + 1
            status[~(finite_rows(rows) & (True if head is None else finite_rows(head)))] = NON_FINITE
            good = status <= SOLVABLE
            solution = {"origin": SOLVED, "rank": part.rank.cpu(), "residual": part.residual.cpu()}
        made = Block(part.ids, rows, head, support_size=size, status=status, rule="anchors", recipe=recipe, **solution)
        for kept in (True, False):
            at = good == kept
            if at.any():
                block = made.part(at)
                yield block if kept else dataclasses.replace(block, rows=None, head=None)
        job.progress(done, total)
