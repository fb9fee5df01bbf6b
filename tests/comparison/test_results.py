"""The results of a comparison: steps to a level, rank correlations, the best method and its ties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saltlm.comparison.config import Cell
from saltlm.comparison.results import spearman, steps_to_level, summarize

CURVES = st.lists(st.floats(0, 10), min_size=1, max_size=8)


@given(CURVES, st.floats(0, 10))
def test_steps_to_a_level_lie_between_the_evaluations_around_it(values, level):
    points = [(10 * i, value) for i, value in enumerate(values)]
    steps = steps_to_level(points, level)
    below = [step for step, value in points if value <= level]
    if not below:
        assert steps is None
    elif steps is not None:
        assert max(0, below[0] - 10) <= steps <= below[0]
        assert (
            np.interp(steps, *zip(*points, strict=True)) == pytest.approx(min(level, max(level, values[0])), abs=1e-6)
            or not below[0]
        )


@given(st.lists(st.integers(-50, 50), min_size=3, max_size=12), st.randoms(use_true_random=False))
def test_rank_correlation(values, random):
    other = random.sample(values, len(values))
    if len(set(values)) == 1:
        assert spearman(values, other) is None
        return
    assert spearman(values, [v**3 for v in values]) == 1 and spearman(values, [-v for v in values]) == -1
    assert spearman(values, other) == spearman(other, values) and -1 <= spearman(values, other) <= 1
    if len(set(values)) == len(values):
        ranks = [np.argsort(np.argsort(part)) for part in (values, other)]
        assert spearman(values, other) == pytest.approx(np.corrcoef(*ranks)[0, 1])


def run(method: str, seed: int, costs, **more) -> dict:
    sizes = np.full(len(costs), 100)
    end = float(np.sum(costs) / sizes.sum())
    return {
        "method": method,
        "seed": seed,
        "bits_per_byte": [[0, 4.0], [10, end]],
        "source_bits_per_byte": [],
        "diverged": None,
        "document_nats": (np.asarray(costs) * np.log(2)).tolist(),
        "document_bytes": sizes.tolist(),
        "self_check": None,
        "tokens_per_byte": 0.3,
        "seq_length": 8,
        "training_bytes": 5,
        "seconds": 1.0,
        **more,
    }


def test_methods_within_the_interval_or_with_disagreeing_seeds_tie():
    random = np.random.default_rng(0)
    hard = random.uniform(200, 400, size=40)  # documents differ much more than methods do
    swing = np.tile([-1.0, 1.0], 20)
    noise = {seed: random.normal(0, 0.5, size=40) for seed in (0, 1)}
    costs = {
        "original": lambda seed: hard + 50,
        "best": lambda seed: hard,
        "same": lambda seed: hard + swing + 0.05,
        "worse": lambda seed: hard + 3 + noise[seed],
        "torn": lambda seed: hard + (8 if seed else -1),
    }
    cells = [Cell(name, None) for name in costs]
    summary = summarize(cells, [run(name, seed, cost(seed)) for name, cost in costs.items() for seed in (0, 1)], 0.95)
    assert summary["best"] == "best" and set(summary["ties"]) == {"same", "torn"}
    worse = summary["methods"][3]["difference"]
    assert worse["low"] < worse["estimate"] < worse["high"] and worse["estimate"] == pytest.approx(0.03, abs=0.005)
    torn = summary["methods"][4]["difference"]
    assert torn["low"] > 0 and torn["by_seed"][0] < 0 < torn["by_seed"][1]


def test_all_methods_tie_on_a_single_document():
    cells = [Cell(name, None) for name in ("original", "a", "b")]
    summary = summarize(cells, [run("original", 0, [900]), run("a", 0, [300]), run("b", 0, [400])], 0.95)
    assert summary["best"] == "a" and summary["ties"] == ["b"] and summary["methods"][2]["difference"]["low"] is None


def test_rank_correlations_of_the_self_check_and_the_probes():
    checks = [
        {"score": 1.0 - i, "relative_error": 0.5 + 0.1 * i, "cosine": 0.9 - 0.1 * i, "rank": 10 * (i + 1)}
        for i in range(4)
    ]
    runs = [run("original", 0, [900, 900])]
    runs += [run(f"m{i}", 0, [300 + 10 * i, 310 + 10 * i], self_check=checks[i]) for i in range(4)]
    for i in range(4):
        runs[i + 1]["bits_per_byte"][0][1] = 5.0 - i
    cells = [Cell("original", None), *(Cell(f"m{i}", None) for i in range(4))]
    correlations = {(e["first"], e["second"]): e["rho"] for e in summarize(cells, runs, 0.95)["rank_correlations"]}
    assert correlations["step 0", "end"] == -1 and correlations["end", "self-check cosine"] == 1
    assert correlations["step 0", "self-check relative_error"] == -1 and correlations["end", "self-check score"] == 1
    assert len(correlations) == 9
