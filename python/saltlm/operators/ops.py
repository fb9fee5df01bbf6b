"""The operators: sparsemax supports, least squares on them, and the rows they give, chunk by chunk.

What they compute is defined in :mod:`saltlm.operators.reference`; compiled kernels do the work where they can be loaded
(:func:`backend` tells). Letters: N new rows, A anchors, K one row's support size, P auxiliary width, E width of the PLM
rows, D width of the source model's rows.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..errors import input_error
from . import checks as check
from . import reference
from .finite import finite_rows
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

# What one chunk's supports may hold: 384 MB of ids, weights, coefficients and the copies made while they are gathered. Compiled
# operators leave later rows to the next chunk; the reference has chunks so small that every anchor could be in every support.
_MOST_ENTRIES = 12 << 20
# Rows of a chunk at most: the anchors are prepared anew in each, and a chunk's results are held together.
_MOST_ROWS = {"cpu": 8192, "cuda": 65_536}
# Rows of the first chunk, of which nothing is known yet, and of a later one at least, for each call has costs of its own.
_FIRST_ROWS = {"cpu": 256, "cuda": 4096}
_LEAST_ROWS = 64
# A chunk should take about this long, so that progress moves and an interrupt is heard.
_CHUNK_SECONDS = (0.5, 1.0, 2.0)


def sparsemax_support(new_auxiliary: Tensor, anchor_auxiliary: Tensor, *, max_support: int | None = None) -> Support:
    """Sparsemax of the cosines of each new row with all anchors, exactly, without an N x A matrix.

    Args:
        new_auxiliary: reals [N, P]. A zero or non-finite row gets an empty support.
        anchor_auxiliary: reals [A, P], same device. A zero or non-finite row is in no support.
        max_support: keep the nearest so many, >= 1, with the sparsemax weights over those; ``None`` keeps all.

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


def _supports(new: Tensor, anchors: Tensor, cap: int, most_entries: int) -> Support:
    """Supports of the rows, or of the first of them once those hold ``most_entries`` (0: any number); always one of several."""
    if backend(new.device).name == "reference":
        parts = reference.sparsemax_support(new, anchors, cap)
    else:
        slack = slack_of(new.device, new.shape[1])
        with full_precision(new.device):
            parts = torch.ops.saltlm.sparsemax_support(new, anchors, cap, slack, most_entries)
    return Support(offsets=parts[0], ids=parts[1], weights=parts[2])


def support_lstsq(
    new_plm: Tensor, anchor_plm: Tensor, support: Support, *, ridge: float | None = None, center: bool = False
) -> Solution:
    """Least squares of each PLM row on its support's PLM rows: ``c = e pinv(P)``, of least norm where it is not unique.

    Args:
        new_plm: reals [N, E].
        anchor_plm: reals [A, E], same device.
        support: supports of the N rows.
        ridge: penalty on the coefficients, as a fraction of the support rows' mean squared norm, finite and >= 0.
        center: fit with an intercept: the mean of the support's rows is taken off first and folded back in.

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
            f"{op}, support", f"{len(support.offsets) - 1} rows", f"{new.shape[0]}, as new_plm", "pass its own support"
        )
    check.support_fits(op, support.offsets, support.ids, anchors)
    if backend(new.device).name == "reference":
        parts = reference.support_lstsq(new, anchors, support.offsets, support.ids, strength, bool(center))
    else:
        with full_precision(new.device):
            parts = torch.ops.saltlm.support_lstsq(new, anchors, support.offsets, support.ids, strength, bool(center))
    return Solution(coefficients=parts[0], rank=parts[1], residual=parts[2], status=parts[3])


def combine(support: Support, coefficients: Tensor, anchor_lm: Tensor) -> Tensor:
    """Rows ``sum_k c_k L_k`` over each support, summed in float64 in the support's order.

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
            "combine, coefficients", f"{len(coefficients)}", f"{len(support.ids)}, one for each id", "pass them all"
        )
    check.support_fits("combine", support.offsets, support.ids, anchors)
    if coefficients.device != anchors.device:
        raise check.device_error("combine", "coefficients", coefficients, anchors)
    arguments = (support.offsets, support.ids, coefficients.detach(), anchors)
    if backend(anchors.device).name == "reference":
        return reference.combine(*arguments)
    return torch.ops.saltlm.combine(*arguments)


def _combine_into(support: Support, coefficients: Tensor, anchor_lm: Tensor, rows: Tensor) -> Tensor:
    """:func:`combine` of arguments that fit, into ``rows`` [N, D]; bool [N], which of them are finite."""
    if anchor_lm.device.type == "cpu" and backend("cpu").name == "compiled":
        return torch.ops.saltlm.combine_into(support.offsets, support.ids, coefficients, anchor_lm, rows)
    rows.copy_(combine(support, coefficients, anchor_lm))
    return finite_rows(rows)


def salt_rows(
    new_auxiliary: Tensor,
    anchor_auxiliary: Tensor,
    new_plm: Tensor,
    anchor_plm: Tensor,
    anchor_lm: Tensor,
    *,
    anchor_output: Tensor | None = None,
    ridge: float | None = None,
    center: bool = False,
    max_support: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> SaltRows:
    """Build rows of a source model for new tokens by SALT.

    For each new token the anchors with non-zero sparsemax weight over auxiliary cosines are its support; the
    least-squares coefficients of its PLM row on the support's PLM rows are applied to the support's rows of the source
    model. Works in chunks of tokens: memory beside inputs and results stays well below 1 GB, and the chunks change no
    bit of the result.

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
    given = (new_auxiliary, anchor_auxiliary, new_plm, anchor_plm)
    new_aux, anchor_aux, new, anchors = check.problem(op, *given)
    targets = check.targets(op, anchor_lm, anchor_output, anchor_aux)
    chunks = salt_coefficients(new_aux, anchor_aux, new, anchors, ridge=ridge, center=center, max_support=max_support)
    # float16 has no kernel of its own: widen once, not in every chunk.
    targets = [target.float() if target.dtype == torch.float16 else target for target in targets]
    total, device = new.shape[0], new.device
    made = [
        torch.empty(total, t.shape[1], dtype=torch.promote_types(t.dtype, torch.float32), device=device)
        for t in targets
    ]
    size = torch.zeros(total, dtype=torch.int32, device=device)
    rank, status = torch.zeros_like(size), torch.zeros(total, dtype=torch.uint8, device=device)
    residual = torch.zeros(total, dtype=torch.float32, device=device)
    begin = 0
    for support, solution in chunks:
        end = begin + len(solution.rank)
        size[begin:end] = support.offsets.diff()
        rank[begin:end], residual[begin:end] = solution.rank, solution.residual
        status[begin:end] = solution.status
        for rows, target in zip(made, targets, strict=True):
            part = rows[begin:end]
            finite = _combine_into(support, solution.coefficients, target, part)
            if not finite.all():
                part[~finite] = 0
                status[begin:end][~finite] = STATUSES.index("non_finite")
        begin = end
        if progress is not None:
            progress(end, total)
    if len(made) > 1:  # a row that failed on one side is drawn on both
        for rows in made:
            rows[status == STATUSES.index("non_finite")] = 0
    return SaltRows(
        rows=made[0],
        output_rows=made[1] if len(made) > 1 else None,
        support_size=size,
        rank=rank,
        residual=residual,
        status=status,
    )


def salt_coefficients(
    new_auxiliary: Tensor,
    anchor_auxiliary: Tensor,
    new_plm: Tensor,
    anchor_plm: Tensor,
    *,
    ridge: float | None = None,
    center: bool = False,
    max_support: int | None = None,
) -> Iterator[tuple[Support, Solution]]:
    """The part of :func:`salt_rows` that knows nothing of the source model: supports and coefficients.

    Arguments are those of :func:`salt_rows`, and are checked at once.

    Returns:
        One chunk of tokens after the other. How many a chunk holds follows from the time that it and what was done with it
        took; it changes no bit of the result.

    Raises:
        InputError: shapes, dtypes or devices that do not fit together, or options out of range.
    """
    op = "salt_rows"
    given = (new_auxiliary, anchor_auxiliary, new_plm, anchor_plm)
    new_aux, anchor_aux, new, anchors = check.problem(op, *given)
    cap, strength = check.cap(op, max_support), check.ridge_strength(op, ridge)
    return _chunks(new_aux, anchor_aux, new, anchors, strength, center, cap)


def _chunks(
    new_aux: Tensor, anchor_aux: Tensor, new: Tensor, anchors: Tensor, ridge: float, center: bool, cap: int,
) -> Iterator[tuple[Support, Solution]]:  # fmt: skip
    begin = 0
    for support in _support_chunks(new_aux, anchor_aux, cap):
        end = begin + len(support.offsets) - 1
        yield support, support_lstsq(new[begin:end], anchors, support, ridge=ridge, center=center)
        begin = end


def support_chunks(
    new_auxiliary: Tensor, anchor_auxiliary: Tensor, *, max_support: int | None = None
) -> Iterator[Support]:
    """What :func:`sparsemax_support` gives, in chunks of rows.

    However dense supports are, a chunk's take 0.4 GB at most, and one a thread more.

    Arguments are those of :func:`sparsemax_support`, and are checked at once.

    Returns:
        the supports of the first rows, of the next, and so on. How many a chunk holds follows from the time that it and what
        was done with it took.

    Raises:
        InputError: a wrong shape, dtype, device or cap.
    """
    op = "sparsemax_support"
    new, anchors = check.pair(op, "new_auxiliary", new_auxiliary, "anchor_auxiliary", anchor_auxiliary)
    return _support_chunks(new, anchors, check.cap(op, max_support))


def _support_chunks(new: Tensor, anchors: Tensor, cap: int) -> Iterator[Support]:
    total, kind = new.shape[0], new.device.type
    largest = max(1, min(anchors.shape[0], cap or anchors.shape[0]))
    if backend(new.device).name == "reference":
        most = max(1, min(_MOST_ROWS[kind], _MOST_ENTRIES // largest))
        chunk = min(most, _LEAST_ROWS)
    else:
        most = _MOST_ROWS[kind]
        chunk = min(most, _FIRST_ROWS[kind], max(_LEAST_ROWS, _MOST_ENTRIES // largest))
    begin = 0
    while begin < total:
        started = time.monotonic()
        support = _supports(new[begin : begin + chunk], anchors, cap, _MOST_ENTRIES)
        rows, held = len(support.offsets) - 1, len(support.ids)
        yield support
        begin += rows
        # As many as may well fit: threads that are ahead of the first row left out have worked for nothing.
        fit = max(1, _MOST_ENTRIES * rows // max(1, held))
        chunk = min(fit, _next_chunk(rows, most, time.monotonic() - started))


def _next_chunk(rows: int, most: int, seconds: float) -> int:
    """As many rows as take a second at the pace of the last ones, or as many again where that is near enough."""
    least_seconds, goal, most_seconds = _CHUNK_SECONDS
    wanted = rows if least_seconds <= seconds <= most_seconds else int(rows * min(16.0, goal / max(seconds, 1e-9)))
    return min(most, max(_LEAST_ROWS, wanted))


def slack_of(device: torch.device, width: int) -> float:
    """How far torch's float32 product of two unit vectors can be from their true cosine."""
    # width + 8 roundings of 2^-24 (the inputs' own among them), half as much again for safety. Where torch may use TF32 or
    # bfloat16 for float32 products, three roundings of 2^-8 with room to spare.
    return (width + 8) * 2.0**-24 * 1.5 if _ieee_products(device) else 2.0**-6


def _ieee_products(device: torch.device) -> bool:
    own = torch.backends.cuda.matmul if device.type == "cuda" else torch.backends.mkldnn.matmul
    try:
        if torch.get_float32_matmul_precision() != "highest" or getattr(own, "allow_tf32", False):
            return False
    except RuntimeError:  # torch refuses to answer once its new settings were used beside the old ones
        return False
    return getattr(own, "fp32_precision", "ieee") in ("none", "ieee")


def full_precision(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Run the body without autocast, which would turn the float32 product inside an operator into a bfloat16 one."""
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()
