"""Methods that learn one rule or one map for all tokens from all anchors, and the choice of anchors by such a map."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import torch

from ...model.stored_rows import block_rows
from ...operators.linear import NormalEquations, mean_and_deviation, mean_of_rows, procrustes, ridge_inverse
from ..assembly import COMPOSED, SOLVED, STATUSES, Block
from ..job import Job, anchor_blocks, anchor_sides, has_row, row_blocks, rows_at, split_by_plm_row

FULL_RANK, RANK_DEFICIENT = STATUSES.index("full_rank"), STATUSES.index("rank_deficient")

RIDGE = 1.0  # default strength of a ridge map


def clp(job: Job) -> Iterator[Block]:
    """CLP: the mean of all anchors' rows, weighted by their cosines in the PLM's space (Ostendorff & Rehm 2023).

    ``sum_j cos_j L_j / sum_j cos_j``. Weights may be negative; where their sum is near zero, the row is very long, which the
    norms in the summary show. With unit rows u both sums are linear in the token's row, so that the cosines themselves are
    not computed: ``u (U^T L) / (u (U^T 1))``.
    """
    ids, without_row = split_by_plm_row(job)
    yield from without_row
    total = torch.zeros(job.plm_rows.shape[1], job.width + 1, dtype=torch.float64, device=job.device)
    for plm, sides in anchor_blocks(job):
        ones = torch.ones(len(sides), 1, dtype=torch.float64, device=job.device)
        total.addmm_(_unit(plm).T, torch.cat([sides, ones], dim=1))
    done = 0
    for block in row_blocks(job, ids):
        sums = _unit(rows_at(job.plm_rows, block, job.device)) @ total
        yield block_of(job, block, (sums[:, :-1] / sums[:, -1:]).cpu(), COMPOSED, rule="all anchors")
        done += len(block)
        job.progress(done, len(ids))


def sava_affine(job: Job) -> Iterator[Block]:
    """SAVA, affine: one map with intercept from PLM rows to source rows by least squares (Moroni et al. 2025).

    ``ridge`` turns it into a ridge regression.
    """
    yield from _mapped(job, job.config.ridge or 0.0)


def ridge_map(job: Job) -> Iterator[Block]:
    """The map of :func:`sava_affine` with a ridge, 1 by default."""
    yield from _mapped(job, RIDGE if job.config.ridge is None else job.config.ridge)


def _mapped(job: Job, ridge: float) -> Iterator[Block]:
    ids, without_row = split_by_plm_row(job)
    yield from without_row
    affine = AffineMap.fit(job, ridge)
    done = 0
    for block in row_blocks(job, ids):
        rows, residual = affine(rows_at(job.plm_rows, block, job.device))
        yield block_of(job, block, rows, SOLVED, affine, residual)
        done += len(block)
        job.progress(done, len(ids))


def sava_orthogonal(job: Job) -> Iterator[Block]:
    """SAVA, orthogonal: orthogonal Procrustes between standardised rows of mean norm 1, padded with zeros to one width.

    The head has a separate map, from the same PLM rows.
    """
    ids, without_row = split_by_plm_row(job)
    yield from without_row
    anchors = rows_at(job.plm_rows, job.anchors, job.device)
    maps = [OrthogonalMap.fit(anchors, side) for side in anchor_sides(job) if side is not None]
    done = 0
    for block in row_blocks(job, ids):
        plm = rows_at(job.plm_rows, block, job.device).double()
        yield block_of(job, block, torch.cat([orthogonal(plm).cpu() for orthogonal in maps], dim=1), SOLVED)
        done += len(block)
        job.progress(done, len(ids))


@dataclasses.dataclass(frozen=True, repr=False)
class AffineMap:
    """Least squares with intercept over all anchors, from the normal equations in float64.

    With X and Y the centred PLM and source rows: ``W = (X^T X + lambda)^+ X^T Y``, lambda = ridge times the mean squared norm
    of X's rows, as in :func:`~saltlm.operators.ops.support_lstsq`.
    """

    mean: torch.Tensor  # [E]
    vectors: torch.Tensor  # [E, E], eigenvectors of X^T X as columns
    inverses: torch.Tensor  # [E], 1 / (value + lambda), 0 for the dropped ones
    values: torch.Tensor  # [E], eigenvalues
    coefficients: torch.Tensor  # [E, D + D'], vectors^T X^T Y
    offset: torch.Tensor  # [D + D'], mean of the source rows
    full: bool  # whether the rank is the largest possible

    @classmethod
    def fit(cls, job: Job, ridge: float) -> AffineMap:
        """Fit the map from PLM rows of the job's anchors to their input and output rows side by side."""
        count, width = len(job.anchors), job.plm_rows.shape[1]
        equations = NormalEquations.of(lambda: anchor_blocks(job), count, (width, job.width), job.device)
        values, vectors = torch.linalg.eigh(equations.gram)
        regularised = values.clamp_min(0) + equations.penalty(ridge)
        # Eigenvalues are squares of singular values: those of missing directions are up to E eps of the largest by rounding.
        dropped = regularised <= width * torch.finfo(torch.float64).eps * regularised.max()
        return cls(
            mean=equations.x_mean,
            vectors=vectors,
            inverses=torch.where(dropped, 0.0, 1 / torch.where(dropped, 1.0, regularised)),
            values=values.clamp_min(0),
            coefficients=vectors.T @ equations.cross,
            offset=equations.y_mean,
            full=int((~dropped).sum()) >= min(width, count - 1),
        )

    @property
    def rank(self) -> int:
        """Dimensions of the PLM's space that the map uses."""
        return int((self.inverses > 0).sum())

    def __call__(self, plm: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Float64 [n, D + D'] on the CPU; and [n], the share of each PLM row that no combination of the anchors reaches."""
        plm = plm.double()
        projected = (plm - self.mean) @ self.vectors
        missed = (projected * (1 - self.values * self.inverses)).norm(dim=1) / plm.norm(dim=1)
        return ((projected * self.inverses) @ self.coefficients + self.offset).cpu(), missed.float().cpu()


@dataclasses.dataclass(frozen=True, repr=False)
class OrthogonalMap:
    """Orthogonal map between scaled rows: scale the PLM rows, rotate them, and scale back to source rows."""

    source: tuple[torch.Tensor, torch.Tensor]  # mean and scale of the PLM rows, [E] each
    target: tuple[torch.Tensor, torch.Tensor]  # mean and scale of the source rows, [D] each
    rotation: torch.Tensor  # [E, D], the used corner of the rotation between the padded spaces

    @classmethod
    def fit(cls, anchors: torch.Tensor, sides: torch.Tensor) -> OrthogonalMap:
        """Fit the map from anchors [A, E] to their rows [A, D], in blocks, so that neither is in float64 as a whole."""
        source, target = _scaling(anchors), _scaling(sides)
        width = max(anchors.shape[1], sides.shape[1])
        cross = torch.zeros(width, width, dtype=torch.float64, device=anchors.device)
        rows = block_rows(width)
        for plm, side in zip(anchors.split(rows), sides.split(rows), strict=True):
            cross[: plm.shape[1], : side.shape[1]].addmm_(
                _scaled(plm.double(), source).T, _scaled(side.double(), target)
            )
        return cls(source, target, procrustes(cross)[: anchors.shape[1], : sides.shape[1]])

    def __call__(self, plm: torch.Tensor) -> torch.Tensor:
        """[n, E] -> [n, D]."""
        return _scaled(plm, self.source) @ self.rotation * self.target[1] + self.target[0]


def _scaling(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean, and the divisor that gives each dimension deviation 1 and then the rows a mean norm of 1, float64 [D]."""
    blocks, count = rows.split(block_rows(rows.shape[1])), len(rows)
    mean, deviation = mean_and_deviation(lambda: blocks, count)
    deviation = torch.where(deviation > 0, deviation, 1.0)
    norm = mean_of_rows((((block.double() - mean) / deviation).norm(dim=1) for block in blocks), count)
    return mean, deviation * (norm if norm > 0 else 1.0)


def _scaled(rows: torch.Tensor, scaling: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return (rows - scaling[0]) / scaling[1]


def _unit(rows: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(rows.double(), dim=1)


def block_of(
    job: Job,
    ids: torch.Tensor,
    rows: torch.Tensor,
    origin: int,
    affine: AffineMap | None = None,
    residual: torch.Tensor | None = None,
    rule: str = "map",
) -> Block:
    """A block whose rows have all anchors as neighbours.

    Args:
        job: the method's input.
        ids: int64 [n], target ids.
        rows: [n, D + D'], input and output rows side by side.
        origin: as in :class:`~saltlm.rows.assembly.Block`.
        affine: the map that the rows are from, for rank and status; ``None`` for another rule.
        residual: float32 [n], of the map.
        rule: as in :class:`~saltlm.rows.assembly.Block`.
    """
    width = job.source_rows.shape[1]
    rank = status = None
    if affine is not None:
        rank = torch.full((len(ids),), affine.rank, dtype=torch.int32)
        status = torch.full((len(ids),), FULL_RANK if affine.full else RANK_DEFICIENT, dtype=torch.uint8)
    return Block(
        ids=ids,
        rows=rows[:, :width].float(),
        head=rows[:, width:].float() if rows.shape[1] > width else None,
        origin=origin,
        support_size=torch.full((len(ids),), len(job.anchors), dtype=torch.int32),
        rank=rank,
        residual=residual,
        status=status,
        rule=rule,
    )


def cleaned_anchors(job: Job) -> np.ndarray:
    """The job's anchors without the share ``clean_anchors`` of them that a global ridge map predicts worst, int64.

    Such an anchor may be a false friend: a token that both languages spell alike with different meanings. Each anchor is
    predicted by the map fitted to the other anchors; its error is relative to the norm of its row. Anchors without a PLM row
    cannot be predicted and stay. Only input rows are compared.
    """
    judged = np.flatnonzero(has_row(job.plm_rows, job.anchors))
    count = min(int(len(job.anchors) * job.config.clean_anchors), len(judged) - 1)
    if count < 1:
        return job.anchors
    errors = leave_one_out(
        rows_at(job.plm_rows, job.anchors[judged], job.device),
        rows_at(job.source_rows, job.source_ids(job.anchors[judged]), job.device),
        RIDGE if job.config.map_ridge is None else job.config.map_ridge,
    )
    worst = errors.sort(descending=True, stable=True).indices[:count].cpu().numpy()
    return np.delete(job.anchors, judged[worst])


def leave_one_out(plm: torch.Tensor, lm: torch.Tensor, ridge: float) -> torch.Tensor:
    """Relative error of each row of ``lm`` by the ridge map with intercept that is fitted to all other rows, float64 [A].

    One fit gives all errors: with H the hat matrix of the ridge regression, the error is ``(y_i - g(x_i)) / (1 - H_ii)``.

    Args:
        plm: float32 [A, E].
        lm: float32 [A, D].
        ridge: fraction of the mean squared norm of the centred ``plm``; the penalty is the one of the fit to all rows.
    """
    count, width = plm.shape
    rows = block_rows(max(width, lm.shape[1]))

    def blocks() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return zip(plm.split(rows), lm.split(rows), strict=True)

    equations = NormalEquations.of(blocks, count, (width, lm.shape[1]), plm.device)
    inverse = ridge_inverse(equations.gram, equations.penalty(ridge))
    slope, errors = inverse @ equations.cross, []
    for x, y in blocks():
        centred, true = x.double() - equations.x_mean, y.double()
        leverage = 1 / count + ((centred @ inverse) * centred).sum(dim=1)
        missed = (true - equations.y_mean - centred @ slope).norm(dim=1) / (1 - leverage).clamp_min(1e-9)
        errors.append(missed / true.norm(dim=1).clamp_min(torch.finfo(torch.float64).tiny))
    return torch.cat(errors)
