"""One global map for every token, and a local regression of what the map misses around each."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch

from ...model.stored_rows import block_rows
from ...operators.nearest import EqualRows, largest
from ...operators.ops import Support, combine, sparsemax_support, support_lstsq
from ..assembly import SOLVED, Block
from ..job import Job, recipe_of, rows_at, side_blocks, split_by_plm_row, support_blocks
from .whole import RIDGE, AffineMap, block_of

NEAREST = 256  # anchors that the rule ``nearest`` takes


def local_map(job: Job) -> Iterator[Block]:
    """``g(e) + sum_k c_k (L_k - g(E_k))``: g the ridge map with intercept over all anchors, c a local ridge regression.

    c are the coefficients of ``e - m`` on its neighbours' ``E_k - m``, m the mean of all anchors' PLM rows, so that a strong
    ridge gives g alone and a weak one a map of its own for each token. The neighbours follow ``support_rule``; a token
    without any takes g(e). Rank, residual and status are those of the local regression.
    """
    config = job.config
    ids, without = split_by_plm_row(job)
    yield from without
    fitted = AffineMap.fit(job, RIDGE if config.map_ridge is None else config.map_ridge)
    plain = rows_at(job.plm_rows, job.anchors, job.device)
    missed = torch.cat([(side - fitted(rows)[0].to(job.device)).float() for rows, side in side_blocks(job)])
    mean = fitted.mean.float()
    centred, ridge = plain - mean, RIDGE if config.ridge is None else config.ridge
    supports, done = Neighbours(job, plain), 0
    for block in support_blocks(ids, supports.most, block_rows(job.width)):
        new = rows_at(job.plm_rows, block, job.device)
        support = supports(block, new)
        solution = support_lstsq(new - mean, centred, support, ridge=ridge, center=config.center)
        both = fitted(new)[0] + combine(support, solution.coefficients, missed).cpu()
        built = block_of(job, block, both, SOLVED)
        yield dataclasses.replace(
            built,
            support_size=support.offsets.diff().cpu().int(),
            rank=solution.rank.cpu(),
            residual=solution.residual.cpu(),
            status=solution.status.cpu() + 1,
            rule="map and anchors",
            recipe=recipe_of(job, support, solution.coefficients),
        )
        done += len(block)
        job.progress(done, len(ids))


class Neighbours:
    """The support of a token among the anchors, by the rule that the job's configuration names."""

    def __init__(self, job: Job, plain: torch.Tensor) -> None:
        """Prepares the anchors' side; ``plain`` [A, E] are their PLM rows."""
        self.job, self.rule = job, job.config.support_rule or "nearest"
        self.cap = job.config.max_support
        if self.rule == "nearest":
            self.cap = min(self.cap or NEAREST, len(plain))
        vectors = job.auxiliary.vectors if self.rule == "auxiliary" else None
        self.space = plain if vectors is None else rows_at(vectors, job.anchors, job.device)
        self.most = min(self.cap or len(plain), len(plain))
        if self.rule == "nearest":
            self.equal = EqualRows.of(plain)
            self.space = torch.nn.functional.normalize(self.space, dim=1)

    def __call__(self, ids: torch.Tensor, new: torch.Tensor) -> Support:
        """The supports of target ``ids`` [n] with the PLM rows ``new`` [n, E]."""
        if self.rule == "nearest":
            return nearest(torch.nn.functional.normalize(new, dim=1), self.space, self.most, self.equal)
        if self.rule == "auxiliary":
            known = self.job.auxiliary.known[ids].to(new.device)
            new = rows_at(self.job.auxiliary.vectors, ids, self.job.device) * known[:, None]
        return sparsemax_support(new, self.space, max_support=self.cap)


def nearest(new: torch.Tensor, anchors: torch.Tensor, count: int, equal: EqualRows) -> Support:
    """The ``count`` anchors with the largest product with each row, nearest first, equal ones by position; equal weights.

    Args:
        new: float32 [N, E], unit rows for cosines.
        anchors: float32 [A, E], likewise.
        count: in [1, A].
        equal: which anchors are equal; their products are.
    """
    parts = []
    for block in new.split(1024):
        parts.append(largest(equal.share_columns(block @ anchors.T), count)[1])
    ids = torch.cat(parts).int() if parts else torch.zeros(0, count, dtype=torch.int32, device=new.device)
    offsets = torch.arange(len(new) + 1, device=new.device) * count
    weights = torch.full((ids.numel(),), 1 / count, dtype=torch.float64, device=new.device)
    return Support(offsets=offsets, ids=ids.flatten(), weights=weights)
