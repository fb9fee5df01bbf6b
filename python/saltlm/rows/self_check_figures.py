"""The self-check's figures: of each hidden token, by group, and one score for the whole start."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..model.stored_rows import block_rows, blocks_of, gather

# Share of the mean variance that is added in every direction: rows of few directions stay measurable.
RIDGE = 1e-3
DIGITS = 9  # after the point, of a score and its parts
ROWS = 8192  # source rows at least that the covariance is taken from, and four for each dimension

Each = dict[str, np.ndarray]


def compared(
    predicted: torch.Tensor, true: torch.Tensor, rows: torch.Tensor, candidates: torch.Tensor
) -> tuple[dict[str, float | int], Each]:
    """How near predicted rows are to the true ones.

    Args:
        predicted: float64 [n, D].
        true: [n, D].
        rows: [S, D], the source's rows as stored.
        candidates: int64 [c], the rows among which the true one is looked for.

    Returns:
        ``tokens`` (n) and ``candidates`` (c); medians of ``relative_error`` (|predicted - true| / |true|), ``cosine`` and
        ``rank`` (place of the true row among the candidates by cosine to the predicted one, 1 is best); ``top1``, the share
        of rank 1. And error, cosine and rank of each token, by these names.
    """
    true = true.double()
    error = (predicted - true).norm(dim=1) / true.norm(dim=1).clamp_min(1e-12)
    unit = torch.nn.functional.normalize(predicted, dim=1)
    cosine = (unit * torch.nn.functional.normalize(true, dim=1)).sum(dim=1)
    rank = torch.ones(len(true), dtype=torch.int64)
    most = block_rows(rows.shape[1])  # all candidates at once would be the shared rows once more in float32
    for part in candidates.split(most):
        others = torch.nn.functional.normalize(gather(rows, part).float(), dim=1)
        rank += (unit.float() @ others.T > cosine.float()[:, None] + 1e-6).sum(dim=1)
    rank[predicted.norm(dim=1) == 0] = len(candidates)  # a row of zeros is as near to one as to another
    each = {"relative_error": error.numpy(), "cosine": cosine.numpy(), "rank": rank.numpy()}
    return {**medians(each), "candidates": len(candidates), "top1": float((rank == 1).double().mean())}, each


def medians(each: Each) -> dict[str, float | int]:
    """How many tokens, and the median of each figure; of an even number of ranks the lower one, which is a rank."""
    error, cosine, rank = (each[name] for name in ("relative_error", "cosine", "rank"))
    middle = int(np.sort(rank)[(len(rank) - 1) // 2])
    return {
        "tokens": len(rank), "relative_error": float(np.median(error)), "cosine": float(np.median(cosine)), "rank": middle
    }  # fmt: skip


def grouped(each: Each, groups: Sequence[Any]) -> dict[str, dict[str, float | int]]:
    """The same by group, largest first, of equals by name; ``groups`` names each token's."""
    names = np.array([str(group) for group in groups])
    found, counts = np.unique(names, return_counts=True)
    order = sorted(zip(-counts, found, strict=True))
    return {str(name): medians({key: values[names == name] for key, values in each.items()}) for _, name in order}


@dataclasses.dataclass(frozen=True, repr=False)
class Spread:
    """Mean and covariance of the source's rows, in whose units rows are scored."""

    mean: torch.Tensor  # float64 [D]
    root: torch.Tensor  # float64 [D, D], lower triangular: root root^T is the covariance

    @classmethod
    def of(cls, rows: torch.Tensor, used: np.ndarray) -> Spread:
        """From up to ``max(8192, 4 D)`` rows, evenly spaced among ``used``."""
        most = max(ROWS, 4 * rows.shape[1])
        chosen = torch.from_numpy(used[np.linspace(0, len(used) - 1, min(most, len(used))).astype(np.int64)])
        mean = sum(block.sum(dim=0) for block in blocks_of(rows, chosen)) / len(chosen)
        covariance = torch.zeros(len(mean), len(mean), dtype=torch.float64)
        for block in blocks_of(rows, chosen):  # squares of the largest bfloat16 fit into no float32
            covariance.addmm_((block - mean).T, block - mean)
        covariance /= len(chosen)
        covariance.diagonal().add_(RIDGE * covariance.diagonal().mean().clamp_min(1e-30))
        return cls(mean, torch.linalg.cholesky(covariance))

    def whiten(self, rows: torch.Tensor) -> torch.Tensor:
        """Float64 [n, D]: rows in units of the source's spread, its mean at zero."""
        return torch.linalg.solve_triangular(self.root, (rows.double() - self.mean).T, upper=False).T


def score(predicted: torch.Tensor, true: torch.Tensor, new: torch.Tensor, spread: Spread) -> dict[str, float]:
    """One figure for a start: what its rows explain, less noise and offset, in units of the source's covariance.

    ``score = 2 signal - noise / 2 - offset``. With rows whitened by the source's mean and covariance, and in units of the
    mean squared distance of the true rows from their mean,

    - ``signal`` is the covariance of predicted and true rows of hidden tokens, ``mean (p - mean p) . (t - mean t)``,
    - ``noise`` the variance of the rows of *new* tokens, ``mean |x - mean x|^2``,
    - ``offset`` the squared distance of those rows' mean from the source's.

    With the noise at full weight this is 1 - relative squared error, the share of variance explained; half weight keeps it
    from preferring rows that are shrunk to the mean and tell no tokens apart. Noise and offset need no true row, so they are
    taken from new tokens, where they differ from those of hidden ones: these have nearer neighbours and other pieces.
    Whitening matters because a model's hidden states are large where its rows hardly differ: a small common error there
    moves every logit. One row for all tokens scores about 0, random rows of the source's covariance about -1/2, exact
    ones 3/2.

    Args:
        predicted: float64 [n, D], rows of hidden tokens.
        true: [n, D].
        new: [m, D], rows of new tokens; where there are none, the hidden ones' stand in.
        spread: of the source's rows.

    Returns:
        ``score`` and its parts ``signal``, ``noise`` and ``offset``, to nine digits after the point.
    """
    p, t = spread.whiten(predicted), spread.whiten(true)
    x = spread.whiten(new) if len(new) else p
    p, t = p - p.mean(dim=0), t - t.mean(dim=0)
    unit = t.square().sum(dim=1).mean().clamp_min(1e-12)
    signal = float((p * t).sum(dim=1).mean() / unit)
    noise = float((x - x.mean(dim=0)).square().sum(dim=1).mean() / unit)
    offset = float(x.mean(dim=0).square().sum() / unit)
    figures = {"score": 2 * signal - noise / 2 - offset, "signal": signal, "noise": noise, "offset": offset}
    # Products of matrices round by the number of threads; what is told must not depend on it.
    return {name: round(value, DIGITS) for name, value in figures.items()}
