"""Laws of sparsemax_support, for every implementation and device at hand."""

from __future__ import annotations

import platform

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from operator_problems import (
    IMPLEMENTATIONS,
    PRODUCTS,
    Runner,
    auxiliaries,
    clustered,
    cosines,
    dense,
    entries,
    normal,
    projected,
    threads,
)

from saltlm.errors import InputError
from saltlm.operators import ops, reference

LAWS = settings(deadline=None, max_examples=25)


@pytest.fixture(params=IMPLEMENTATIONS + PRODUCTS, ids="-".join, scope="module")
def runner(request) -> Runner:
    return Runner(*request.param)


@given(auxiliaries())
@LAWS
def test_weights_are_the_exact_sparsemax(runner: Runner, problem) -> None:
    new, anchors = problem
    support = runner.support(new, anchors)
    weights = dense(support, len(anchors))
    assert (support.weights > 0).all()
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(len(new), dtype=torch.float64), rtol=0, atol=1e-12)
    expected = torch.stack([torch.from_numpy(projected(row)) for row in cosines(new, anchors).numpy()])
    torch.testing.assert_close(weights, expected, rtol=0, atol=1e-10)


@given(auxiliaries())
@LAWS
def test_nearest_come_first_and_ties_by_position(runner: Runner, problem) -> None:
    new, anchors = problem
    anchors = torch.cat([anchors, anchors])  # ties to the last bit; other equal weights may hide different cosines
    support = runner.support(new, anchors)
    for row in range(len(new)):
        weights, ids = entries(support, support.weights, row), entries(support, support.ids, row).tolist()
        assert (weights.diff() <= 0).all()
        assert len(set(ids)) == len(ids)
        for at, twin in enumerate(ids):
            first = twin - len(anchors) // 2
            assert first < 0 or first in ids[:at], (row, ids)


@given(auxiliaries(), st.integers(0, 10**6))
@LAWS
def test_permuting_the_anchors_renumbers_the_support(runner: Runner, problem, seed: int) -> None:
    new, anchors = problem
    order = torch.randperm(len(anchors), generator=torch.Generator().manual_seed(seed))
    plain, permuted = runner.support(new, anchors), runner.support(new, anchors[order])
    torch.testing.assert_close(dense(permuted, len(anchors)), dense(plain, len(anchors))[:, order], rtol=0, atol=1e-12)


@given(auxiliaries(), st.integers(-60, 60), st.integers(-60, 60))
@LAWS
def test_scaling_by_powers_of_two_changes_no_bit(runner: Runner, problem, up: int, down: int) -> None:
    new, anchors = problem
    plain, scaled = runner.support(new, anchors), runner.support(new * 2.0**up, anchors * 2.0**down)
    assert torch.equal(plain.ids, scaled.ids)
    torch.testing.assert_close(plain.weights, scaled.weights, rtol=0, atol=0 if runner.name == "compiled" else 1e-13)


@given(auxiliaries(), st.integers(1, 12))
@LAWS
def test_a_cap_keeps_the_nearest_with_their_own_sparsemax(runner: Runner, problem, cap: int) -> None:
    new, anchors = problem
    plain, capped = runner.support(new, anchors), runner.support(new, anchors, max_support=cap)
    for row in range(len(new)):
        ids, all_ids = entries(capped, capped.ids, row), entries(plain, plain.ids, row)
        assert torch.equal(ids, all_ids[:cap])
        kept = cosines(new[row : row + 1], anchors[ids.long()])[0].numpy()
        torch.testing.assert_close(
            entries(capped, capped.weights, row), torch.from_numpy(projected(kept)), rtol=0, atol=1e-10
        )


@pytest.mark.parametrize("anchors", [1, 63, 64, 65, 1000])
def test_the_support_can_be_all_anchors(runner: Runner, anchors: int) -> None:
    new, others = 1 + 1e-4 * normal(0, 3, 20), 1 + 1e-4 * normal(1, anchors, 20)
    support = runner.support(new, others)
    assert support.offsets.diff().tolist() == [anchors] * 3
    expected = reference.sparsemax_support(new, others)
    assert torch.equal(support.ids.long().sort().values, expected[1].long().sort().values)
    torch.testing.assert_close(dense(support, anchors).sum(dim=1), torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_every_dtype_and_any_layout(runner: Runner, dtype: torch.dtype) -> None:
    new, anchors = clustered(0, 40, 30).to(dtype), clustered(1, 700, 30).to(dtype)
    expected = reference.sparsemax_support(new.double(), anchors.double())
    for a, b in ((new, anchors), (new.T.contiguous().T, torch.cat([anchors, anchors], dim=1)[:, ::1][:, :30])):
        support = runner.support(a, b)
        assert torch.equal(support.ids, expected[1])
        torch.testing.assert_close(support.weights, expected[2], rtol=0, atol=1e-12)


def test_same_bits_for_any_threads_and_batches(runner: Runner) -> None:
    new, anchors = clustered(0, 150, 50), clustered(1, 3000, 50)
    anchors[17] = anchors[1700]
    whole = runner.support(new, anchors)
    with threads(2):
        assert _same(whole, runner.support(new, anchors))
    for step in (1, 7, 64) if runner.device_name != "emulated" else (64,):  # slow, and pays for the anchors each time
        parts = [runner.support(new[i : i + step], anchors) for i in range(0, 150, step)]
        assert torch.equal(torch.cat([p.ids for p in parts]), whole.ids)
        if runner.name == "compiled":  # the reference's float64 product may round differently for other shapes
            assert torch.equal(torch.cat([p.weights for p in parts]), whole.weights)


def _same(one: ops.Support, other: ops.Support) -> bool:
    return all(torch.equal(getattr(one, key), getattr(other, key)) for key in ("offsets", "ids", "weights"))


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_no_product_shows_in_the_result(runner: Runner, precision: str) -> None:
    # Neither the default product of the machine nor another one, at any precision setting of torch.
    new, anchors = clustered(0, 60, 40), clustered(1, 900, 40)
    anchors[[3, 500]] = 0
    plain, before = Runner(runner.name, runner.device_name).support(new, anchors), torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert _same(plain, runner.support(new, anchors))
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(("rows", "anchors", "width"), [(0, 5, 3), (4, 0, 3), (0, 0, 3), (2, 3, 0)])
def test_empty_sides_give_empty_supports(runner: Runner, rows: int, anchors: int, width: int) -> None:
    support = runner.support(torch.zeros(rows, width), torch.zeros(anchors, width))
    assert support.offsets.tolist() == [0] * (rows + 1)
    assert support.ids.numel() == support.weights.numel() == 0


@pytest.mark.parametrize("bad", [0.0, float("nan"), float("inf"), -float("inf")])
def test_rows_without_a_direction_are_left_out(runner: Runner, bad: float) -> None:
    new, anchors = normal(0, 6, 4), normal(1, 30, 4)
    new[2], anchors[5] = bad, bad
    anchors[9, 1] = bad if bad else anchors[9, 1]
    support = runner.support(new, anchors)
    good = [i for i in range(30) if anchors[i].isfinite().all() and anchors[i].any()]
    expected = runner.support(new, anchors[good])
    assert torch.equal(support.offsets, expected.offsets)
    assert torch.equal(support.ids.long(), torch.tensor(good)[expected.ids.long()])
    assert entries(support, support.ids, 2).numel() == 0
    torch.testing.assert_close(support.weights, expected.weights, rtol=0, atol=1e-12)


def test_a_threshold_in_the_thick_of_the_cosines(runner: Runner) -> None:
    # Hundreds of anchors lie nearer to the threshold than any approximate product is to the cosines.
    new, anchors = 1 + 0.04 * normal(0, 8, 20), 1 + 0.04 * normal(1, 5000, 20)
    support, expected = runner.support(new, anchors), reference.sparsemax_support(new, anchors)
    assert 1000 < support.offsets.diff().min() and support.offsets.diff().max() < 4900
    assert torch.equal(support.offsets, expected[0])
    weights = ops.Support(offsets=expected[0], ids=expected[1], weights=expected[2])
    torch.testing.assert_close(dense(support, 5000), dense(weights, 5000), rtol=0, atol=1e-12)


def test_roundings_that_all_err_to_one_side(runner: Runner) -> None:
    # Coordinates a hair below or above the middle of two bfloat16 values, so that every rounding takes or gives nearly all
    # it can: in that product the anchors at +1e-6 come out at -0.004 and those at -1e-6 at +0.004, the threshold between.
    half, hair, pairs, each = 2.0**-4 * (1 + 2.0**-8), 2.0**-20, 125, 20
    row = torch.zeros(1, 2 * pairs + 2, dtype=torch.float64)
    row[:, : 2 * pairs] = half * (1 - hair)
    row[:, -2] = (1 - row.square().sum()).sqrt()
    anchors = torch.zeros(2 * each, row.shape[1], dtype=torch.float64)
    tilt = torch.tensor([-hair] * each + [hair] * each, dtype=torch.float64)[:, None]
    anchors[:, :pairs], anchors[:, pairs : 2 * pairs] = half * (1 + tilt), -half * (1 - tilt)
    targets = torch.tensor([1e-6] * each + [-1e-6] * each, dtype=torch.float64) * (1 + torch.arange(2 * each) / 1e4)
    anchors[:, -2] = (targets - anchors @ row[0]) / row[0, -2]
    anchors[:, -1] = (1 - anchors.square().sum(dim=1)).sqrt()
    anchors = torch.cat([anchors, row])
    cheap = (row.bfloat16() @ anchors.bfloat16().T).double()
    assert cheap[0, :each].max() < -0.003 and cheap[0, each:-1].min() > 0.003
    support = runner.support(row, anchors)
    assert support.ids.tolist() == [2 * each, *reversed(range(each))]
    expected = torch.from_numpy(projected(cosines(row, anchors)[0].numpy()))
    torch.testing.assert_close(dense(support, len(anchors))[0], expected, rtol=0, atol=1e-12)


@given(st.integers(0, 10**5), st.sampled_from([3, 31, 33, 100]), st.integers(-60, 60))
@LAWS
def test_cosines_closer_than_the_product_can_tell(runner: Runner, seed: int, width: int, exponent: int) -> None:
    # Sixty 0.0001 apart, the threshold (0.3985 or so) among them, on rows of any length.
    new = torch.nn.functional.normalize(normal(seed, 1, width, dtype=torch.float64), dim=1)
    others = normal(seed + 1, 63, width, dtype=torch.float64)
    others = torch.nn.functional.normalize(others - (others @ new.T) * new, dim=1)
    near = torch.cat([torch.full((3,), 0.7), torch.linspace(0.397, 0.403, 60)]).double()[:, None]
    anchors = (near * new + (1 - near.square()).sqrt() * others).float()
    new = (new * 2.0**exponent).float()
    support, expected = runner.support(new, anchors), reference.sparsemax_support(new, anchors)
    assert 3 < len(expected[1]) < 63
    assert torch.equal(support.ids, expected[1])
    torch.testing.assert_close(support.weights, expected[2], rtol=0, atol=1e-12)


def test_only_negative_cosines_still_have_a_support(runner: Runner) -> None:
    # A stray zero column would be nearer than every anchor here.
    anchors = -torch.eye(3) + 0.1
    anchors = torch.cat([anchors, torch.zeros(1, 3)])
    support = runner.support(torch.ones(1, 3) * 5, anchors)
    assert sorted(support.ids.tolist()) == [0, 1, 2]  # equal but for the rounding of different orders


def test_extreme_scales_of_float64(runner: Runner) -> None:
    new, anchors = normal(0, 4, 6, dtype=torch.float64), normal(1, 20, 6, dtype=torch.float64)
    plain, scaled = runner.support(new, anchors), runner.support(new * 2.0**900, anchors * 2.0**-900)
    assert torch.equal(plain.ids, scaled.ids)
    torch.testing.assert_close(plain.weights, scaled.weights, rtol=0, atol=1e-13)


@pytest.mark.parametrize("product", ["int16", "float32", "bfloat16"])
@pytest.mark.parametrize("count", [1, 2])
def test_rows_are_left_out_once_supports_hold_enough(product: str, count: int, monkeypatch) -> None:
    if ops.backend("cpu").name != "compiled":
        pytest.skip("the reference gives all rows")
    if product == "int16" and platform.machine().lower() not in ("x86_64", "amd64"):
        pytest.skip("a product of x86-64")
    monkeypatch.setenv("SALTLM_CPU_PRODUCT", product)
    new, anchors = clustered(0, 400, 12), clustered(1, 300, 12)
    new[0] = 0
    whole = ops.sparsemax_support(new, anchors)
    for max_entries in (1, 40, 700, 10**6):
        with threads(count):
            some = ops._supports(new, anchors, 0, max_entries)
        row_count, entry_count = len(some.offsets) - 1, len(some.ids)
        assert row_count >= 1 and torch.equal(some.offsets, whole.offsets[: row_count + 1])
        assert torch.equal(some.ids, whole.ids[:entry_count]) and torch.equal(some.weights, whole.weights[:entry_count])
        if count == 1:  # one thread takes rows in turn, so it stops at once
            assert row_count == len(new) or entry_count >= max_entries > whole.offsets[row_count - 1]


def test_chunks_are_the_whole_in_parts(runner: Runner, monkeypatch) -> None:
    new, anchors = clustered(0, 90, 12).to(runner.device), clustered(1, 60, 12).to(runner.device)
    whole = runner.support(new, anchors, max_support=20)
    monkeypatch.setattr(ops, "_MAX_ENTRIES", 150)
    with runner.running():
        parts = list(ops.support_chunks(new, anchors, max_support=20))
    assert len(parts) >= 3
    assert torch.equal(torch.cat([part.ids for part in parts]).cpu(), whole.ids)
    torch.testing.assert_close(torch.cat([part.weights for part in parts]).cpu(), whole.weights, rtol=1e-12, atol=1e-12)
    assert torch.cat([part.offsets.diff() for part in parts]).tolist() == whole.offsets.diff().tolist()
    with pytest.raises(InputError, match="sparsemax_support, max_support"):
        ops.support_chunks(new, anchors, max_support=0)
