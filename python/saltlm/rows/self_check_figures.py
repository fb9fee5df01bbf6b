"""The figures of the self-check: by hidden token, by group of tokens, and one score for all rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..files.summary_file import RankedFigures, RowFigures, ScoreParts
from ..model.stored_rows import block_rows, blocks_of, gather
from ..operators.linear import centred_products, mean_of_rows

# Share of the mean variance that is added in every direction, so that the covariance of rows of low rank can be inverted.
RIDGE = 1e-3
DIGITS = 9  # decimals of a score and its parts
MIN_ROWS = 8192  # the covariance is taken from this number of source rows, or four for each dimension if that is more

FiguresByToken = dict[str, np.ndarray]


def compared(
    predicted: torch.Tensor, true: torch.Tensor, rows: torch.Tensor, candidates: torch.Tensor
) -> tuple[RankedFigures, FiguresByToken]:
    """Distances between predicted and true rows.

    Args:
        predicted: float64 [n, D].
        true: [n, D].
        rows: [S, D], the source's rows as stored.
        candidates: int64 [c], positions in ``rows`` among which the true row is ranked.

    Returns:
        ``tokens`` (n) and ``candidates`` (c); medians of ``relative_error`` (|predicted - true| / |true|), ``cosine`` and
        ``rank`` (of the true row among the candidates, sorted by their cosine to the predicted row; 1 is best); ``top1``, the
        share of rank 1. And error, cosine and rank of each token, under the same names.
    """
    true = true.double()
    error = (predicted - true).norm(dim=1) / true.norm(dim=1).clamp_min(1e-12)
    unit = torch.nn.functional.normalize(predicted, dim=1)
    cosine = (unit * torch.nn.functional.normalize(true, dim=1)).sum(dim=1)
    rank = torch.ones(len(true), dtype=torch.int64)
    # In blocks: all candidates together would be a copy of the shared rows in float32.
    for part in candidates.split(block_rows(rows.shape[1])):
        others = torch.nn.functional.normalize(gather(rows, part).float(), dim=1)
        rank += (unit.float() @ others.T > cosine.float()[:, None] + 1e-6).sum(dim=1)
    rank[predicted.norm(dim=1) == 0] = len(candidates)  # a row of zeros has no nearest candidate
    by_token = {"relative_error": error.numpy(), "cosine": cosine.numpy(), "rank": rank.numpy()}
    figures: RankedFigures = {
        **medians(by_token),
        "candidates": len(candidates),
        "top1": float((rank == 1).double().mean()),
    }
    return figures, by_token


def medians(by_token: FiguresByToken) -> RowFigures:
    """Number of tokens, and the median of each figure; the lower one of two middle ranks, so that it is a rank."""
    error, cosine, rank = (by_token[name] for name in ("relative_error", "cosine", "rank"))
    return {
        "tokens": len(rank),
        "relative_error": float(np.median(error)),
        "cosine": float(np.median(cosine)),
        "rank": int(np.sort(rank)[(len(rank) - 1) // 2]),
    }


def grouped(by_token: FiguresByToken, groups: Sequence[Any]) -> dict[str, RowFigures]:
    """:func:`medians` by group, the largest group first, groups of one size by name.

    Args:
        by_token: figures of each token.
        groups: name of the group of each token.
    """
    group_of = np.array([str(group) for group in groups])
    names, counts = np.unique(group_of, return_counts=True)
    order = sorted(zip(-counts, names, strict=True))
    return {
        str(name): medians({figure: values[group_of == name] for figure, values in by_token.items()})
        for _, name in order
    }


@dataclasses.dataclass(frozen=True, repr=False)
class Spread:
    """Mean and covariance of the source's rows, the units in which rows are scored."""

    mean: torch.Tensor  # float64 [D]
    root: torch.Tensor  # float64 [D, D], lower triangular: root root^T is the covariance

    @classmethod
    def of(cls, rows: torch.Tensor, used: np.ndarray) -> Spread:
        """From up to ``max(8192, 4 D)`` rows, evenly spaced among ``used``."""
        count = min(max(MIN_ROWS, 4 * rows.shape[1]), len(used))
        chosen = torch.from_numpy(used[np.linspace(0, len(used) - 1, count).astype(np.int64)])
        mean = mean_of_rows(blocks_of(rows, chosen), len(chosen))
        # In float64: the square of the largest bfloat16 is infinite in float32.
        covariance = centred_products(blocks_of(rows, chosen), mean)
        covariance /= len(chosen)
        covariance.diagonal().add_(RIDGE * covariance.diagonal().mean().clamp_min(1e-30))
        return cls(mean, torch.linalg.cholesky(covariance))

    def whiten(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows with the source's mean subtracted, in units of its covariance, float64 [n, D]."""
        return torch.linalg.solve_triangular(self.root, (rows.double() - self.mean).T, upper=False).T


def score(predicted: torch.Tensor, true: torch.Tensor, new: torch.Tensor, spread: Spread) -> ScoreParts:
    """One figure for all rows of a method: explained variance less noise and offset, in units of the source's covariance.

    ``score = 2 signal - noise / 2 - offset``. With rows whitened by the source's mean and covariance, and in units of the
    mean squared distance of the true rows from their mean,

    - ``signal`` is the covariance of predicted and true rows of hidden tokens, ``mean (p - mean p) . (t - mean t)``,
    - ``noise`` is the variance of the rows of *new* tokens, ``mean |x - mean x|^2``,
    - ``offset`` is the squared distance of those rows' mean from the source's.

    With the full weight of the noise this is 1 - relative squared error, the share of variance explained, which prefers rows
    that are shrunk to the mean and so do not distinguish tokens; half the weight does not. Noise and offset need no true row.
    They are taken from new tokens, whose rows differ from those of hidden tokens: hidden tokens have nearer neighbours and
    other pieces. Rows are whitened because the hidden states of a model are large in directions in which its rows differ
    little: a small common error in these directions changes every logit. The same row for all tokens scores about 0, random
    rows with the source's covariance about -1/2, exact rows 3/2.

    Args:
        predicted: float64 [n, D], rows of hidden tokens.
        true: [n, D].
        new: [m, D], rows of new tokens; with m = 0 the predicted rows are used.
        spread: of the source's rows.

    Returns:
        ``score`` and its parts ``signal``, ``noise`` and ``offset``, rounded to :data:`DIGITS` decimals.
    """
    p, t = spread.whiten(predicted), spread.whiten(true)
    x = spread.whiten(new) if len(new) else p
    p, t = p - p.mean(dim=0), t - t.mean(dim=0)
    unit = t.square().sum(dim=1).mean().clamp_min(1e-12)
    signal = float((p * t).sum(dim=1).mean() / unit)
    noise = float((x - x.mean(dim=0)).square().sum(dim=1).mean() / unit)
    offset = float(x.mean(dim=0).square().sum() / unit)
    # Rounded, because matrix products differ in the last bits with the number of threads.
    return {
        "score": round(2 * signal - noise / 2 - offset, DIGITS),
        "signal": round(signal, DIGITS),
        "noise": round(noise, DIGITS),
        "offset": round(offset, DIGITS),
    }
