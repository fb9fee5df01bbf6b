"""SALT's rows without waiting for the device: what a CUDA graph can capture.

The operators of :mod:`saltlm.operators.ops` wait for the sizes of what they find. Here every size follows from the shapes of the
arguments: each support has room for ``capacity`` anchors, and a row that needs more, or that only the CPU can settle, is
left over, told by ``settled``, for :func:`settle` to finish once waiting is allowed. Letters as in :mod:`saltlm.operators.ops`.

Example:
    >>> import torch
    >>> from saltlm.operators.fixed import salt_rows_fixed, settle
    >>> tensors = [torch.eye(3) for _ in range(5)]
    >>> fixed = salt_rows_fixed(*tensors, capacity=3)
    >>> fixed.settled.tolist(), settle(fixed, *tensors).rows.round(decimals=3).tolist() == torch.eye(3).tolist()
    ([True, True, True], True)
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from ..errors import input_error
from . import checks as check
from .ops import backend, full_precision, salt_rows, slack_of
from .results import SaltRows

__all__ = ["CAPACITY_LIMIT", "FixedRows", "salt_rows_fixed", "settle"]

CAPACITY_LIMIT = 1024
_LEFT_OVER = 255


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class FixedRows(SaltRows):
    """New rows, and which of them are settled: those have the bits that :func:`saltlm.operators.ops.salt_rows` gives.

    Where a row is not settled, ``rows`` and ``output_rows`` are zeros, ``status`` is 255, and ``support_size`` may be -1.

    Attributes:
        settled: bool [N].
    """

    settled: Tensor


def salt_rows_fixed(
    new_auxiliary: Tensor,
    anchor_auxiliary: Tensor,
    new_plm: Tensor,
    anchor_plm: Tensor,
    anchor_lm: Tensor,
    *,
    capacity: int = 128,
    anchor_output: Tensor | None = None,
    ridge: float | None = None,
    center: bool = False,
    max_support: int | None = None,
) -> FixedRows:
    """Build rows as :func:`saltlm.operators.ops.salt_rows` does, all at once, as far as that goes without waiting for the device.

    On a CUDA device with the compiled operators nothing waits, so :class:`torch.cuda.graph` can capture it, after one call
    that loads the kernels; memory beyond inputs and results is at most 1 GB, ``12 N capacity`` bytes, unit rows of both
    auxiliary matrices in bfloat16 and copies in float32 of what is narrower. Elsewhere it is :func:`saltlm.operators.ops.salt_rows`, with
    the rows of larger supports left over.

    Args:
        new_auxiliary: reals [N, P].
        anchor_auxiliary: reals [A, P].
        new_plm: reals [N, E].
        anchor_plm: reals [A, E].
        anchor_lm: reals [A, D].
        capacity: the largest support that is settled, in [1, 1024]. Supports are not cut to it: ``max_support`` does that.
        anchor_output: reals [A, D'] that take the same coefficients, or ``None``.
        ridge: as in :func:`saltlm.operators.ops.support_lstsq`.
        center: as in :func:`saltlm.operators.ops.support_lstsq`.
        max_support: as in :func:`saltlm.operators.ops.sparsemax_support`.

    Returns:
        rows, and which are settled. Left over are rows whose support is larger than ``capacity``; on CUDA also those with more
        than 1,024 (or ``4 capacity``) anchors too near the threshold to be told apart by the fast product, and whatever is
        ill-conditioned, rank-deficient, empty or not finite.

    Raises:
        InputError: shapes, dtypes or devices that do not fit together, or options out of range.
    """
    op = "salt_rows_fixed"
    if isinstance(capacity, bool) or not isinstance(capacity, int) or not 1 <= capacity <= CAPACITY_LIMIT:
        raise input_error(
            f"{op}, capacity",
            repr(capacity),
            f"a whole number in [1, {CAPACITY_LIMIT}]",
            "use salt_rows for larger supports",
        )
    options = {"anchor_output": anchor_output, "ridge": ridge, "center": center, "max_support": max_support}
    on_cuda = isinstance(new_auxiliary, Tensor) and new_auxiliary.device.type == "cuda"
    if on_cuda and backend(new_auxiliary.device).name == "compiled":
        return _on_device(new_auxiliary, anchor_auxiliary, new_plm, anchor_plm, anchor_lm, capacity, **options)
    made = salt_rows(new_auxiliary, anchor_auxiliary, new_plm, anchor_plm, anchor_lm, **options)
    return _fixed(made, made.support_size <= capacity)


def _on_device(
    new_auxiliary: Tensor,
    anchor_auxiliary: Tensor,
    new_plm: Tensor,
    anchor_plm: Tensor,
    anchor_lm: Tensor,
    capacity: int,
    *,
    anchor_output: Tensor | None,
    ridge: float | None,
    center: bool,
    max_support: int | None,
) -> FixedRows:
    op = "salt_rows_fixed"
    given = (new_auxiliary, anchor_auxiliary, new_plm, anchor_plm)
    new_aux, anchor_aux, new, anchors = check.problem(op, *given)
    target, *output = check.targets(op, anchor_lm, anchor_output, anchor_aux)
    cap, strength = check.cap(op, max_support), check.ridge_strength(op, ridge)
    slack = slack_of(new_aux.device, new_aux.shape[1])
    with full_precision(new_aux.device):
        rows, output_rows, size, rank, residual, status = torch.ops.saltlm.salt_rows_fixed(
            new_aux,
            anchor_aux,
            new,
            anchors,
            target,
            *(output or [target[:, :0]]),
            cap,
            slack,
            capacity,
            strength,
            bool(center),
        )
    made = SaltRows(
        rows=rows,
        output_rows=None if anchor_output is None else output_rows,
        support_size=size,
        rank=rank,
        residual=residual,
        status=status,
    )
    # Rows that are not finite are salt_rows' to judge, too: the anchors' own may not be, or a sum overflows.
    # A sum has every NaN and infinity, without a matrix of answers.
    finite = rows.sum(dim=1).isfinite() & output_rows.sum(dim=1).isfinite()
    return _fixed(made, (status != _LEFT_OVER) & finite)


def _fixed(made: SaltRows, settled: Tensor) -> FixedRows:
    def kept(rows: Tensor) -> Tensor:
        return rows.masked_fill_(~settled[:, None], 0)

    changed = {
        "rows": kept(made.rows),
        "output_rows": None if made.output_rows is None else kept(made.output_rows),
        "status": made.status.masked_fill(~settled, _LEFT_OVER),
    }
    return FixedRows(**{**vars(made), **changed}, settled=settled)


def settle(fixed: FixedRows, *tensors: Tensor, **options: Any) -> SaltRows:
    """Finish what :func:`salt_rows_fixed` left over, by :func:`saltlm.operators.ops.salt_rows`; this waits for the device.

    Args:
        fixed: a result of :func:`salt_rows_fixed`, which stays as it is.
        *tensors: the five matrices that it was made of.
        **options: the options that it was made with, but for ``capacity``.

    Returns:
        what :func:`saltlm.operators.ops.salt_rows` gives for all rows, bit for bit.

    Raises:
        InputError: as :func:`salt_rows_fixed`, or a result of another number of rows.
    """
    new_auxiliary, anchor_auxiliary, new_plm, *anchors = tensors
    if len(fixed.settled) != new_plm.shape[0]:
        found, expected = f"{len(fixed.settled)} rows", f"{new_plm.shape[0]}, as new_plm"
        raise input_error("settle, fixed", found, expected, "pass the result of these matrices")
    if (fixed.output_rows is None) != (options.get("anchor_output") is None):
        found = "none" if options.get("anchor_output") is None else "output rows"
        raise input_error("settle, anchor_output", found, "what salt_rows_fixed was given", "pass the same options")
    left = (~fixed.settled).nonzero().flatten()
    rest = salt_rows(new_auxiliary[left], anchor_auxiliary, new_plm[left], *anchors, **options)

    def whole(name: str) -> Tensor:
        return getattr(fixed, name).index_copy(0, left, getattr(rest, name))

    return SaltRows(
        output_rows=None if fixed.output_rows is None else whole("output_rows"),
        **{name: whole(name) for name in ("rows", "support_size", "rank", "residual", "status")},
    )
