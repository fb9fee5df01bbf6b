"""Checks of the operators on one device: comparison with the reference in float64 on the CPU.

Each check returns a description of the fault, or ``None``.
"""

import contextlib
import itertools
import os

import torch
from torch import Tensor

# Largest accepted relative differences. Both sides compute coefficients in float64, and condition numbers are at most 1e4 here.
COEFFICIENTS = 1e-6
WEIGHTS = 1e-12


def data(device: str, dtype: torch.dtype, new: int = 60, anchors: int = 400, P: int = 24, E: int = 40, D: int = 33):
    """A problem with degenerate cases: zero, infinite and NaN rows, equal anchors, a new vector equal to an anchor.

    Returns:
        The five inputs of ``salt_rows``: auxiliary vectors of new tokens and of anchors, PLM rows of both, and source rows.
    """
    generator = torch.Generator().manual_seed(1)
    aux, plm = (torch.randn(anchors, width, generator=generator) + 0.3 for width in (P, E))
    lm = torch.randn(anchors, D, generator=generator)
    new_aux, new_plm = (torch.randn(new, width, generator=generator) + 0.3 for width in (P, E))
    aux[3] = 0
    aux[7] = float("nan")
    aux[21] = aux[20]
    plm[21] = plm[20]  # a support that holds both is rank deficient
    new_aux[1], new_aux[2], new_aux[5] = 0, float("inf"), aux[20]
    new_plm[4, 0] = float("nan")
    return [tensor.to(device=device, dtype=dtype) for tensor in (new_aux, aux, new_plm, plm, lm)]


def exact(tensor: Tensor) -> Tensor:
    """A float64 copy on the CPU."""
    return tensor.detach().cpu().double()


def compare_support(support, expected: tuple[Tensor, ...]) -> str | None:
    """Compare a support with the reference: sizes and ids exactly, weights to :data:`WEIGHTS`."""
    offsets, ids, weights = expected
    if not torch.equal(support.offsets.cpu(), offsets):
        return "support sizes differ"
    if not torch.equal(support.ids.cpu(), ids):
        return "ids differ"
    difference = (support.weights.cpu() - weights).abs().max().item() if len(ids) else 0.0
    return f"weights differ by {difference:.1e}" if difference > WEIGHTS else None


def compare_solution(ops, solution, expected: tuple[Tensor, ...], offsets: Tensor) -> str | None:
    """Compare a solution with the reference: statuses and ranks exactly, the rest to :data:`COEFFICIENTS`."""
    coefficients, rank, residual, status = expected
    if not torch.equal(solution.status.cpu(), status):
        return f"statuses differ for rows {(solution.status.cpu() != status).nonzero().flatten().tolist()[:8]}"
    if not torch.equal(solution.rank.cpu(), rank):
        return "ranks differ"
    difference = (solution.residual.cpu() - residual).abs().max().item() if len(residual) else 0.0
    if difference > COEFFICIENTS:
        return f"residuals differ by {difference:.1e}"
    for row, (begin, end) in enumerate(itertools.pairwise(offsets.tolist())):
        if status[row] != ops.STATUSES.index("full_rank"):
            continue
        ours, theirs = solution.coefficients[begin:end].cpu(), coefficients[begin:end]
        if (ours - theirs).norm() > COEFFICIENTS * theirs.norm():
            return f"coefficients of row {row} differ by {((ours - theirs).norm() / theirs.norm()).item():.1e}"
    return None


def check_problem(ops, reference, tensors, *, max_support=None, ridge=None, center=False) -> str | None:
    """Compare all three operators with the reference on one problem."""
    new_aux, aux, new_plm, plm, lm = tensors
    support = ops.sparsemax_support(new_aux, aux, max_support=max_support)
    expected = reference.sparsemax_support(exact(new_aux), exact(aux), max_support or 0)
    if fault := compare_support(support, expected):
        return fault
    solution = ops.support_lstsq(new_plm, plm, support, ridge=ridge, center=center)
    solved = reference.support_lstsq(exact(new_plm), exact(plm), *expected[:2], ridge or 0.0, center)
    if fault := compare_solution(ops, solution, solved, expected[0]):
        return fault
    rows = ops.combine(support, solution.coefficients, lm).cpu().double()
    combined = reference.combine(*expected[:2], solution.coefficients.cpu(), exact(lm))
    scale = combined.norm(dim=1).clamp_min(1e-30)
    difference = ((rows - combined).norm(dim=1) / scale).max().item() if len(rows) else 0.0
    return f"combined rows differ by {difference:.1e}" if difference > 1e-6 else None


def check_bits(ops, tensors, device: str) -> str | None:
    """Rows must have the same bits as a whole, in pieces, from strided memory, when repeated, and on another stream."""
    whole = ops.salt_rows(*tensors).rows
    new_aux, aux, new_plm, plm, lm = tensors
    pieces = [ops.salt_rows(a, aux, e, plm, lm).rows for a, e in zip(new_aux.split(7), new_plm.split(7), strict=True)]
    strided = [tensor.repeat_interleave(2, dim=1)[:, ::2] for tensor in tensors]
    cases = {
        "pieces": torch.cat(pieces),
        "strided": ops.salt_rows(*strided).rows,
        "again": ops.salt_rows(*tensors).rows,
    }
    if device == "cuda":
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            cases["another stream"] = ops.salt_rows(*tensors).rows
        stream.synchronize()
    wrong = [name for name, rows in cases.items() if not torch.equal(rows, whole)]
    return f"different bits: {', '.join(wrong)}" if wrong else None


def check_refusals(device: str) -> str | None:
    """Supports with invalid offsets or ids must be refused before any kernel uses them."""
    rows, weights = torch.ones(2, 4, device=device), torch.ones(2, dtype=torch.float64, device=device)
    for offsets, ids in (([0, 1, 2], [0, 2]), ([0, 1, 2], [-1, 0]), ([0, 2, 1], [0, 1]), ([0, 1, 3], [0, 1])):
        support = torch.tensor(offsets, device=device), torch.tensor(ids, dtype=torch.int32, device=device)
        for work in (
            lambda p=support: torch.ops.saltlm.combine(*p, weights, rows),
            lambda p=support: torch.ops.saltlm.support_lstsq(rows, rows, *p, 0.0, False),
        ):
            with contextlib.suppress(RuntimeError):
                work()
                return f"offsets {offsets}, ids {ids} were accepted"
    return None


def full_supports(device: str):
    """A problem whose anchors have nearly equal cosines, so that every anchor is in every support (90 anchors, width 40)."""
    _, aux, new_plm, plm, lm = data(device, torch.float64, new=6, anchors=90, P=12, E=40)
    aux = 1.0 + 1e-4 * aux.nan_to_num()
    return [aux[:6].clone(), aux, new_plm, plm, lm]


def run_checks(ops, reference, device: str) -> dict[str, str | None]:
    """Run every check; returns the fault, or ``None``, by the name of the check."""
    dtypes = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
    options = {"plain": {}, "capped": {"max_support": 5}, "ridge": {"ridge": 0.1}, "centred": {"center": True}}
    options["centred ridge"] = {"center": True, "ridge": 0.05}
    work = {
        f"{name}, {str(dtype)[6:]}": lambda d=dtype, o=option: check_problem(ops, reference, data(device, d), **o)
        for dtype in dtypes
        for name, option in options.items()
    }
    sizes = {"one row": (1, 9), "no rows": (0, 9), "one anchor": (5, 1), "no anchors": (5, 0)}
    for name, (new, anchors) in sizes.items():
        tensors = [
            t[:count]
            for t, count in zip(data(device, torch.float32), (new, anchors, new, anchors, anchors), strict=True)
        ]
        work[name] = lambda t=tensors: check_problem(ops, reference, t)
    work["every anchor in every support"] = lambda: check_problem(ops, reference, full_supports(device))
    work["every anchor, centred"] = lambda: check_problem(ops, reference, full_supports(device), center=True)
    big = data(device, torch.float32, new=300, anchors=5000, P=64, E=300, D=130)
    work["larger supports"] = lambda: check_problem(ops, reference, big)
    work["the same bits"] = lambda: check_bits(ops, big, device)
    work["refusals"] = lambda: check_refusals(device)
    if device == "cuda":

        def whole() -> str | None:
            return check_problem(ops, reference, big)

        work["a float32 product"] = lambda: _with("SALTLM_CUDA_PRODUCT", "float32", whole)
        work["with TF32 allowed"] = lambda: _with("SALTLM_CUDA_PRODUCT", "float32", lambda: _with_tf32(whole))
        work["many blocks"] = lambda: _with("SALTLM_CUDA_BUFFER_MB", "1", whole)
    return {name: _caught(name, check) for name, check in work.items()}


def _with(variable: str, value: str, check) -> str | None:
    """Run a check with an environment variable set."""
    os.environ[variable] = value
    try:
        return check()
    finally:
        del os.environ[variable]


def _with_tf32(check) -> str | None:
    """Run a check with TF32 products allowed."""
    torch.set_float32_matmul_precision("high")
    try:
        return check()
    finally:
        torch.set_float32_matmul_precision("highest")


def _caught(name: str, check) -> str | None:
    """Run a check and print its result; an exception is a fault."""
    try:
        fault = check()
    except Exception as error:  # one failing check must not hide the others
        fault = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    print(f"  {name}: {fault or 'ok'}", flush=True)
    return fault
