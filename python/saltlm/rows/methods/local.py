"""Methods that build each token from a few anchors: a rule for the support and one for the coefficients."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch

from ...model.stored_rows import block_rows, gather
from ...operators.checks import finite_rows
from ...operators.nearest import EqualRows
from ...operators.ops import combine, salt_coefficients, support_chunks, support_lstsq
from ..assembly import COMPOSED, NO_PLM_ROW, NO_VECTOR, SOLVED, STATUSES, Block
from ..job import (
    NO_SUPPORT,
    Job,
    anchor_sides,
    has_row,
    not_built,
    recipe_of,
    rows_at,
    split_by_plm_row,
    split_by_vector,
    support_blocks,
)
from .coefficients import TokenCoefficients, cached
from .pursuit import gram_of, pursue

MAX_SOLVED = NO_SUPPORT - 1  # the largest status code of a row that the solver solved
NON_FINITE = STATUSES.index("non_finite")
PICKS = 64  # default number of anchors of a pursuit, that of tokensurgeon

Sides = tuple[torch.Tensor, torch.Tensor | None]  # input and output rows of the anchors


def salt(job: Job) -> Iterator[Block]:
    """SALT: least squares from the PLM's to the LLM's space on each token's sparsemax neighbours (section 3.2 of the paper)."""
    known = job.has_vector.numpy()[job.new]
    # The least-squares combination of a PLM row of zeros would be a row of zeros.
    reachable = known & has_row(job.plm_rows, job.new)
    for status, tokens in ((NO_VECTOR, job.new[~known]), (NO_PLM_ROW, job.new[known & ~reachable])):
        if len(tokens):
            yield not_built(tokens, status)
    ids, config = torch.from_numpy(job.new[reachable]), job.config

    def solved() -> Iterator[TokenCoefficients]:
        anchor_vectors = rows_at(job.vectors, job.anchors, job.device)
        anchor_plm = rows_at(job.plm_rows, job.anchors, job.device)
        for block in support_blocks(ids):
            chunks = salt_coefficients(
                rows_at(job.vectors, block, job.device),
                anchor_vectors,
                rows_at(job.plm_rows, block, job.device),
                anchor_plm,
                ridge=config.ridge,
                center=config.center,
                max_support=config.max_support,
            )
            begin = 0
            for support, solution in chunks:
                end = begin + len(support)
                yield TokenCoefficients(ids=block[begin:end], support=support, solution=solution)
                begin = end

    coefficients = cached(job, "salt", (config.ridge, config.center, config.max_support), solved)
    yield from _built(job, coefficients, _stored_sides(job), len(ids))


def _stored_sides(job: Job) -> Sides:
    """The rows of :func:`anchor_sides`, in bfloat16 if the model's are: half the memory, and ``combine`` reads bfloat16."""
    stored = [job.source_rows] + ([] if job.head.rows is None else [job.head.rows])
    if job.head.bias is not None or any(matrix.dtype != torch.bfloat16 for matrix in stored):
        return anchor_sides(job)
    source = job.source_ids(job.anchors)
    sides = [gather(matrix, source).to(job.device) for matrix in stored]
    return sides[0], sides[1] if len(sides) > 1 else None


def focus(job: Job) -> Iterator[Block]:
    """FOCUS: the anchors' rows weighted by the sparsemax of their auxiliary cosines (Dobler & de Melo 2023, section 3)."""
    ids, without_vector = split_by_vector(job)
    yield from without_vector
    yield from _weighted(job, ids, job.vectors, "sparsemax of vectors")


def clp_plus(job: Job) -> Iterator[Block]:
    """CLP+: the anchors' rows weighted by the sparsemax of their cosines in the PLM's space (Yamaguchi et al. 2024)."""
    ids, without_row = split_by_plm_row(job)
    yield from without_row
    yield from _weighted(job, ids, job.plm_rows, "sparsemax of PLM rows")


def _weighted(job: Job, ids: torch.Tensor, space: torch.Tensor, rule: str) -> Iterator[Block]:
    """Rows ``sum_j w_j L_j`` with w the sparsemax weights over cosines in ``space`` [T or fewer, any width]."""
    cap = job.config.max_support

    def weighted() -> Iterator[TokenCoefficients]:
        anchors = rows_at(space, job.anchors, job.device)
        for block in support_blocks(ids):
            begin = 0
            for support in support_chunks(rows_at(space, block, job.device), anchors, max_support=cap):
                end = begin + len(support)
                yield TokenCoefficients(ids=block[begin:end], support=support)
                begin = end

    yield from _built(job, cached(job, rule, (cap,), weighted), anchor_sides(job), len(ids))


def omp(job: Job) -> Iterator[Block]:
    """Orthogonal matching pursuit of the token's PLM row over the anchors' PLM rows (Goddard & Fernandes Neto 2025).

    Up to ``max_support`` (default 64) anchors are picked greedily, each time the one of largest absolute product with the
    residual of the row; rows are not scaled. The least-squares coefficients on the picked anchors are applied to the source's
    rows.
    """
    ids, without_row = split_by_plm_row(job)
    yield from without_row
    config = job.config
    max_picks = min(config.max_support or PICKS, len(job.anchors))

    def pursued() -> Iterator[TokenCoefficients]:
        anchors, done = rows_at(job.plm_rows, job.anchors, job.device), 0
        equal = EqualRows.of(anchors)
        gram = gram_of(anchors, max_picks, equal) if len(ids) else None

        def report(rows: int) -> None:
            job.progress(done + rows, len(ids))

        for block in support_blocks(ids):
            new = rows_at(job.plm_rows, block, job.device)
            support = pursue(new, anchors, max_picks, gram=gram, equal=equal, progress=report)
            done += len(block)
            solution = support_lstsq(new, anchors, support, ridge=config.ridge, center=config.center)
            yield TokenCoefficients(ids=block, support=support, solution=solution)

    coefficients = cached(job, "omp", (max_picks, config.ridge, config.center), pursued)
    yield from _built(job, coefficients, anchor_sides(job), len(ids))


def _built(job: Job, coefficients: Iterator[TokenCoefficients], sides: Sides, total: int) -> Iterator[Block]:
    """Blocks of the rows that the coefficients give, and blocks without rows for the tokens that cannot be built."""
    done, max_rows = 0, block_rows(job.width)
    # Kept coefficients may come in larger parts, those of a model with shorter rows.
    for part in (piece for whole in coefficients for piece in whole.split(max_rows)):
        anchor_rows, anchor_head = sides
        rows = combine(part.support, part.values, anchor_rows).cpu()
        head = None if anchor_head is None else combine(part.support, part.values, anchor_head).cpu()
        size = part.support.sizes.cpu().int()
        rank = residual = None
        if part.solution is None:
            usable, status = size > 0, torch.zeros(len(size), dtype=torch.uint8)
            status[~usable] = NO_SUPPORT
        else:
            status = part.solution.status.cpu() + 1
            finite = finite_rows(rows) if head is None else finite_rows(rows) & finite_rows(head)
            status[~finite] = NON_FINITE
            usable = status <= MAX_SOLVED
            rank, residual = part.solution.rank.cpu(), part.solution.residual.cpu()
        built = Block(
            part.ids,
            rows,
            head,
            origin=COMPOSED if part.solution is None else SOLVED,
            support_size=size,
            rank=rank,
            residual=residual,
            status=status,
            rule="anchors",
            recipe=recipe_of(job, part.support, part.values),
        )
        done += len(part.ids)
        if usable.any():
            yield built.part(usable)
        if not usable.all():
            yield dataclasses.replace(built.part(~usable), rows=None, head=None)
        job.progress(done, total)
