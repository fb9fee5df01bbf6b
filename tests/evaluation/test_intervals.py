"""Intervals: equal to the exact bootstrap where all resamples can be listed, of the right width and coverage elsewhere."""

from __future__ import annotations

import itertools
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saltlm.errors import InputError
from saltlm.evaluation.evaluate import Evaluation
from saltlm.evaluation.intervals import Interval, Intervals, PairedDifference, intervals, ratio_intervals

SIZES = st.lists(st.integers(1, 500), min_size=2, max_size=12)


def evaluation(bits, sizes, name: str = "m") -> Evaluation:
    return Evaluation(
        model=name,
        document_nats=np.array(bits) * np.log(2),
        document_bytes=np.array(sizes),
        document_tokens=np.array(sizes),
        unknown_tokens=0,
        lossy_documents=0,
        max_length=8,
        stride=4,
        device="cpu",
        dtype="float32",
        seconds=1.0,
    )


def one(bits, sizes, *, confidence: float = 0.95, seed: int = 0, draws: int | None = None) -> Interval:
    options = {"confidence": confidence, "seed": seed, "draws": draws}
    (interval,) = ratio_intervals(np.array(bits, dtype=float)[:, None], np.array(sizes), **options)
    return interval


def all_resamples(bits, sizes) -> np.ndarray:
    """The ratio in each of the n**n equally likely resamples, ascending."""
    drawn = np.array(list(itertools.product(range(len(sizes)), repeat=len(sizes))))
    return np.sort(np.array(bits)[drawn].sum(1) / np.array(sizes)[drawn].sum(1))


def bca_shares(bits, sizes, confidence: float) -> list[float]:
    """Quantiles of the exact bootstrap distribution at which the ends lie, by the formula of Efron."""
    bits, sizes, normal = np.array(bits, dtype=float), np.array(sizes, dtype=float), NormalDist()
    values, estimate = all_resamples(bits, sizes), bits.sum() / sizes.sum()
    z0 = normal.inv_cdf(np.mean(values < estimate - 1e-12) + np.mean(np.abs(values - estimate) <= 1e-12) / 2)
    jackknife = np.array([np.delete(bits, i).sum() / np.delete(sizes, i).sum() for i in range(len(bits))])
    off = jackknife.mean() - jackknife
    a = (off**3).sum() / (6 * (off**2).sum() ** 1.5)
    tails = [normal.inv_cdf(tail) for tail in ((1 - confidence) / 2, (1 + confidence) / 2)]
    return [normal.cdf(z0 + (z0 + tail) / (1 - a * (z0 + tail))) for tail in tails]


def test_the_interval_of_two_documents_spans_both() -> None:
    interval = one([2.0, 6.0], [1, 1])
    assert (interval.estimate, interval.low, interval.high) == (4.0, 2.0, 6.0)


def test_the_ends_are_those_of_the_exact_bootstrap_distribution() -> None:
    bits, sizes = [310.0, 900.0, 150.0, 1330.0, 620.0, 480.0], [100, 260, 70, 350, 230, 140]
    exact = all_resamples(bits, sizes)
    for confidence in (0.5, 0.8, 0.95):
        interval = one(bits, sizes, confidence=confidence, draws=200_000)
        for end, share in zip((interval.low, interval.high), bca_shares(bits, sizes, confidence), strict=True):
            # Four standard errors of a share among 200,000 draws; the distribution is steps, so values are bracketed.
            slack = 4 * np.sqrt(0.25 / 200_000)
            assert np.quantile(exact, share - slack) - 1e-9 <= end <= np.quantile(exact, share + slack) + 1e-9


def test_many_documents_of_one_size_give_the_normal_interval() -> None:
    bits = np.random.default_rng(3).gamma(9.0, 1 / 3.0, size=2000)
    interval = one(bits, np.ones(2000, dtype=int))
    half = 1.959964 * bits.std() / np.sqrt(2000)
    assert interval.low == pytest.approx(interval.estimate - half, abs=0.05 * half)
    assert interval.high == pytest.approx(interval.estimate + half, abs=0.05 * half)


def test_intervals_hold_the_true_value_about_as_often_as_they_say() -> None:
    generator, covered = np.random.default_rng(0), {0.8: 0, 0.95: 0}
    for seed in range(300):
        sizes = generator.integers(200, 1500, 40)
        bits = sizes * generator.gamma(20, 3 / 20, 40)  # 3 bits per byte whatever the size
        for share in covered:
            interval = one(bits, sizes, confidence=share, seed=seed, draws=1000)
            covered[share] += interval.low <= 3 <= interval.high
    # 300 trials: two standard errors are 0.05 at 0.8 and 0.03 at 0.95; 40 documents make intervals a little short.
    assert 0.72 < covered[0.8] / 300 < 0.86 and 0.89 < covered[0.95] / 300 < 0.98


@given(sizes=SIZES, seed=st.integers(0, 2**20), data=st.data())
def test_intervals_are_bounded_and_scale_and_ignore_empty_documents(
    sizes: list[int], seed: int, data: st.DataObject
) -> None:
    bits = data.draw(st.lists(st.floats(0.1, 3000), min_size=len(sizes), max_size=len(sizes)))
    interval = one(bits, sizes, seed=seed, draws=300)
    ratios = np.array(bits) / np.array(sizes)
    slack = 1e-9 * ratios.max()
    assert ratios.min() - slack <= interval.low <= interval.high <= ratios.max() + slack
    assert one(bits, sizes, seed=seed, draws=300) == interval, "the same seed gives the same interval"
    doubled = one(np.array(bits) * 2, sizes, seed=seed, draws=300)
    assert (doubled.low, doubled.high) == pytest.approx((2 * interval.low, 2 * interval.high), rel=1e-9)
    with_empty = one([*bits, 0.0], [*sizes, 0], seed=seed, draws=300)
    assert with_empty == interval, "an empty document says nothing"
    wider = one(bits, sizes, seed=seed, draws=300, confidence=0.99)
    assert wider.low <= interval.low and interval.high <= wider.high


@given(sizes=SIZES, rate=st.floats(0.1, 20))
def test_the_interval_of_equal_documents_has_no_width(sizes: list[int], rate: float) -> None:
    interval = one([size * rate for size in sizes], sizes, draws=200)
    assert (interval.low, interval.high) == pytest.approx((rate, rate), rel=1e-9)


def test_another_seed_moves_the_ends_a_little() -> None:
    bits, sizes = np.random.default_rng(1).gamma(5, 40, 30), np.full(30, 100)
    ends = {(interval.low, interval.high) for interval in (one(bits, sizes, seed=seed) for seed in range(4))}
    assert len(ends) == 4
    lows = [low for low, _ in ends]
    assert max(lows) - min(lows) < 0.05 * (one(bits, sizes).high - one(bits, sizes).low)


# ------------------------------------------------------------------------------------------------ models side by side


def test_a_paired_interval_shows_a_difference_that_single_intervals_hide() -> None:
    generator = np.random.default_rng(5)
    sizes = generator.integers(500, 900, 25)
    hard = sizes * generator.uniform(1, 5, 25)  # documents differ much, models little but always the same way
    better, worse = evaluation(hard, sizes), evaluation(hard * 1.02, sizes)
    noise = evaluation(hard * generator.normal(1, 0.05, 25), sizes)
    result = intervals({"better": better, "worse": worse, "noise": noise})
    one_, two = result.models["better"], result.models["worse"]
    assert one_.low < two.low < one_.high < two.high, "their intervals overlap"
    pairs = {(pair.first, pair.second): pair for pair in result.comparisons}
    assert not pairs["better", "worse"].tie and pairs["better", "worse"].difference.high < 0
    assert pairs["better", "noise"].tie
    assert set(result.best()) >= {"better", "noise"} and "worse" not in result.best()
    assert result.models["worse"].estimate == pytest.approx(worse.bits_per_byte)
    assert pairs["better", "worse"].difference.estimate == pytest.approx(better.bits_per_byte - worse.bits_per_byte)


def test_a_model_ties_with_itself_exactly() -> None:
    this = evaluation([300.0, 500.0, 100.0], [100, 120, 70])
    (pair,) = intervals({"a": this, "b": this}).comparisons
    assert pair.tie and (pair.difference.estimate, pair.difference.low, pair.difference.high) == (0, 0, 0)


def test_a_comparison_reads_the_same_from_both_sides() -> None:
    pair = PairedDifference(
        first="a", second="b", difference=Interval(estimate=-0.2, low=-0.3, high=-0.1, confidence=0.95)
    )
    assert pair.to_json("a") == {"model": "b", "difference": -0.2, "low": -0.3, "high": -0.1, "tie": False}
    assert pair.to_json("b") == {"model": "a", "difference": 0.2, "low": 0.1, "high": 0.3, "tie": False}
    renamed = Intervals(models={}, comparisons=(pair,)).renamed({"a": "x", "b": "y"}).comparisons[0]
    assert (renamed.first, renamed.second, renamed.difference) == ("x", "y", pair.difference)


def test_one_document_has_no_interval() -> None:
    for sizes in ([100], [100, 0]):
        result = intervals({"a": evaluation([1.0] * len(sizes), sizes)})
        assert result.models == {} and result.comparisons == () and result.best() == []


def test_bad_options() -> None:
    this = evaluation([1.0, 2.0], [1, 2])
    for options, words in (
        ({"confidence": 1.0}, "confidence"),
        ({"confidence": 0.0}, "confidence"),
        ({"seed": -1}, "seed"),
    ):
        with pytest.raises(InputError, match=words):
            intervals({"a": this}, **options)
    with pytest.raises(ValueError, match="different documents"):
        intervals({"a": this, "b": evaluation([1.0, 2.0], [1, 3])})
