"""Methods that look at a few anchors for each new token: a support rule and a coefficient rule."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ..assemble import BLOCK, COMPOSED, NO_PLM_ROW, NO_VECTOR, SOLVED, Block, block_rows, gather
from ..ops import STATUSES, Solution, Support, combine, salt_rows, sparsemax_support, support_lstsq
from ..recipe import Recipe
from .job import (
    NO_SUPPORT,
    Job,
    anchor_sides,
    chunk_rows,
    have_row,
    left,
    recipe_of,
    rows_at,
    split_by_plm_row,
    split_by_vector,
)
from .pursuit import pursue

SOLVABLE = len(STATUSES[: STATUSES.index("no_support")])  # codes below this are rows the solver stands by
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
    anchor_lm, anchor_head = _stored_sides(job)
    anchor_plm = rows_at(plm, job.anchors, job.device)
    anchor_auxiliary = rows_at(auxiliary.vectors, job.anchors, job.device)
    ids = torch.from_numpy(job.new[reachable])
    done = 0
    for block in ids.split(block_rows(job.source_rows.shape[1])):
        start, recipes = done, []
        built = salt_rows(
            auxiliary.vectors[block].to(job.device),
            anchor_auxiliary,
            plm[block].to(job.device, torch.float32),
            anchor_plm,
            anchor_lm,
            anchor_output=anchor_head,
            ridge=job.config.ridge,
            center=job.config.center,
            max_support=job.config.max_support,
            progress=lambda rows, _, start=start: job.progress(start + rows, len(ids)),
            coefficients=lambda support, weights, to=recipes: to.append(recipe_of(job, support, weights)),
        )
        recipe = Recipe.joined(recipes)
        done += len(block)
        status = built.status.cpu()
        for solved in (True, False):
            at = (status < SOLVABLE) == solved
            if at.any():
                yield Block(
                    ids=block[at],
                    rows=built.rows.cpu()[at] if solved else None,
                    head=built.output_rows.cpu()[at] if solved and built.output_rows is not None else None,
                    origin=SOLVED,
                    support_size=built.support_size.cpu()[at],
                    rank=built.rank.cpu()[at],
                    residual=built.residual.cpu()[at],
                    status=status[at] + 1,
                    rule="anchors",
                    recipe=recipe.pick(at),
                )


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
    anchors, cap = rows_at(space, job.anchors, job.device), job.config.max_support
    sides, done = anchor_sides(job), 0
    for block in ids.split(chunk_rows(min(cap or len(anchors), len(anchors)))):
        support = sparsemax_support(rows_at(space, block, job.device), anchors, max_support=cap)
        size = support.offsets.diff().cpu()
        rows, head = (None if side is None else combine(support, support.weights, side).cpu() for side in sides)
        found = size > 0
        if not found.all():
            yield left(block[~found], NO_SUPPORT)
        yield Block(
            ids=block[found],
            rows=rows[found],
            head=None if head is None else head[found],
            origin=COMPOSED,
            support_size=size[found].int(),
            rule="anchors",
            recipe=recipe_of(job, support, support.weights).pick(found),
        )
        done += len(block)
        job.progress(done, len(ids))


def omp(job: Job) -> Iterator[Block]:
    """Orthogonal matching pursuit of the token's PLM row over the anchors' PLM rows (Goddard & Fernandes Neto 2025).

    The anchors are picked greedily by the largest absolute product with what is still unexplained, rows unscaled, at most
    ``max_support`` (64) of them; the least-squares coefficients on the picked ones are applied to the source's rows.
    """
    ids, without = split_by_plm_row(job)
    yield from without
    anchors = rows_at(job.plm_rows, job.anchors, job.device)
    sides, done = anchor_sides(job), 0
    most = min(job.config.max_support or PURSUED, len(anchors))
    for block in ids.split(BLOCK):
        new = rows_at(job.plm_rows, block, job.device)
        picked = pursue(new, anchors, most, progress=lambda rows, done=done: job.progress(done + rows, len(ids)))
        done += len(block)
        solution = support_lstsq(new, anchors, picked, ridge=job.config.ridge, center=job.config.center)
        yield from _solved(job, block, picked, solution, sides)


def _solved(
    job: Job, block: torch.Tensor, support: Support, solution: Solution,
    sides: tuple[torch.Tensor, torch.Tensor | None],
) -> Iterator[Block]:  # fmt: skip
    """Blocks of the rows that a solution gives, and of those it does not."""
    rows, head = (None if side is None else combine(support, solution.coefficients, side).cpu() for side in sides)
    status, size = solution.status.cpu(), support.offsets.diff().cpu().int()
    recipe = recipe_of(job, support, solution.coefficients)
    for solved in (True, False):
        at = (status < SOLVABLE) == solved
        if at.any():
            yield Block(
                ids=block[at],
                rows=rows[at] if solved else None,
                head=head[at] if solved and head is not None else None,
                origin=SOLVED,
                support_size=size[at],
                rank=solution.rank.cpu()[at],
                residual=solution.residual.cpu()[at],
                status=status[at] + 1,
                rule="anchors",
                recipe=recipe.pick(at),
            )
