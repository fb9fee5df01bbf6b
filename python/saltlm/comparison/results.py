"""Summary of finished probes: means and spreads, steps to a level, paired differences, rank correlations."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..evaluation.intervals import Interval, ratio_intervals
from .config import ORIGINAL, Cell

# Figures of the self-check, each with the sign by which lower values are better.
SELF_CHECK = {"score": -1, "relative_error": 1, "cosine": -1, "rank": 1}
# Minimum number of methods for a rank correlation.
MIN_RANKED = 3


def steps_to_level(points: Sequence[Sequence[float]], level: float) -> float | None:
    """Number of steps until a curve first reaches a level, by linear interpolation between evaluations.

    Args:
        points: [[step, bits per byte]], in ascending order of steps.
        level: bits per byte.

    Returns:
        A number in [0, last step]; ``None`` if all points are above the level.

    Example:
        >>> steps_to_level([[0, 4.0], [10, 3.0], [20, 2.5]], 3.25)
        7.5
    """
    before: Sequence[float] | None = None
    for step, value in points:
        if value <= level:
            if before is None:
                return float(step)
            return before[0] + (step - before[0]) * (before[1] - level) / (before[1] - value)
        before = (step, value)
    return None


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's rank correlation; equal values get the mean of their ranks.

    Args:
        first: a list of numbers.
        second: a list of as many numbers.

    Returns:
        A number in [-1, 1]; ``None`` for fewer than three numbers, or if all numbers of a list are equal.

    Example:
        >>> spearman([1.0, 2.0, 3.0, 4.0], [10.0, 20.0, 40.0, 30.0])
        0.8
    """
    if len(first) < MIN_RANKED:
        return None
    a, b = (_ranks(np.asarray(values, dtype=np.float64)) for values in (first, second))
    a, b = a - a.mean(), b - b.mean()
    size = float(np.sqrt((a @ a) * (b @ b)))
    return round(float(a @ b) / size, 12) if size else None


def _ranks(values: np.ndarray) -> np.ndarray:
    """Rank of each value, from 0; equal values get the mean of their ranks."""
    below = (values[None, :] < values[:, None]).sum(axis=1)
    same = (values[None, :] == values[:, None]).sum(axis=1)
    return below + (same - 1) / 2


def summarize(cells: Sequence[Cell], results: Sequence[Mapping[str, Any]], confidence: float) -> dict[str, Any]:
    """Summarize the probes of all methods.

    The best method has the lowest mean bits per byte at the end. Another method ties with the best one if the interval of
    their paired difference over held-out documents contains zero (the cost of a document is its mean over seeds), or if the
    seeds disagree about which of the two methods is better.

    Args:
        cells: the cells, in order.
        results: the runs of :func:`~saltlm.comparison.probe.run_cell`, with ``method`` and ``seed``.
        confidence: confidence level of the intervals, in (0, 1).

    Returns:
        ``level`` (bits per byte of the original model before any training), ``best``, ``ties`` (methods that tie with the
        best one), ``methods`` (a dict for each cell) and ``rank_correlations``.
    """
    runs = {cell.label: [run for run in results if run["method"] == cell.label] for cell in cells}
    level = statistics.fmean(run["bits_per_byte"][0][1] for run in runs[ORIGINAL])
    methods = [_method(cell, runs[cell.label], level) for cell in cells]
    ended = [entry for entry in methods if entry["end"] and entry["method"] != ORIGINAL]
    best = min(ended, key=lambda entry: entry["end"]["mean"])["method"] if ended else None
    if best is not None:
        _add_differences(methods, runs, best, confidence)
    ties = [e["method"] for e in methods if e["difference"] and e["difference"]["tie"] and e["method"] != ORIGINAL]
    return {
        "level": level,
        "best": best,
        "ties": ties,
        "methods": methods,
        "rank_correlations": _correlations([e for e in methods if e["method"] != ORIGINAL]),
    }


def _spread(values: Sequence[float]) -> dict[str, float | int | None]:
    """Mean, standard deviation (``None`` for a single seed) and number of seeds."""
    spread = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "spread": spread, "seeds": len(values)}


def _method(cell: Cell, runs: Sequence[Mapping[str, Any]], level: float) -> dict[str, Any]:
    """The summary of one cell, without its difference to the best method."""
    complete = [run for run in runs if not run["diverged"]]
    columns = [[value for _, value in run["bits_per_byte"]] for run in complete]
    steps = [step for step, _ in complete[0]["bits_per_byte"]] if complete else []
    curve = [(step, _spread(values)) for step, values in zip(steps, zip(*columns, strict=True), strict=True)]
    means = [[step, statistics.fmean(values)] for step, values in zip(steps, zip(*columns, strict=True), strict=True)]
    source = {
        name: _spread([run["source_bits_per_byte"][index][1] for run in complete])
        for name, index in (("before", 0), ("after", -1))
        if complete and complete[0]["source_bits_per_byte"]
    }
    checks = [run["self_check"] for run in runs if run["self_check"]]
    return {
        "method": cell.label,
        "diverged": [run["seed"] for run in runs if run["diverged"]],
        "tuning": runs[0].get("tuning"),
        "start": _spread([run["bits_per_byte"][0][1] for run in runs]),
        # None if a seed diverged: the mean over the other seeds would be too good.
        "end": _spread([column[-1] for column in columns]) if len(complete) == len(runs) else None,
        "curve": [[step, spread["mean"], spread["spread"]] for step, spread in curve],
        "steps_to_original": steps_to_level(means, level),
        "source": source or None,
        "self_check": {name: statistics.fmean(check[name] for check in checks) for name in SELF_CHECK}
        if checks
        else None,
        "tokens_per_byte": runs[0]["tokens_per_byte"],
        "seq_length": runs[0]["seq_length"],
        "training_bytes": round(statistics.fmean(run["training_bytes"] for run in runs)),
        "seconds": round(statistics.fmean(run["seconds"] for run in runs), 3),
        "difference": None,
    }


def _add_differences(
    methods: Sequence[dict[str, Any]], runs: Mapping[str, Sequence[Mapping[str, Any]]], best: str, confidence: float
) -> None:
    """Add the paired difference to the best method to each other method that did not diverge."""
    others = [entry for entry in methods if entry["end"] and entry["method"] != best]
    sizes = np.array(runs[best][0]["document_bytes"])
    nats = {e["method"]: np.mean([r["document_nats"] for r in runs[e["method"]]], axis=0) for e in methods if e["end"]}
    intervals: Sequence[Interval | None] = [None] * len(others)
    if others and np.count_nonzero(sizes) > 1:
        columns = np.stack([nats[entry["method"]] - nats[best] for entry in others], axis=1) / np.log(2)
        intervals = ratio_intervals(columns, sizes, confidence=confidence, seed=0)
    ends = {
        label: {run["seed"]: run["bits_per_byte"][-1][1] for run in method_runs} for label, method_runs in runs.items()
    }
    for entry, interval in zip(others, intervals, strict=True):
        method_ends = ends[entry["method"]]
        by_seed = [method_ends[seed] - ends[best][seed] for seed in method_ends]
        agree = all(value > 0 for value in by_seed) or all(value < 0 for value in by_seed)
        entry["difference"] = {
            "to": best,
            "estimate": statistics.fmean(by_seed),
            "by_seed": by_seed,
            **(interval.to_json() if interval else {"low": None, "high": None, "confidence": confidence}),
            # Without an interval the two methods count as a tie.
            "tie": not agree or interval is None or interval.low <= 0 <= interval.high,
        }


def _correlations(methods: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Spearman's rho of each pair of figures over the methods; +1 if both figures order the methods in the same way."""
    figures: dict[str, dict[str, float]] = {"step 0": {e["method"]: e["start"]["mean"] for e in methods}}
    figures["end"] = {e["method"]: e["end"]["mean"] for e in methods if e["end"]}
    for name, sign in SELF_CHECK.items():
        figures[f"self-check {name}"] = {e["method"]: sign * e["self_check"][name] for e in methods if e["self_check"]}
    correlations = []
    for first, second in itertools.combinations(figures, 2):
        if first.startswith("self-check"):  # a pair of two self-check figures shows nothing about the probe
            continue
        both = [label for label in figures[first] if label in figures[second]]
        rho = spearman([figures[first][label] for label in both], [figures[second][label] for label in both])
        correlations.append({"first": first, "second": second, "rho": rho, "methods": len(both)})
    return correlations
