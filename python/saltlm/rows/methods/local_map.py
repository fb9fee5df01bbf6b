"""One map for all tokens, and for each token a regression of the map's residuals on its neighbours."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch

from ...model.stored_rows import block_rows
from ...operators.nearest import EqualRows, largest
from ...operators.ops import Support, combine, sparsemax_support, support_lstsq
from ..assembly import SOLVED, Block
from ..job import Job, anchor_blocks, recipe_of, rows_at, split_by_plm_row, support_blocks
from .whole import RIDGE, AffineMap, block_of

NEAREST = 256  # neighbours of a token by the rule ``nearest``, unless max_support sets another number


def local_map(job: Job) -> Iterator[Block]:
    """``g(e) + sum_k c_k (L_k - g(E_k))``: g the ridge map with intercept over all anchors, c a local ridge regression.

    c are the coefficients of ``e - m`` on its neighbours' ``E_k - m``, m the mean of all anchors' PLM rows. A strong ridge
    gives g alone, a weak one a separate map for each token. ``support_rule`` chooses the neighbours; a token without
    neighbours gets g(e). Rank, residual and status are those of the local regression.
    """
    config = job.config
    ids, without_row = split_by_plm_row(job)
    yield from without_row
    affine = AffineMap.fit(job, RIDGE if config.map_ridge is None else config.map_ridge)
    anchors = rows_at(job.plm_rows, job.anchors, job.device)
    residuals = torch.cat([(sides - affine(rows)[0].to(job.device)).float() for rows, sides in anchor_blocks(job)])
    mean = affine.mean.float()
    centred, ridge = anchors - mean, RIDGE if config.ridge is None else config.ridge
    neighbours, done = Neighbours(job, anchors), 0
    for block in support_blocks(ids, neighbours.max_size, block_rows(job.width)):
        new = rows_at(job.plm_rows, block, job.device)
        support = neighbours(block, new)
        solution = support_lstsq(new - mean, centred, support, ridge=ridge, center=config.center)
        rows = affine(new)[0] + combine(support, solution.coefficients, residuals).cpu()
        yield dataclasses.replace(
            block_of(job, block, rows, SOLVED),
            support_size=support.sizes.cpu().int(),
            rank=solution.rank.cpu(),
            residual=solution.residual.cpu(),
            status=solution.status.cpu() + 1,
            rule="map and anchors",
            recipe=recipe_of(job, support, solution.coefficients),
        )
        done += len(block)
        job.progress(done, len(ids))


class Neighbours:
    """Supports of tokens among the anchors, by the job's ``support_rule``."""

    def __init__(self, job: Job, anchors: torch.Tensor) -> None:
        """Prepare the anchors.

        Args:
            job: the method's input.
            anchors: float32 [A, E], their PLM rows.
        """
        self.job, self.rule, self.cap = job, job.config.support_rule or "nearest", job.config.max_support
        self.space = rows_at(job.vectors, job.anchors, job.device) if self.rule == "auxiliary" else anchors
        self.max_size = min(self.cap or (NEAREST if self.rule == "nearest" else len(anchors)), len(anchors))
        if self.rule == "nearest":
            self.equal = EqualRows.of(anchors)
            self.space = torch.nn.functional.normalize(anchors, dim=1)

    def __call__(self, ids: torch.Tensor, new: torch.Tensor) -> Support:
        """Supports of the target ``ids`` [n], whose PLM rows are ``new`` [n, E]."""
        if self.rule == "nearest":
            return nearest(torch.nn.functional.normalize(new, dim=1), self.space, self.max_size, self.equal)
        if self.rule == "auxiliary":
            known = self.job.has_vector[ids].to(new.device)
            new = rows_at(self.job.vectors, ids, self.job.device) * known[:, None]
        return sparsemax_support(new, self.space, max_support=self.cap)


def nearest(new: torch.Tensor, anchors: torch.Tensor, count: int, equal: EqualRows) -> Support:
    """Supports of the ``count`` anchors of largest cosine, nearest first, equal anchors by position; all weights equal.

    Args:
        new: unit rows, float32 [N, E].
        anchors: unit rows, float32 [A, E].
        count: in [1, A].
        equal: the equal anchors.
    """
    parts = [largest(equal.share_columns(block @ anchors.T), count)[1] for block in new.split(1024)]
    ids = torch.cat(parts).int() if parts else torch.zeros(0, count, dtype=torch.int32, device=new.device)
    offsets = torch.arange(len(new) + 1, device=new.device) * count
    weights = torch.full((ids.numel(),), 1 / count, dtype=torch.float64, device=new.device)
    return Support(offsets=offsets, ids=ids.flatten(), weights=weights)
