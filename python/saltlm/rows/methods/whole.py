"""Methods that learn from all anchors at once: one rule, or one map, for every token."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch

from ...model.stored_rows import block_rows
from ..assembly import COMPOSED, SOLVED, STATUSES, Block
from ..job import Job, anchor_sides, row_blocks, rows_at, side_blocks, split_by_plm_row

FULL_RANK, RANK_DEFICIENT = STATUSES.index("full_rank"), STATUSES.index("rank_deficient")

RIDGE = 1.0  # of a ridge map that is not told any


def clp(job: Job) -> Iterator[Block]:
    """CLP: the mean of all anchors' rows, weighted by their cosines in the PLM's space (Ostendorff & Rehm 2023).

    ``sum_j cos_j L_j / sum_j cos_j``. Weights may be negative; where their sum nears zero the row grows beyond all bounds,
    which the norms in the summary show. With unit rows u both sums are linear in the token's row, so the cosines are never
    made: ``u (U^T L) / (u (U^T 1))``.
    """
    ids, without = split_by_plm_row(job)
    yield from without
    total = torch.zeros(job.plm_rows.shape[1], job.width + 1, dtype=torch.float64, device=job.device)
    for plm, side in side_blocks(job):
        weighed = torch.cat([side, torch.ones(len(side), 1, dtype=torch.float64, device=job.device)], dim=1)
        total.addmm_(_unit(plm).T, weighed)
    done = 0
    for block in row_blocks(job, ids):
        sums = _unit(rows_at(job.plm_rows, block, job.device)) @ total
        yield block_of(job, block, (sums[:, :-1] / sums[:, -1:]).cpu(), COMPOSED, rule="all anchors")
        done += len(block)
        job.progress(done, len(ids))


def sava_affine(job: Job) -> Iterator[Block]:
    """SAVA, affine: one least-squares map with intercept from PLM rows to source rows (Moroni et al. 2025), or a ridge's."""
    yield from _mapped(job, job.config.ridge or 0.0)


def ridge_map(job: Job) -> Iterator[Block]:
    """The same map with a ridge of 1 unless another is asked for."""
    yield from _mapped(job, RIDGE if job.config.ridge is None else job.config.ridge)


def _mapped(job: Job, ridge: float) -> Iterator[Block]:
    ids, without = split_by_plm_row(job)
    yield from without
    fitted = AffineMap.fit(job, ridge)
    done = 0
    for block in row_blocks(job, ids):
        rows, residual = fitted(rows_at(job.plm_rows, block, job.device))
        yield block_of(job, block, rows, SOLVED, fitted, residual)
        done += len(block)
        job.progress(done, len(ids))


def sava_orthogonal(job: Job) -> Iterator[Block]:
    """SAVA, orthogonal: standard scaling and mean norm 1 on both sides, zero padding, orthogonal Procrustes, and back.

    The head has its own map, from the same PLM rows.
    """
    ids, without = split_by_plm_row(job)
    yield from without
    anchors = rows_at(job.plm_rows, job.anchors, job.device)
    maps = [OrthogonalMap.fit(anchors, side) for side in anchor_sides(job) if side is not None]
    done = 0
    for block in row_blocks(job, ids):
        new = rows_at(job.plm_rows, block, job.device).double()
        yield block_of(job, block, torch.cat([one(new).cpu() for one in maps], dim=1), SOLVED)
        done += len(block)
        job.progress(done, len(ids))


@dataclasses.dataclass(frozen=True, repr=False)
class AffineMap:
    """Least squares with intercept over all anchors, from their normal equations in float64.

    With X and Y the centred PLM and source rows: ``W = (X^T X + lambda)^+ X^T Y``, lambda = ridge times the mean squared norm
    of X's rows, as in :func:`~saltlm.operators.ops.support_lstsq`.
    """

    mean: torch.Tensor  # [E]
    vectors: torch.Tensor  # [E, E], eigenvectors of X^T X as columns
    kept: torch.Tensor  # [E], 1 / (value + lambda), 0 where dropped
    values: torch.Tensor  # [E], eigenvalues
    inner: torch.Tensor  # [E, D + D'], vectors^T X^T Y
    offset: torch.Tensor  # [D + D'], mean of Y's rows before centring
    full: bool  # whether the rank is all it can be

    @classmethod
    def fit(cls, job: Job, ridge: float) -> AffineMap:
        """Fit the map from the job's anchors to their rows, output rows beside them."""
        count, width = len(job.anchors), job.plm_rows.shape[1]
        mean, offset = (torch.zeros(size, dtype=torch.float64, device=job.device) for size in (width, job.width))
        for part, side in side_blocks(job):
            mean += part.double().sum(dim=0)
            offset += side.sum(dim=0)
        mean, offset = mean / count, offset / count
        gram = torch.zeros(width, width, dtype=torch.float64, device=job.device)
        cross = torch.zeros(width, job.width, dtype=torch.float64, device=job.device)
        for part, side in side_blocks(job):
            centred = part.double() - mean
            gram.addmm_(centred.T, centred)
            cross.addmm_(centred.T, side - offset)
        values, vectors = torch.linalg.eigh(gram)
        regularised = values.clamp_min(0) + ridge * gram.trace() / count
        # Eigenvalues are squares of singular values: rounding leaves some E eps of the largest where there is none.
        dropped = regularised <= width * torch.finfo(torch.float64).eps * regularised.max()
        kept = torch.where(dropped, 0.0, 1 / torch.where(dropped, 1.0, regularised))
        full = int((~dropped).sum()) >= min(width, count - 1)
        return cls(mean, vectors, kept, values.clamp_min(0), vectors.T @ cross, offset, full)

    @property
    def rank(self) -> int:
        """Directions of the PLM's space that the map uses."""
        return int((self.kept > 0).sum())

    def __call__(self, new: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Float64 [n, D + D'] on the CPU, and the share of each PLM row [n] that the anchors' combination misses."""
        new = new.double()
        inside = (new - self.mean) @ self.vectors
        missed = (inside * (1 - self.values * self.kept)).norm(dim=1) / new.norm(dim=1)
        return ((inside * self.kept) @ self.inner + self.offset).cpu(), missed.float().cpu()


@dataclasses.dataclass(frozen=True, repr=False)
class OrthogonalMap:
    """Scaled rows turned by the orthogonal matrix nearest to the anchors' cross products, and scaled back."""

    source: tuple[torch.Tensor, torch.Tensor]  # mean and scale of the PLM side, [E] each
    target: tuple[torch.Tensor, torch.Tensor]  # likewise of the other side, [D] each
    turn: torch.Tensor  # [E, D]: of the turn between the padded spaces the corner that is used

    @classmethod
    def fit(cls, anchors: torch.Tensor, sides: torch.Tensor) -> OrthogonalMap:
        """From anchors [A, E] to their rows [A, D]; in blocks, so that neither is held in float64."""
        source, target = _scaling(anchors), _scaling(sides)
        width = max(anchors.shape[1], sides.shape[1])
        cross = torch.zeros(width, width, dtype=torch.float64, device=anchors.device)
        rows = block_rows(width)
        for one, other in zip(anchors.split(rows), sides.split(rows), strict=True):
            cross[: one.shape[1], : other.shape[1]].addmm_(
                _scaled(one.double(), source).T, _scaled(other.double(), target)
            )
        left, _, right = torch.linalg.svd(cross)
        return cls(source, target, (left @ right)[: anchors.shape[1], : sides.shape[1]])

    def __call__(self, new: torch.Tensor) -> torch.Tensor:
        """[n, E] -> [n, D]."""
        return _scaled(new, self.source) @ self.turn * self.target[1] + self.target[0]


def _scaling(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean, and what to divide by for deviation 1 in each dimension and then a mean norm of 1, in float64."""
    blocks, count = rows.split(block_rows(rows.shape[1])), len(rows)
    mean = sum(block.double().sum(dim=0) for block in blocks) / count
    deviation = (sum((block.double() - mean).square().sum(dim=0) for block in blocks) / max(1, count - 1)).sqrt()
    deviation = torch.where(deviation > 0, deviation, 1.0)
    norm = sum(((block.double() - mean) / deviation).norm(dim=1).sum() for block in blocks) / count
    return mean, deviation * (norm if norm > 0 else 1.0)


def _scaled(rows: torch.Tensor, scaling: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return (rows - scaling[0]) / scaling[1]


def _unit(rows: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(rows.double(), dim=1)


def block_of(
    job: Job, ids: torch.Tensor, both: torch.Tensor, origin: int,
    fitted: AffineMap | None = None, residual: torch.Tensor | None = None, rule: str = "map",
) -> Block:  # fmt: skip
    """A block from input and output rows side by side, every anchor being its support."""
    width = job.source_rows.shape[1]
    known = {}
    if fitted is not None:
        known["rank"] = torch.full((len(ids),), fitted.rank, dtype=torch.int32)
        known["status"] = torch.full((len(ids),), FULL_RANK if fitted.full else RANK_DEFICIENT, dtype=torch.uint8)
    return Block(
        ids=ids,
        rows=both[:, :width].float(),
        head=both[:, width:].float() if both.shape[1] > width else None,
        origin=origin,
        support_size=torch.full((len(ids),), len(job.anchors), dtype=torch.int32),
        residual=residual,
        rule=rule,
        **known,
    )
