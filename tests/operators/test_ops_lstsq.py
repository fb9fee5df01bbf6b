"""Laws of support_lstsq, combine and salt_rows, for every implementation and device at hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from operator_problems import (
    IMPLEMENTATIONS,
    Runner,
    clustered,
    conditioned,
    entries,
    full_support,
    normal,
    regressions,
    threads,
)

from saltlm.operators import ops, reference

LAWS = settings(deadline=None, max_examples=25)
FULL, ILL, DEFICIENT, NONE, NOT_FINITE = range(5)


@pytest.fixture(params=IMPLEMENTATIONS, ids="-".join, scope="module")
def runner(request) -> Runner:
    return Runner(*request.param)


def _oracle(new, anchors, support, ridge=0.0, center=False) -> ops.Solution:
    parts = reference.support_lstsq(new.double(), anchors.double(), support.offsets, support.ids, ridge, center)
    return ops.Solution(coefficients=parts[0], rank=parts[1], residual=parts[2], status=parts[3])


def _condition(anchors, support, row, center) -> float:
    rows = anchors[entries(support, support.ids, row).long()].double()
    values = torch.linalg.svdvals(rows - rows.mean(dim=0) if center else rows)
    values = values[: min(len(rows) - center, rows.shape[1])]
    return float(values[0] / values[-1]) if len(values) else 1.0


@given(regressions(), st.booleans(), st.sampled_from([None, 1e-3, 0.5]))
@LAWS
def test_equal_to_the_reference(runner: Runner, problem, center: bool, ridge: float | None) -> None:
    new, anchors, support = problem
    solution = runner.lstsq(new, anchors, support, ridge=ridge, center=center)
    expected = _oracle(new, anchors, support, ridge or 0.0, center)
    assert torch.equal(solution.rank, expected.rank)
    for row in range(len(new)):
        condition = _condition(anchors, support, row, center)
        if condition < 1e4 / 3:
            assert solution.status[row] == expected.status[row] == FULL
        a, b = entries(support, solution.coefficients, row), entries(support, expected.coefficients, row)
        # 1e-9 where the problem allows it: float64's unit times the condition number, for both sides.
        assert (a - b).norm() <= max(1e-9, 1e-14 * condition**2) * (1 + b.norm())
    torch.testing.assert_close(solution.residual, expected.residual, rtol=1e-5, atol=1e-6)


@given(st.integers(0, 10**6), st.floats(0, 7), st.integers(1, 90), st.booleans(), st.sampled_from([None, 1e-3]))
@LAWS
def test_float32_rows_get_what_float64_ones_do(
    runner: Runner, seed: int, digits: float, size: int, center: bool, ridge: float | None
) -> None:
    # Whatever precision a kernel begins with for float32, and however far the condition lets it get with that.
    width = 96
    left, right = (torch.linalg.qr(normal(seed + i, width, size, dtype=torch.float64)).Q for i in range(2))
    values = torch.logspace(0, -digits, size, dtype=torch.float64)
    anchors = (left[:size] @ torch.diag(values) @ right.T).float()
    new, support = normal(seed + 2, 2, width), full_support(list(range(size)), list(range(size))[::-1])
    single = runner.lstsq(new, anchors, support, ridge=ridge, center=center)
    double = runner.lstsq(new.double(), anchors.double(), support, ridge=ridge, center=center)
    assert torch.equal(single.rank, double.rank)
    condition = _condition(anchors, support, 0, center)
    if not 1e4 / 3 < condition < 3e4:
        assert torch.equal(single.status, double.status)
    for row in range(2):
        a, b = entries(support, single.coefficients, row), entries(support, double.coefficients, row)
        assert (a - b).norm() <= max(1e-9, 1e-14 * condition**2) * (1 + b.norm())
    torch.testing.assert_close(single.residual, double.residual, rtol=1e-5, atol=1e-6)


@given(regressions())
@LAWS
def test_the_residual_is_orthogonal_to_the_support(runner: Runner, problem) -> None:
    new, anchors, support = problem
    solution = runner.lstsq(new, anchors, support)
    for row in range(len(new)):
        rows = anchors[entries(support, support.ids, row).long()].double()
        c = entries(support, solution.coefficients, row)
        rest = new[row].double() - c @ rows
        scale = rows.norm() * (new[row].norm() + c.norm() * rows.norm())
        assert (rows @ rest).norm() <= 1e-12 * float(scale)
        assert float(solution.residual[row]) == pytest.approx(float(rest.norm() / new[row].norm()), abs=1e-6)


@given(regressions())
@LAWS
def test_a_row_in_the_span_is_recovered(runner: Runner, problem) -> None:
    _, anchors, support = problem
    sizes = support.offsets.diff()
    planted = normal(5, support.ids.numel(), dtype=torch.float64)
    new = torch.stack(
        [
            entries(support, planted, row) @ anchors[entries(support, support.ids, row).long()].double()
            for row in range(len(sizes))
        ]
    )
    solution = runner.lstsq(new, anchors.double(), support)
    assert (solution.residual < 1e-6).all()
    for row, size in enumerate(sizes.tolist()):
        if size <= anchors.shape[1]:  # otherwise many coefficients give the same row
            bound = max(1e-9, 1e-13 * _condition(anchors, support, row, False))
            difference = entries(support, solution.coefficients, row) - entries(support, planted, row)
            assert difference.norm() <= bound * (1 + entries(support, planted, row).norm())


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("size", [24, 25, 40, 90])
def test_a_hidden_linear_map_is_recovered(runner: Runner, size: int, center: bool) -> None:
    # With K >= E (K > E centred) neighbours, a row that is a linear (affine) image of its PLM row comes out exactly.
    width, hidden = 24 - center, normal(0, 24 - center, 10, dtype=torch.float64)
    new, anchors = normal(1, 3, width, dtype=torch.float64), normal(2, 90, width, dtype=torch.float64)
    shift = 3.0 * center
    support = full_support(*[torch.randperm(90)[:size].tolist() for _ in range(3)])
    solution = runner.lstsq(new, anchors, support, center=center)
    rows = runner.combine(support, solution.coefficients, anchors @ hidden + shift)
    torch.testing.assert_close(rows, new @ hidden + shift, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("case", ["wide", "duplicated", "low rank", "low rank wide", "all"])
def test_rank_deficient_and_wide_problems_have_least_norm(runner: Runner, case: str) -> None:
    anchors, new = normal(1, 60, 12, dtype=torch.float64), normal(2, 2, 12, dtype=torch.float64)
    ids = {
        "wide": range(30),
        "duplicated": range(9),
        "low rank": range(8),
        "low rank wide": range(40),
        "all": range(60),
    }
    if case == "duplicated":
        anchors[[3, 4, 8]] = anchors[0].clone()
    if case.startswith("low rank"):
        anchors = normal(3, 60, 4, dtype=torch.float64) @ normal(4, 4, 12, dtype=torch.float64)
    support = full_support(*[list(ids[case])] * 2)
    solution = runner.lstsq(new, anchors, support)
    for row in range(2):
        rows = anchors[list(ids[case])].numpy()
        expected, _, rank, _ = np.linalg.lstsq(rows.T, new[row].numpy(), rcond=None)
        c = entries(support, solution.coefficients, row).numpy()
        np.testing.assert_allclose(c, expected, rtol=1e-9, atol=1e-11)
        np.testing.assert_allclose(c, new[row].numpy() @ np.linalg.pinv(rows), rtol=1e-9, atol=1e-11)
        assert solution.rank[row] == rank
        assert solution.status[row] == (FULL if case in ("wide", "all") else DEFICIENT)


@given(regressions())
@LAWS
def test_centring_is_an_intercept(runner: Runner, problem) -> None:
    new, anchors, support = problem
    plain = runner.lstsq(new, anchors, support, center=True)
    # In float64, because float32 would round the moved anchors, and their condition would magnify that.
    shifted = runner.lstsq(new.double() + 2, anchors.double() + 2, support, center=True)
    for row in range(len(new)):
        c = entries(support, plain.coefficients, row)
        assert float(c.sum()) == pytest.approx(1, abs=1e-9)
        bound = 1e-11 * _condition(anchors, support, row, True) ** 2
        difference = c - entries(support, shifted.coefficients, row)
        assert difference.norm() <= max(1e-9, bound) * (1 + c.norm())


@pytest.mark.parametrize("condition", [1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e8, 1e10, 1e12])
@pytest.mark.parametrize(("size", "width"), [(28, 32), (31, 32), (32, 32), (33, 32), (40, 32), (96, 32)])
def test_accuracy_near_square_or_an_honest_status(runner: Runner, size: int, width: int, condition: float) -> None:
    anchors, new = conditioned(size, size, width, condition), normal(9, 3, width, dtype=torch.float64)
    support = full_support(*[list(range(size))] * 3)
    solution = runner.lstsq(new, anchors, support)
    expected = new @ torch.linalg.pinv(anchors)
    c = torch.stack([entries(support, solution.coefficients, row) for row in range(3)])
    error = ((c - expected).norm(dim=1) / expected.norm(dim=1)).max()
    assert (solution.rank == min(size, width)).all()
    if condition < 3e3:
        assert (solution.status == FULL).all()
    if condition > 3e4:
        assert (solution.status == ILL).all()
    # Both sides lose condition * 2**-53 times a modest factor; nothing may lose its square.
    assert error <= max(1e-10, 1e-14 * condition * size)


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("left_out", [0, 1, 30, 130])
def test_nearly_full_supports_take_the_complement(runner: Runner, left_out: int, center: bool) -> None:
    anchors, new = normal(1, 300, 16) + 1, normal(2, 4, 16)
    order = torch.Generator().manual_seed(left_out)
    support = full_support(*[torch.randperm(300, generator=order)[left_out:].tolist() for _ in range(4)])
    solution, expected = (
        runner.lstsq(new, anchors, support, center=center),
        _oracle(new, anchors, support, center=center),
    )
    torch.testing.assert_close(solution.coefficients, expected.coefficients, rtol=1e-9, atol=1e-12)
    assert torch.equal(solution.status, expected.status)


def test_a_complement_that_cancels_falls_back(runner: Runner) -> None:
    # The few rows left out are a million times the others: their Gram matrix swallows the digits of the rest.
    anchors, new = normal(1, 200, 10), normal(2, 2, 10)
    anchors[:3] *= 1e7
    support = full_support(*[list(range(3, 200))] * 2)
    solution, expected = runner.lstsq(new, anchors, support), _oracle(new, anchors, support)
    torch.testing.assert_close(solution.coefficients, expected.coefficients, rtol=1e-9, atol=1e-12)


def test_statuses_of_rows_without_a_problem(runner: Runner) -> None:
    anchors, new = normal(1, 8, 4), normal(2, 6, 4)
    anchors[5], anchors[6, 2], anchors[7, 0] = 0, float("nan"), float("inf")
    new[4, 1], new[5] = float("inf"), 0
    support = full_support([], [5, 5], [0, 6], [7], [1], [0, 1])
    solution = runner.lstsq(new, anchors, support)
    assert solution.status.tolist() == [NONE, NONE, NOT_FINITE, NOT_FINITE, NOT_FINITE, FULL]
    assert solution.rank.tolist() == [0, 0, 0, 0, 0, 2]
    assert solution.coefficients.abs().max() == 0
    assert solution.residual.tolist() == [1, 1, 1, 1, 1, 0]


@pytest.mark.parametrize("width", [1, 5])
def test_one_centred_anchor_is_copied(runner: Runner, width: int) -> None:
    solution = runner.lstsq(normal(0, 1, width), normal(1, 3, width), full_support([2]), center=True)
    assert (solution.coefficients.tolist(), solution.rank.tolist(), solution.status.tolist()) == ([1.0], [0], [FULL])
    alike = runner.lstsq(normal(0, 1, width), normal(1, 1, width).repeat(3, 1), full_support([0, 1, 2]), center=True)
    torch.testing.assert_close(alike.coefficients, torch.full((3,), 1 / 3, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [5, 12, 30])
def test_every_dtype_and_any_layout(runner: Runner, dtype: torch.dtype, size: int) -> None:
    anchors, new = normal(1, 40, 12).to(dtype), normal(2, 2, 12).to(dtype)
    support = full_support(*[list(range(size))] * 2)
    expected = _oracle(new, anchors, support)
    wider = torch.cat([anchors, anchors], dim=1)[:, :12]
    for a, b in ((new, anchors), (new.T.contiguous().T, wider)):
        c = runner.lstsq(a, b, support).coefficients
        torch.testing.assert_close(c, expected.coefficients, rtol=1e-9, atol=1e-9)
        rows = runner.combine(support, c, wider)
        torch.testing.assert_close(rows, reference.combine(support.offsets, support.ids, c, anchors))


def test_extreme_scales_of_float64(runner: Runner) -> None:
    anchors, new = normal(1, 20, 6, dtype=torch.float64), normal(2, 1, 6, dtype=torch.float64)
    for size in (4, 15):
        support = full_support(list(range(size)))
        plain = runner.lstsq(new, anchors, support).coefficients
        for scale in (2.0**600, 2.0**-600):
            scaled = runner.lstsq(new * scale, anchors * scale, support)
            torch.testing.assert_close(scaled.coefficients, plain, rtol=1e-10, atol=0)
            assert scaled.status.tolist() == [FULL]


def _problem(rows: int = 120) -> tuple[torch.Tensor, ...]:
    return (clustered(0, rows, 30), clustered(1, 900, 30), normal(2, rows, 24), normal(3, 900, 24), normal(4, 900, 17))


def test_rows_are_the_product_of_the_three_operators(runner: Runner) -> None:
    new_aux, anchor_aux, new, anchors, lm = _problem()
    seen: list[tuple[int, int]] = []
    result = runner.rows(
        new_aux, anchor_aux, new, anchors, lm, anchor_output=-lm[:, :3], progress=lambda *at: seen.append(at)
    )
    support = runner.support(new_aux, anchor_aux)
    solution = runner.lstsq(new, anchors, support)
    torch.testing.assert_close(result.rows, runner.combine(support, solution.coefficients, lm), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(result.output_rows, -result.rows[:, :3], rtol=1e-6, atol=1e-6)
    assert torch.equal(result.support_size.long(), support.offsets.diff())
    assert torch.equal(result.status, solution.status)
    assert seen[-1] == (120, 120)
    # per-token pinv, the paper's formula, to the stated accuracy
    for row in range(0, 120, 10):
        ids = entries(support, support.ids, row).long()
        expected = new[row].double() @ (torch.linalg.pinv(anchors[ids].double()) @ lm[ids].double())
        if _condition(anchors, support, row, False) < 1e4:
            assert (result.rows[row] - expected).norm() <= 1e-4 * expected.norm()


@pytest.mark.parametrize("options", [{}, {"center": True, "ridge": 0.01, "max_support": 9}])
def test_same_bits_for_any_threads_and_chunks(runner: Runner, options: dict, monkeypatch) -> None:
    if runner.name == "reference":
        pytest.skip("promised for the compiled operators; stock torch's products round by shape")
    problem = _problem()
    problem[0][[3, 40, 119]] = 0  # without a support
    whole = runner.rows(*problem, **options)
    with threads(2):
        assert torch.equal(whole.rows, runner.rows(*problem, **options).rows)
    for limit in (1, 7, 50) if runner.device_name != "emulated" else (50,):  # slow, and pays for the anchors each time
        monkeypatch.setattr(ops, "_MAX_ROWS", {"cpu": limit, "cuda": limit})
        _same(runner.rows(*problem, **options), whole)
    monkeypatch.undo()
    for max_entries in (1, 25, 300) if runner.device_name != "emulated" else (300,):
        monkeypatch.setattr(ops, "_MAX_ENTRIES", max_entries)
        _same(runner.rows(*problem, **options), whole)


def _same(result: ops.SaltRows, whole: ops.SaltRows) -> None:
    for key, value in vars(whole).items():
        assert value is None or torch.equal(value, getattr(result, key)), key


def test_rows_that_cannot_be_made_are_zero_and_named(runner: Runner) -> None:
    new_aux, anchor_aux, new, anchors, lm = _problem(6)
    new_aux[0], new[1, 3] = 0, float("nan")
    lm[int(runner.support(new_aux, anchor_aux).ids[-1])] = float("inf")
    result = runner.rows(new_aux, anchor_aux, new, anchors, lm, anchor_output=normal(7, 900, 4))
    assert (result.status[0], result.status[1], result.status[5]) == (NONE, NOT_FINITE, NOT_FINITE)
    assert result.rows.isfinite().all()
    assert result.rows[[0, 1, 5]].abs().max() == 0
    assert result.output_rows[[0, 1, 5]].abs().max() == 0


@pytest.mark.parametrize("sizes", [(0, 5), (3, 0), (0, 0)])
def test_empty_sides(runner: Runner, sizes: tuple[int, int]) -> None:
    n, a = sizes
    result = runner.rows(normal(0, n, 3), normal(1, a, 3), normal(2, n, 4), normal(3, a, 4), normal(4, a, 5))
    assert result.rows.shape == (n, 5)
    assert result.status.tolist() == [NONE] * n
