"""Bootstrap intervals over documents: of the bits per byte of each model, and of the paired difference of two models."""

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

# Number of resamples. With 10,000 resamples an end of a 95 % interval is exact to about 2 % of the width of the interval. A
# resample takes one random number per document, so fewer resamples are drawn for very many documents.
MAX_DRAWS, MIN_DRAWS, DRAWN_NUMBERS = 10_000, 1_000, 2**26
# Random numbers in memory at once.
CHUNK_NUMBERS = 2**22


@dataclasses.dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate with its confidence interval.

    Attributes:
        estimate: bits per byte, or a difference of bits per byte.
        low: lower end of the interval.
        high: upper end of the interval.
        confidence: confidence level, in (0, 1).
    """

    estimate: float
    low: float
    high: float
    confidence: float

    def to_json(self) -> dict[str, float]:
        """The interval without the estimate, which the reports hold under a name of its own."""
        return {"low": self.low, "high": self.high, "confidence": self.confidence}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """The difference of two models on the same documents.

    Attributes:
        first: name of the first model.
        second: name of the second model.
        difference: bits per byte of the first model minus those of the second; negative if the first model is better.
    """

    first: str
    second: str
    difference: Interval

    @property
    def tie(self) -> bool:
        """Whether the interval contains zero: these documents do not show which model is better."""
        return self.difference.low <= 0 <= self.difference.high

    def to_json(self, of: str) -> dict[str, Any]:
        """The difference from the point of view of one of the two models.

        Args:
            of: name of that model; ``difference`` is its bits per byte minus those of the other model.
        """
        interval = self.difference
        sign, other = (1, self.second) if of == self.first else (-1, self.first)
        low, high = sorted((sign * interval.low, sign * interval.high))
        ends = {"low": low + 0.0, "high": high + 0.0}  # + 0.0 turns -0.0 into 0.0
        return {"model": other, "difference": sign * interval.estimate + 0.0, **ends, "tie": self.tie}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Intervals:
    """Intervals of several models on the same documents.

    Attributes:
        models: name of a model -> its interval; empty for fewer than two documents.
        comparisons: the difference of every pair of models, in the order of the models.
    """

    models: Mapping[str, Interval]
    comparisons: tuple[PairedDifference, ...]

    def of(self, name: str) -> list[PairedDifference]:
        """The differences between one model and each other model."""
        return [pair for pair in self.comparisons if name in (pair.first, pair.second)]

    def renamed(self, names: Mapping[str, str]) -> Intervals:
        """The same intervals under other names.

        Args:
            names: name of a model -> its new name.
        """
        pairs = (dataclasses.replace(p, first=names[p.first], second=names[p.second]) for p in self.comparisons)
        models = {names[name]: interval for name, interval in self.models.items()}
        return Intervals(models=models, comparisons=tuple(pairs))

    def best(self) -> list[str]:
        """The model with the fewest bits per byte, and those that tie with it."""
        if not self.models:
            return []
        lowest = min(self.models, key=lambda name: self.models[name].estimate)
        tied = {name for pair in self.of(lowest) if pair.tie for name in (pair.first, pair.second)}
        return [name for name in self.models if name == lowest or name in tied]


def intervals(evaluations: Mapping[str, Evaluation], *, confidence: float = 0.95, seed: int = 0) -> Intervals:
    """Bootstrap intervals of the bits per byte of models, and of the differences between the models.

    The documents count as independent draws from a population. A resample draws as many documents with replacement; its bits
    per byte are ``sum bits / sum bytes``. A difference uses the same resamples for both models, so the difficulty of a
    document that both models share cancels out. The ends are bias-corrected and accelerated (BCa, Efron 1987). Such intervals
    are too short for few documents: below about ten documents they are only a hint.

    Args:
        evaluations: name of a model -> evaluation, all of the same documents in the same order.
        confidence: confidence level, in (0, 1).
        seed: seed of the resamples, in [0, inf).

    Returns:
        The intervals; empty if fewer than two documents have a byte.

    Raises:
        InputError: ``confidence`` or ``seed`` is out of range.
        ValueError: the evaluations are not of the same documents.
    """
    check_numbers(confidence, seed)
    values = list(evaluations.values())
    if any(not np.array_equal(values[0].document_bytes, other.document_bytes) for other in values):
        raise ValueError("evaluations of different documents cannot be compared")
    if not values or np.count_nonzero(values[0].document_bytes) < 2:
        return Intervals(models={}, comparisons=())
    names = list(evaluations)
    pairs = list(itertools.combinations(range(len(names)), 2))
    bits = np.stack([evaluation.document_bits for evaluation in values], axis=1)
    columns = np.concatenate([bits, *(bits[:, [a]] - bits[:, [b]] for a, b in pairs)], axis=1)
    by_column = ratio_intervals(columns, values[0].document_bytes, confidence=confidence, seed=seed)
    return Intervals(
        models=dict(zip(names, by_column[: len(names)], strict=True)),
        comparisons=tuple(
            PairedDifference(first=names[a], second=names[b], difference=difference)
            for (a, b), difference in zip(pairs, by_column[len(names) :], strict=True)
        ),
    )


def ratio_intervals(
    numerators: np.ndarray, denominators: np.ndarray, *, confidence: float, seed: int, draws: int | None = None
) -> list[Interval]:
    """BCa bootstrap intervals of ``sum numerators / sum denominators``, with the same resamples for all columns.

    Args:
        numerators: float64 [documents, columns].
        denominators: [documents], >= 0, at least two of them > 0; documents of size zero are left out.
        confidence: confidence level, in (0, 1).
        seed: seed of the resamples.
        draws: number of resamples; ``None`` for a number that depends on the number of documents.

    Returns:
        One interval per column.

    Example:
        >>> (interval,) = ratio_intervals(np.array([[2.0], [6.0]]), np.array([1, 1]), confidence=0.95, seed=0)
        >>> interval.estimate, interval.low, interval.high
        (4.0, 2.0, 6.0)
    """
    nonempty = denominators > 0
    above, below = numerators[nonempty].astype(np.float64), denominators[nonempty].astype(np.float64)
    documents = len(below)
    draws = draws or int(np.clip(DRAWN_NUMBERS // documents, MIN_DRAWS, MAX_DRAWS))
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
    """Check a confidence level and a seed.

    Raises:
        InputError: ``confidence`` is not in (0, 1), or ``seed`` is negative.
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
        # einsum and not a matrix product, whose sums depend on the number of threads.
        sums = np.einsum("cn,nk->ck", times.astype(np.float64), columns)
        parts.append(sums[:, :-1] / sums[:, -1:])
    return np.concatenate(parts)


def _bca(estimate: float, resampled: np.ndarray, left_out: np.ndarray, confidence: float) -> tuple[float, float]:
    """Lower and upper end of the bias-corrected and accelerated interval of one column.

    Args:
        estimate: ratio of all documents.
        resampled: float64 [draws], ratio of each resample.
        left_out: float64 [documents], ratio without one document (jackknife), for the acceleration.
        confidence: confidence level, in (0, 1).
    """
    normal = NormalDist()
    # A resample that equals the estimate up to rounding counts half. With few documents many resamples do.
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
