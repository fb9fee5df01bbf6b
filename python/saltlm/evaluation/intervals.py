"""How sure a figure is: bootstrap intervals over documents, and paired differences, so that ties are called ties."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import input_error

if TYPE_CHECKING:
    from .evaluate import Evaluation

# Resamples: 10,000 put an end of a 95 % interval to within about 2 % of its width; with very many documents fewer are drawn,
# since each takes as many numbers as there are documents.
MOST_DRAWS, FEWEST_DRAWS, DRAWN_NUMBERS = 10_000, 1_000, 2**26
# Numbers held at once while drawing.
CHUNK_NUMBERS = 2**22


@dataclasses.dataclass(frozen=True, kw_only=True)
class Interval:
    """A figure and the interval that its documents allow.

    Attributes:
        estimate: bits per byte, or a difference of them.
        low: lower end.
        high: upper end.
        confidence: how often such intervals hold the true value, in (0, 1).
    """

    estimate: float
    low: float
    high: float
    confidence: float

    def to_json(self) -> dict[str, float]:
        """Plain values; the estimate stands beside the interval already."""
        return {"low": self.low, "high": self.high, "confidence": self.confidence}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two models on the same documents.

    Attributes:
        first: name of a model.
        second: name of another.
        difference: bits per byte of the first less those of the second; below zero the first is better.
    """

    first: str
    second: str
    difference: Interval

    @property
    def tie(self) -> bool:
        """Whether the interval holds zero: these documents do not tell which model is better."""
        return self.difference.low <= 0 <= self.difference.high

    def to_json(self, of: str) -> dict[str, Any]:
        """Plain values, as seen from the model ``of``: the difference is its bits per byte less the other's."""
        d = self.difference
        sign, other = (1, self.second) if of == self.first else (-1, self.first)
        low, high = sorted((sign * d.low, sign * d.high))
        ends = {"low": low + 0.0, "high": high + 0.0}  # no -0.0
        return {"model": other, "difference": sign * d.estimate + 0.0, **ends, "tie": self.tie}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Intervals:
    """Intervals of several models on the same documents.

    Attributes:
        models: name -> its interval; empty where there are fewer than two documents.
        comparisons: every pair of models, in their order.
    """

    models: Mapping[str, Interval]
    comparisons: tuple[Comparison, ...]

    def of(self, name: str) -> list[Comparison]:
        """The comparisons that a model is part of."""
        return [pair for pair in self.comparisons if name in (pair.first, pair.second)]

    def renamed(self, names: Mapping[str, str]) -> Intervals:
        """The same under other names, one for each."""
        pairs = (dataclasses.replace(p, first=names[p.first], second=names[p.second]) for p in self.comparisons)
        return Intervals(models={names[name]: found for name, found in self.models.items()}, comparisons=tuple(pairs))

    def best(self) -> list[str]:
        """The model with the fewest bits per byte, and those that tie with it."""
        if not self.models:
            return []
        least = min(self.models, key=lambda name: self.models[name].estimate)
        tied = {name for pair in self.of(least) if pair.tie for name in (pair.first, pair.second)}
        return [name for name in self.models if name == least or name in tied]


def intervals(evaluations: Mapping[str, Evaluation], *, confidence: float = 0.95, seed: int = 0) -> Intervals:
    """Intervals of the bits per byte of models, and of the differences between them, over documents drawn anew.

    The documents are taken as independent draws from the texts one could have had. A resample draws as many of them with
    replacement; its bits per byte are ``sum bits / sum bytes``, and a difference uses the same resample for both models, so
    what makes a document hard for all of them cancels out. Ends are bias-corrected and accelerated (BCa, Efron 1987). With few
    documents such intervals are too short: below about ten take them as a hint.

    Args:
        evaluations: name -> evaluation, all of the same documents in the same order.
        confidence: in (0, 1).
        seed: in [0, inf); the same seed gives the same intervals.

    Returns:
        The intervals; none where fewer than two documents hold a byte.

    Raises:
        InputError: ``confidence`` or ``seed`` out of range.
        ValueError: the evaluations are not of the same documents.
    """
    check_numbers(confidence, seed)
    found = list(evaluations.values())
    if any(not np.array_equal(found[0].document_bytes, other.document_bytes) for other in found):
        raise ValueError("evaluations of different documents cannot be compared")
    if not found or np.count_nonzero(found[0].document_bytes) < 2:
        return Intervals(models={}, comparisons=())
    names = list(evaluations)
    pairs = list(itertools.combinations(range(len(names)), 2))
    bits = np.stack([evaluation.document_bits for evaluation in found], axis=1)
    columns = np.concatenate([bits, *(bits[:, [a]] - bits[:, [b]] for a, b in pairs)], axis=1)
    all_of_them = ratio_intervals(columns, found[0].document_bytes, confidence=confidence, seed=seed)
    return Intervals(
        models=dict(zip(names, all_of_them, strict=False)),
        comparisons=tuple(
            Comparison(first=names[a], second=names[b], difference=difference)
            for (a, b), difference in zip(pairs, all_of_them[len(names) :], strict=True)
        ),
    )


def ratio_intervals(
    numerators: np.ndarray, denominators: np.ndarray, *, confidence: float, seed: int, draws: int | None = None
) -> list[Interval]:
    """BCa bootstrap intervals of ``sum numerators / sum denominators``, with the same resamples for all columns.

    Args:
        numerators: float64 [documents, columns].
        denominators: [documents], >= 0, at least two of them > 0; documents of size zero say nothing and are left out.
        confidence: in (0, 1).
        seed: of the resamples.
        draws: number of resamples; ``None`` chooses by the number of documents.

    Returns:
        An interval for each column.

    Example:
        >>> (found,) = ratio_intervals(np.array([[2.0], [6.0]]), np.array([1, 1]), confidence=0.95, seed=0)
        >>> found.estimate, found.low, found.high
        (4.0, 2.0, 6.0)
    """
    kept = denominators > 0
    above, below = numerators[kept].astype(np.float64), denominators[kept].astype(np.float64)
    documents = len(below)
    draws = draws or int(np.clip(DRAWN_NUMBERS // documents, FEWEST_DRAWS, MOST_DRAWS))
    resampled = _resampled(above, below, draws, seed)
    totals = above.sum(axis=0)
    estimates = totals / below.sum()
    without_one = (totals - above) / (below.sum() - below)[:, None]
    return [
        Interval(estimate=float(estimate), low=low, high=high, confidence=confidence)
        for estimate, column, left_out in zip(estimates, resampled.T, without_one.T, strict=True)
        for low, high in [_bca(float(estimate), column, left_out, confidence)]
    ]


def check_numbers(confidence: float, seed: int) -> None:
    """Refuse a confidence or a seed that is out of range.

    Raises:
        InputError: one of them is.
    """
    if not 0 < confidence < 1:
        raise input_error("confidence", repr(confidence), "a share in (0, 1)", "0.95 is usual")
    if seed < 0:
        raise input_error("seed", repr(seed), "a whole number >= 0", "choose another seed")


def _resampled(above: np.ndarray, below: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """float64 [draws, columns], the ratio in each resample."""
    documents = len(below)
    generator = np.random.default_rng(seed)
    columns = np.concatenate([above, below[:, None]], axis=1)
    rows = max(1, CHUNK_NUMBERS // documents)
    parts = []
    for start in range(0, draws, rows):
        count = min(rows, draws - start)
        drawn = generator.integers(documents, size=(count, documents)) + documents * np.arange(count)[:, None]
        times = np.bincount(drawn.ravel(), minlength=count * documents).reshape(count, documents)
        # einsum, not a matrix product: its sums do not depend on the number of threads.
        sums = np.einsum("cn,nk->ck", times.astype(np.float64), columns)
        parts.append(sums[:, :-1] / sums[:, -1:])
    return np.concatenate(parts)


def _bca(estimate: float, resampled: np.ndarray, left_out: np.ndarray, confidence: float) -> tuple[float, float]:
    normal = NormalDist()
    # Equal but for rounding counts half: with few documents many resamples are the documents themselves.
    same = np.isclose(resampled, estimate, rtol=1e-12, atol=1e-15)
    share = ((resampled < estimate) & ~same).mean() + same.mean() / 2
    bias = normal.inv_cdf(float(np.clip(share, 0.5 / len(resampled), 1 - 0.5 / len(resampled))))
    off = left_out.mean() - left_out
    spread = float((off**2).sum())
    acceleration = float((off**3).sum()) / (6 * spread**1.5) if spread > 0 else 0.0
    ends = []
    for tail in ((1 - confidence) / 2, (1 + confidence) / 2):
        shifted = bias + normal.inv_cdf(tail)
        room = 1 - acceleration * shifted
        ends.append(normal.cdf(bias + shifted / room) if room > 0 else float(shifted > 0))
    low, high = np.quantile(resampled, ends)
    return float(low), float(high)
