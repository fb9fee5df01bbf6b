"""The operators: sparsemax supports, least squares on them, and the rows they give, chunk by chunk.

:mod:`saltlm.operators.reference` defines what they compute. Compiled kernels run where they can be loaded, stock torch
elsewhere; :func:`backend` names the one in use.

Letters: N new rows, A anchors, K one row's support size, P auxiliary width, E width of the PLM rows, D width of the source
model's rows.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float, Float64

from ..errors import input_error
from . import checks as check
from . import reference
from .loading import Backend, backend, backends, forced
from .results import STATUSES, SaltRows, Solution, Support

__all__ = [
    "STATUSES",
    "Backend",
    "SaltRows",
    "Solution",
    "Support",
    "backend",
    "backends",
    "combine",
    "forced",
    "salt_coefficients",
    "salt_rows",
    "sparsemax_support",
    "support_chunks",
    "support_lstsq",
]

# Largest number of entries in the supports of one chunk: 384 MB of ids, weights, coefficients and the copies of the gathering.
# A compiled operator that reaches it leaves the later rows to the next chunk. The reference cannot stop early: its chunks are
# so small that every anchor could be in every support.
_MAX_ENTRIES = 12 << 20
# Largest number of rows in a chunk. Each chunk prepares the anchors again, and its results are in memory together.
_MAX_ROWS = {"cpu": 8192, "cuda": 65_536}
# Number of rows in the first chunk, whose run time cannot be predicted, and smallest number in a later one: each call has a
# fixed cost.
_FIRST_ROWS = {"cpu": 256, "cuda": 4096}
_MIN_ROWS = 64
# Shortest, intended and longest run time of a chunk in seconds, so that progress is reported and an interrupt is handled.
_CHUNK_SECONDS = (0.5, 1.0, 2.0)


def sparsemax_support(
    new_auxiliary: Float[Tensor, "N P"], anchor_auxiliary: Float[Tensor, "A P"], *, max_support: int | None = None
) -> Support:
    """Sparsemax of the cosines of each new row with all anchors, exactly, without an N x A matrix.

    Args:
        new_auxiliary: reals [N, P]. A zero or non-finite row gets an empty support.
        anchor_auxiliary: reals [A, P], same device. A zero or non-finite row is in no support.
        max_support: size of the largest support, >= 1: the sparsemax is taken over the nearest ``max_support`` anchors;
            ``None`` sets no limit.

    Returns:
        the supports, on the device of the inputs.

    Raises:
        InputError: a wrong shape, dtype, device or cap.

    Example:
        >>> import torch
        >>> support = sparsemax_support(torch.eye(2), torch.eye(2))
        >>> support.ids.tolist(), support.weights.tolist()
        ([0, 1], [1.0, 1.0])
    """
    op = "sparsemax_support"
    new, anchors = check.pair(op, "new_auxiliary", new_auxiliary, "anchor_auxiliary", anchor_auxiliary)
    return _supports(new, anchors, check.cap(op, max_support), 0)


def _supports(new: Tensor, anchors: Tensor, cap: int, max_entries: int) -> Support:
    """Supports of the first rows, up to the row that brings their entries to ``max_entries``; of all rows for 0.

    Where there are rows, the result has one at least.
    """
    if backend(new.device).name == "reference":
        parts = reference.sparsemax_support(new, anchors, cap)
    else:
        slack = slack_of(new.device, new.shape[1])
        with full_precision(new.device):
            parts = torch.ops.saltlm.sparsemax_support(new, anchors, cap, slack, max_entries)
    return Support(offsets=parts[0], ids=parts[1], weights=parts[2])


def support_lstsq(
    new_plm: Float[Tensor, "N E"],
    anchor_plm: Float[Tensor, "A E"],
    support: Support,
    *,
    ridge: float | None = None,
    center: bool = False,
) -> Solution:
    """Least squares of each PLM row on its support's PLM rows: ``c = e pinv(P)``, the solution of least norm.

    Args:
        new_plm: reals [N, E].
        anchor_plm: reals [A, E], same device.
        support: supports of the N rows.
        ridge: penalty on the coefficients, as a fraction of the support rows' mean squared norm, finite and >= 0.
        center: fit with an intercept: subtract the mean of the support's rows first, and fold it into the coefficients.

    Returns:
        coefficients, rank, residual and status, on the device of the inputs.

    Raises:
        InputError: a wrong shape, dtype, device, ridge, or a support that does not belong to these matrices.
    """
    op = "support_lstsq"
    new, anchors = check.pair(op, "new_plm", new_plm, "anchor_plm", anchor_plm)
    check.some_width(op, "new_plm", new)
    strength = check.ridge_strength(op, ridge)
    if len(support.offsets) != new.shape[0] + 1:
        raise input_error(
            f"{op}, support",
            f"{len(support.offsets) - 1} rows",
            f"{new.shape[0]}, as new_plm",
            "pass the support of new_plm",
        )
    check.support_fits(op, support.offsets, support.ids, anchors)
    if backend(new.device).name == "reference":
        parts = reference.support_lstsq(new, anchors, support.offsets, support.ids, strength, bool(center))
    else:
        with full_precision(new.device):
            parts = torch.ops.saltlm.support_lstsq(new, anchors, support.offsets, support.ids, strength, bool(center))
    return Solution(coefficients=parts[0], rank=parts[1], residual=parts[2], status=parts[3])


def combine(
    support: Support, coefficients: Float64[Tensor, " nnz"], anchor_lm: Float[Tensor, "A D"]
) -> Float[Tensor, "N D"]:
    """Rows ``sum_k c_k L_k`` over each support, summed in float64 in the order of the support's ids.

    Args:
        support: supports of N rows.
        coefficients: float64 [nnz].
        anchor_lm: reals [A, D], same device.

    Returns:
        float32 [N, D], or float64 if ``anchor_lm`` is.

    Raises:
        InputError: a wrong shape, dtype or device.
    """
    anchors = check.matrix("combine", "anchor_lm", anchor_lm)
    check.vector("combine", "coefficients", coefficients, torch.float64)
    if coefficients.shape != support.ids.shape:
        raise input_error(
            "combine, coefficients",
            f"{len(coefficients)}",
            f"{len(support.ids)}, one for each id",
            "pass all coefficients",
        )
    check.support_fits("combine", support.offsets, support.ids, anchors)
    if coefficients.device != anchors.device:
        raise check.device_error("combine", "coefficients", coefficients, anchors)
    arguments = (support.offsets, support.ids, coefficients.detach(), anchors)
    if backend(anchors.device).name == "reference":
        return reference.combine(*arguments)
    return torch.ops.saltlm.combine(*arguments)


def _combine_into(support: Support, coefficients: Tensor, anchor_lm: Tensor, rows: Tensor) -> Tensor:
    """:func:`combine` without its checks, written into ``rows`` [N, D]; returns bool [N], which rows are finite."""
    if anchor_lm.device.type == "cpu" and backend("cpu").name == "compiled":
        return torch.ops.saltlm.combine_into(support.offsets, support.ids, coefficients, anchor_lm, rows)
    rows.copy_(combine(support, coefficients, anchor_lm))
    return check.finite_rows(rows)


def salt_rows(
    new_auxiliary: Float[Tensor, "N P"],
    anchor_auxiliary: Float[Tensor, "A P"],
    new_plm: Float[Tensor, "N E"],
    anchor_plm: Float[Tensor, "A E"],
    anchor_lm: Float[Tensor, "A D"],
    *,
    anchor_output: Float[Tensor, "A D_out"] | None = None,
    ridge: float | None = None,
    center: bool = False,
    max_support: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> SaltRows:
    """Build rows of a source model for new tokens by SALT.

    For each new token the anchors with non-zero sparsemax weight over auxiliary cosines are its support; the
    least-squares coefficients of its PLM row on the support's PLM rows are applied to the support's rows of the source
    model. Works in chunks of tokens: beyond inputs and results it takes well below 1 GB of memory. The sizes of the chunks
    change no bit of the result.

    Args:
        new_auxiliary: reals [N, P].
        anchor_auxiliary: reals [A, P].
        new_plm: reals [N, E].
        anchor_plm: reals [A, E].
        anchor_lm: reals [A, D], the source model's input rows of the anchors.
        anchor_output: reals [A, D'], output rows that take the same coefficients; ``None`` for a tied head.
        ridge: as in :func:`support_lstsq`.
        center: as in :func:`support_lstsq`.
        max_support: as in :func:`sparsemax_support`.
        progress: called with (done, total) after each chunk.

    Returns:
        rows, output rows and diagnostics, on the device of the inputs.

    Raises:
        InputError: shapes, dtypes or devices that do not fit together, or options out of range.
    """
    op = "salt_rows"
    new_aux, anchor_aux, new, anchors = check.problem(op, new_auxiliary, anchor_auxiliary, new_plm, anchor_plm)
    targets = check.targets(op, anchor_lm, anchor_output, anchor_aux)
    chunks = salt_coefficients(new_aux, anchor_aux, new, anchors, ridge=ridge, center=center, max_support=max_support)
    # The kernels do not read float16: convert it once rather than in every chunk.
    targets = [target.float() if target.dtype == torch.float16 else target for target in targets]
    total, device = new.shape[0], new.device
    results = [
        torch.empty(total, target.shape[1], dtype=torch.promote_types(target.dtype, torch.float32), device=device)
        for target in targets
    ]
    size = torch.zeros(total, dtype=torch.int32, device=device)
    rank, status = torch.zeros_like(size), torch.zeros(total, dtype=torch.uint8, device=device)
    residual = torch.zeros(total, dtype=torch.float32, device=device)
    begin = 0
    for support, solution in chunks:
        end = begin + len(solution.rank)
        size[begin:end] = support.sizes
        rank[begin:end], residual[begin:end] = solution.rank, solution.residual
        status[begin:end] = solution.status
        for result, target in zip(results, targets, strict=True):
            rows = result[begin:end]
            finite = _combine_into(support, solution.coefficients, target, rows)
            if not finite.all():
                rows[~finite] = 0
                status[begin:end][~finite] = STATUSES.index("non_finite")
        begin = end
        if progress is not None:
            progress(end, total)
    if len(results) > 1:  # a token whose input or output row is not finite has zeros in both
        for result in results:
            result[status == STATUSES.index("non_finite")] = 0
    return SaltRows(
        rows=results[0],
        output_rows=results[1] if len(results) > 1 else None,
        support_size=size,
        rank=rank,
        residual=residual,
        status=status,
    )


def salt_coefficients(
    new_auxiliary: Float[Tensor, "N P"],
    anchor_auxiliary: Float[Tensor, "A P"],
    new_plm: Float[Tensor, "N E"],
    anchor_plm: Float[Tensor, "A E"],
    *,
    ridge: float | None = None,
    center: bool = False,
    max_support: int | None = None,
) -> Iterator[tuple[Support, Solution]]:
    """Supports and coefficients of :func:`salt_rows`, the part that does not read rows of the source model.

    The arguments are those of :func:`salt_rows`. They are checked by the call, not by the first step of the iterator.

    Returns:
        Supports and solutions of the new tokens in order, chunk by chunk. The number of tokens in a chunk follows from the
        time that the chunk before took, here and in the caller; it changes no bit of the result.

    Raises:
        InputError: shapes, dtypes or devices that do not fit together, or options out of range.
    """
    op = "salt_rows"
    new_aux, anchor_aux, new, anchors = check.problem(op, new_auxiliary, anchor_auxiliary, new_plm, anchor_plm)
    cap, strength = check.cap(op, max_support), check.ridge_strength(op, ridge)

    def chunks() -> Iterator[tuple[Support, Solution]]:
        begin = 0
        for support in _support_chunks(new_aux, anchor_aux, cap):
            end = begin + len(support)
            yield support, support_lstsq(new[begin:end], anchors, support, ridge=strength, center=center)
            begin = end

    return chunks()


def support_chunks(
    new_auxiliary: Float[Tensor, "N P"], anchor_auxiliary: Float[Tensor, "A P"], *, max_support: int | None = None
) -> Iterator[Support]:
    """The supports of :func:`sparsemax_support`, in chunks of rows.

    The supports of a chunk take at most 0.4 GB of memory, plus one support for each thread.

    The arguments are those of :func:`sparsemax_support`. They are checked by the call, not by the first step of the iterator.

    Returns:
        the supports of the rows in order, chunk by chunk. The number of rows in a chunk follows from the time that the chunk
        before took, here and in the caller.

    Raises:
        InputError: a wrong shape, dtype, device or cap.
    """
    op = "sparsemax_support"
    new, anchors = check.pair(op, "new_auxiliary", new_auxiliary, "anchor_auxiliary", anchor_auxiliary)
    return _support_chunks(new, anchors, check.cap(op, max_support))


def _support_chunks(new: Tensor, anchors: Tensor, cap: int) -> Iterator[Support]:
    total, device = new.shape[0], new.device.type
    largest = max(1, min(anchors.shape[0], cap or anchors.shape[0]))
    if backend(new.device).name == "reference":
        max_rows = max(1, min(_MAX_ROWS[device], _MAX_ENTRIES // largest))
        chunk = min(max_rows, _MIN_ROWS)
    else:
        max_rows = _MAX_ROWS[device]
        chunk = min(max_rows, _FIRST_ROWS[device], max(_MIN_ROWS, _MAX_ENTRIES // largest))
    begin = 0
    while begin < total:
        started = time.monotonic()
        support = _supports(new[begin : begin + chunk], anchors, cap, _MAX_ENTRIES)
        rows, entries = len(support), len(support.ids)
        yield support
        begin += rows
        # No more rows than probably fit: supports of rows beyond the limit are computed by other threads and thrown away.
        fitting = max(1, _MAX_ENTRIES * rows // max(1, entries))
        chunk = min(fitting, _next_chunk(rows, max_rows, time.monotonic() - started))


def _next_chunk(rows: int, max_rows: int, seconds: float) -> int:
    """Rows of the next chunk: those that take the intended time at the pace of the last ``rows``, which took ``seconds``."""
    shortest, intended, longest = _CHUNK_SECONDS
    if not shortest <= seconds <= longest:
        rows = int(rows * min(16.0, intended / max(seconds, 1e-9)))
    return min(max_rows, max(_MIN_ROWS, rows))


def slack_of(device: torch.device, width: int) -> float:
    """Largest difference between torch's float32 product of two unit vectors and their exact cosine."""
    # width + 8 roundings of 2^-24 (those of the inputs included), times 1.5 for safety. Where torch may use TF32 or bfloat16
    # for float32 products, three roundings of 2^-8, rounded up.
    return (width + 8) * 2.0**-24 * 1.5 if _ieee_products(device) else 2.0**-6


def _ieee_products(device: torch.device) -> bool:
    # The stubs of torch know no mkldnn.matmul.
    settings = torch.backends.cuda.matmul if device.type == "cuda" else getattr(torch.backends.mkldnn, "matmul", None)
    try:
        if torch.get_float32_matmul_precision() != "highest" or getattr(settings, "allow_tf32", False):
            return False
    except RuntimeError:  # torch raises it once a program has used its old and its new settings of precision together
        return False
    return getattr(settings, "fp32_precision", "ieee") in ("none", "ieee")


def full_precision(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Run the body without autocast, which would round the float32 products inside an operator to bfloat16."""
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()
