"""The operators in stock torch: their specification, the oracle of their tests, and the fallback without compiled code.

Everything is computed in float64 on the device of the inputs, step by step as it is defined. Only memory is limited: no N x A
matrix is ever in memory as a whole.

Letters: N new rows, A anchors, K one row's support size, P auxiliary width, E width of the PLM rows, D width of the
source model's rows. A support is three tensors: ``offsets`` int64 [N + 1], ``ids`` int32 [nnz], ``weights`` float64 [nnz];
row n's anchors are ``ids[offsets[n]:offsets[n + 1]]``, nearest first, equal cosines by position.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float, Float32, Float64, Int32, Int64, UInt8

from .linear import ridge_penalty
from .nearest import EqualRows

EPSILON = torch.finfo(torch.float64).eps
FULL_RANK, ILL_CONDITIONED, RANK_DEFICIENT, NO_SUPPORT, NON_FINITE = range(5)
# Largest over smallest singular value above which a full-rank support counts as ill-conditioned.
ILL_CONDITION = 1e4
# Residual of a row without coefficients, of which nothing is explained.
NOTHING_EXPLAINED = 1.0
_BLOCK_VALUES = 1 << 22  # float64 values of one block of similarities (32 MB)


def sparsemax_support(
    new_auxiliary: Float[Tensor, "N P"], anchor_auxiliary: Float[Tensor, "A P"], max_support: int = 0
) -> tuple[Int64[Tensor, " N+1"], Int32[Tensor, " nnz"], Float64[Tensor, " nnz"]]:
    """Sparsemax of the cosines between each new row and all anchors, as a support.

    With cosines z sorted downwards, k the largest count with ``1 + k z_k > z_1 + ... + z_k`` and
    ``tau = (z_1 + ... + z_k - 1) / k``, the weights are ``max(z - tau, 0)``, and the support has the anchors of positive
    weight. ``max_support`` takes the sparsemax over that many nearest anchors. A zero or non-finite anchor is in
    no support; a zero or non-finite new row has an empty one. Anchors that are equal after each is divided by its largest
    absolute entry have equal cosines to the last bit, on every machine.

    Args:
        new_auxiliary: reals [N, P].
        anchor_auxiliary: reals [A, P].
        max_support: size of the largest support, >= 1; 0 for no limit.

    Returns:
        offsets int64 [N + 1], ids int32 [nnz], weights float64 [nnz].
    """
    device, rows = new_auxiliary.device, new_auxiliary.shape[0]
    anchors, usable_anchor = _scaled(anchor_auxiliary)
    positions = usable_anchor.nonzero().squeeze(1)
    anchors = anchors[positions]
    equal, anchors = EqualRows.of(anchors), _directions(anchors)
    sizes, ids, weights = [], [], []
    for block in new_auxiliary.split(max(1, _BLOCK_VALUES // max(1, positions.numel()))) if rows else ():
        new, usable = _scaled(block)
        product = equal.share_columns(_directions(new) @ anchors.T)
        cosines, order = product.sort(dim=1, descending=True, stable=True)
        weight = _sparsemax_of_sorted(cosines[:, :max_support] if max_support else cosines)
        inside = (weight > 0) & usable[:, None]
        sizes.append(inside.sum(dim=1))
        ids.append(positions[order[:, : inside.shape[1]][inside]].to(torch.int32))
        weights.append(weight[inside])
    offsets = torch.zeros(rows + 1, dtype=torch.int64, device=device)
    if rows:
        torch.cumsum(torch.cat(sizes), dim=0, out=offsets[1:])
    empty = torch.empty(0, device=device)
    return (
        offsets,
        torch.cat(ids) if ids else empty.to(torch.int32),
        torch.cat(weights) if weights else empty.to(torch.float64),
    )


def _scaled(rows: Tensor) -> tuple[Tensor, Tensor]:
    # Rows in float64 divided by their largest entry, and which rows have a direction. Without the division the squares of
    # 1e-200 and 1e200 would become zero and infinity.
    rows = rows.to(torch.float64)
    largest = rows.abs().amax(dim=1) if rows.shape[1] else rows.new_zeros(rows.shape[0])
    usable = largest.isfinite() & (largest > 0)
    return torch.where(usable[:, None], rows / torch.where(usable, largest, 1.0)[:, None], 0.0), usable


def _directions(scaled: Tensor) -> Tensor:
    # Unit vectors; zeros for rows without a direction.
    return scaled / scaled.norm(dim=1, keepdim=True).clamp_min(EPSILON)


def _sparsemax_of_sorted(values: Tensor) -> Tensor:
    # values [n, a] descending in each row -> max(value - tau, 0)
    if values.shape[1] == 0:
        return values
    counts = torch.arange(1, values.shape[1] + 1, dtype=torch.float64, device=values.device)
    sums = values.cumsum(dim=1)
    size = (1 + counts * values > sums).sum(dim=1, keepdim=True)
    threshold = (sums.gather(1, size - 1) - 1) / size
    return (values - threshold).clamp_min(0)


def support_lstsq(
    new_plm: Float[Tensor, "N E"],
    anchor_plm: Float[Tensor, "A E"],
    offsets: Int64[Tensor, " N+1"],
    ids: Int32[Tensor, " nnz"],
    ridge: float = 0.0,
    center: bool = False,
) -> tuple[Float64[Tensor, " nnz"], Int32[Tensor, " N"], Float32[Tensor, " N"], UInt8[Tensor, " N"]]:
    """Least squares of each new PLM row on the PLM rows of its support: ``c = e pinv(P)``.

    ``P`` [K, E] are the support's rows. The pseudo-inverse drops singular values at or below
    ``max(K, E) * 2**-52 * largest`` (torch's default), so a rank-deficient or K > E support gets the solution of least
    norm. With centring, ``P`` and ``e`` lose the mean of the support's rows first (and the largest plain row norm counts
    as a singular value in the tolerance, because centred rows have rounding errors of that size); the mean is then
    folded into the coefficients, ``c + (1 - sum c) / K``, so that they apply to rows that are not centred. A ridge r minimises
    ``||e - c P||^2 + lambda ||c||^2`` with lambda = r times the mean squared norm of the (centred) rows.

    Args:
        new_plm: reals [N, E].
        anchor_plm: reals [A, E].
        offsets: int64 [N + 1], the support's row bounds.
        ids: int32 [nnz], positions among the anchors.
        ridge: r, finite, >= 0; 0 for no ridge.
        center: fit with an intercept.

    Returns:
        coefficients float64 [nnz]; rank int32 [N] of the (centred) rows, with a ridge of the regularised ones;
        residual float32 [N], ``||e - c P|| / ||e||``, 0 for a zero e and 1 where there are no coefficients; status uint8
        [N]. Coefficients of rows without support or with a NaN or infinity are zero.
    """
    device, rows = new_plm.device, new_plm.shape[0]
    bounds, ids = offsets.tolist(), ids.to(torch.int64)
    coefficients = torch.zeros(ids.numel(), dtype=torch.float64, device=device)
    rank, residual, status = [0] * rows, [NOTHING_EXPLAINED] * rows, [NO_SUPPORT] * rows
    for row in range(rows):
        begin, end = bounds[row], bounds[row + 1]
        solution = _solve(new_plm[row].double(), anchor_plm[ids[begin:end]].double(), ridge, center)
        coefficients[begin:end], rank[row], residual[row], status[row] = solution
    return (
        coefficients,
        torch.tensor(rank, dtype=torch.int32, device=device),
        torch.tensor(residual, dtype=torch.float32, device=device),
        torch.tensor(status, dtype=torch.uint8, device=device),
    )


def _solve(target: Tensor, support: Tensor, ridge: float, center: bool) -> tuple[Tensor, int, float, int]:
    # target [E], support [K, E] -> coefficients [K], rank, residual, status
    size, width = support.shape
    zeros = torch.zeros(size, dtype=torch.float64, device=support.device)
    if not (target.isfinite().all() and support.isfinite().all()):
        return zeros, 0, NOTHING_EXPLAINED, NON_FINITE
    if size == 0 or not support.any():
        return zeros, 0, NOTHING_EXPLAINED, NO_SUPPORT
    # Division of both sides by one number keeps squares of float64 inputs finite and does not change the coefficients.
    scale = support.abs().max()
    target, support = target / scale, support / scale
    mean = support.mean(dim=0) if center else torch.zeros(width, dtype=torch.float64, device=support.device)
    centred, full_rank = support - mean, min(size - center, width)
    left, singular, right = torch.linalg.svd(centred, full_matrices=False)
    regularised = (singular**2 + ridge_penalty(ridge, (centred**2).sum(), size)).sqrt()
    largest = regularised[0].clamp_min(support.norm(dim=1).max() if center else 0.0)
    kept = regularised > max(size, width) * EPSILON * largest
    kept[full_rank:] = False  # centred rows have one dimension less; its singular value is rounding error
    filtered = torch.where(kept, singular / torch.where(kept, regularised, 1.0) ** 2, 0.0)
    coefficients = (((target - mean) @ right.T) * filtered) @ left.T
    if center:
        coefficients = coefficients + (1 - coefficients.sum()) / size
    if not coefficients.isfinite().all():
        return zeros, 0, NOTHING_EXPLAINED, NON_FINITE
    rank = int(kept.sum())
    status = FULL_RANK if rank == full_rank else RANK_DEFICIENT
    if rank == full_rank > 0 and regularised[0] > ILL_CONDITION * regularised[full_rank - 1]:
        status = ILL_CONDITIONED
    return coefficients, rank, _relative_residual(target, coefficients @ support), status


def _relative_residual(target: Tensor, fitted: Tensor) -> float:
    norm = float(target.norm())
    return float((target - fitted).norm()) / norm if norm > 0 and math.isfinite(norm) else 0.0


def combine(
    offsets: Int64[Tensor, " N_plus_1"],
    ids: Int32[Tensor, " nnz"],
    coefficients: Float64[Tensor, " nnz"],
    anchor_lm: Float[Tensor, "A D"],
) -> Float[Tensor, "N_plus_1-1 D"]:
    """Rows ``sum_k c_k L_k`` over each row's support, summed in float64.

    Args:
        offsets: int64 [N + 1].
        ids: int32 [nnz], positions among the anchors.
        coefficients: float64 [nnz].
        anchor_lm: reals [A, D].

    Returns:
        float32 [N, D], or float64 for float64 rows.
    """
    bounds, ids = offsets.tolist(), ids.to(torch.int64)
    dtype = torch.float64 if anchor_lm.dtype == torch.float64 else torch.float32
    rows = torch.zeros(len(bounds) - 1, anchor_lm.shape[1], dtype=dtype, device=anchor_lm.device)
    for row, (begin, end) in enumerate(itertools.pairwise(bounds)):
        if end > begin:
            rows[row] = (coefficients[begin:end] @ anchor_lm[ids[begin:end]].double()).to(dtype)
    return rows
