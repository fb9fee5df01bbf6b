"""Results of the operators: supports, solutions and rows. Letters as in :mod:`saltlm.operators.ops`."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float, Float32, Float64, Int32, UInt8

from ..errors import input_error
from . import checks as check
from .ragged import PrintsShapes, RaggedRows

# Outcomes of a row; the position is the code in ``status``.
STATUSES = ("full_rank", "ill_conditioned", "rank_deficient", "no_support", "non_finite")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Support(RaggedRows):
    """Each row's anchors with non-zero sparsemax weight, nearest first, equal cosines by position.

    Attributes:
        offsets: int64 [N + 1]; row n has the entries ``offsets[n]`` to ``offsets[n + 1]``.
        ids: int32 [nnz], positions among the anchors.
        weights: float64 [nnz], positive, summing to 1 in each row that has any.
    """

    weights: Float64[Tensor, " nnz"]

    def __post_init__(self) -> None:
        check.vector("Support", "offsets", self.offsets, torch.int64)
        check.vector("Support", "ids", self.ids, torch.int32)
        check.vector("Support", "weights", self.weights, torch.float64)
        if len(self.offsets) < 1 or len(self.ids) != len(self.weights):
            raise input_error(
                "Support",
                f"{len(self.offsets)} offsets, {len(self.ids)} ids, {len(self.weights)} weights",
                "N + 1 offsets and as many ids as weights",
                "take it from sparsemax_support",
            )


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Solution(PrintsShapes):
    """Least squares of each row on its support.

    Attributes:
        coefficients: float64 [nnz], signed, in the order of the support's ids.
        rank: int32 [N], rank of the support's (centred) rows.
        residual: float32 [N], ``||e - c P|| / ||e||``.
        status: uint8 [N], codes into :data:`STATUSES`.
    """

    coefficients: Float64[Tensor, " nnz"]
    rank: Int32[Tensor, " N"]
    residual: Float32[Tensor, " N"]
    status: UInt8[Tensor, " N"]


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class SaltRows(PrintsShapes):
    """New rows and the figures of each row's regression.

    Attributes:
        rows: float32 (float64 for a float64 ``anchor_lm``) [N, D]; zeros where the status is ``no_support`` or
            ``non_finite``.
        output_rows: [N, D'], the same coefficients applied to ``anchor_output``; ``None`` without one.
        support_size: int32 [N].
        rank: int32 [N].
        residual: float32 [N].
        status: uint8 [N], codes into :data:`STATUSES`.
    """

    rows: Float[Tensor, "N D"]
    output_rows: Float[Tensor, "N D_out"] | None
    support_size: Int32[Tensor, " N"]
    rank: Int32[Tensor, " N"]
    residual: Float32[Tensor, " N"]
    status: UInt8[Tensor, " N"]
