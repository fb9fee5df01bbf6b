"""Streamed linear algebra in float64: means, deviations, products of centred rows, ridge penalties, Procrustes.

Rows come in blocks, so that no matrix is in memory in float64 as a whole. A sum takes its blocks in order: another block size
changes the last bits of the result. Means are subtracted before rows are multiplied (two passes over the blocks), so that a
large mean costs no digits.

Letters: N rows, X and Y widths of the two sides of a regression.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

# Yield the blocks of a matrix, reals [n, X], or of two matrices of equal length; called once for each pass.
RowBlocks = Callable[[], Iterable[Tensor]]
PairedBlocks = Callable[[], Iterable[tuple[Tensor, Tensor]]]


def mean_of_rows(blocks: Iterable[Tensor], count: int) -> Tensor:
    """Mean row, or mean value.

    Args:
        blocks: reals [n, X], or values [n]; at least one block.
        count: N, the rows of all blocks.

    Returns:
        float64 [X], or a scalar.
    """
    return sum((block.double().sum(dim=0) for block in blocks), start=torch.zeros((), dtype=torch.float64)) / count


def mean_and_deviation(blocks: RowBlocks, count: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each column.

    Args:
        blocks: yields reals [n, X].
        count: N, the rows of all blocks.

    Returns:
        float64 [X] each; the deviation divides by N - 1, and is 0 for one row.
    """
    mean = mean_of_rows(blocks(), count)
    squares = mean_of_rows(((block.double() - mean).square() for block in blocks()), max(1, count - 1))
    return mean, squares.sqrt()


def centred_products(blocks: Iterable[Tensor], mean: Tensor) -> Tensor:
    """Sum of the products ``(x - mean)^T (x - mean)`` over all rows x.

    Args:
        blocks: reals [n, X].
        mean: float64 [X].

    Returns:
        float64 [X, X]; divided by N or N - 1, the covariance.
    """
    products = torch.zeros(len(mean), len(mean), dtype=torch.float64, device=mean.device)
    for block in blocks:
        centred = block.double() - mean
        products.addmm_(centred.T, centred)
    return products


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class NormalEquations:
    """The normal equations of a least-squares map with intercept from rows x to rows y.

    Attributes:
        count: N.
        x_mean: float64 [X].
        y_mean: float64 [Y].
        gram: float64 [X, X], sum of ``(x - x_mean)^T (x - x_mean)``.
        cross: float64 [X, Y], sum of ``(x - x_mean)^T (y - y_mean)``.
    """

    count: int
    x_mean: Tensor
    y_mean: Tensor
    gram: Tensor
    cross: Tensor

    @classmethod
    def of(cls, blocks: PairedBlocks, count: int, widths: tuple[int, int], device: torch.device) -> NormalEquations:
        """Sum the products of the rows, in two passes.

        Args:
            blocks: yields reals [n, X] and [n, Y] on the device.
            count: N, the rows of all blocks.
            widths: X and Y.
            device: of the sums.
        """
        x_mean, y_mean = (torch.zeros(width, dtype=torch.float64, device=device) for width in widths)
        for x, y in blocks():
            x_mean += x.double().sum(dim=0)
            y_mean += y.double().sum(dim=0)
        x_mean, y_mean = x_mean / count, y_mean / count
        gram = torch.zeros(widths[0], widths[0], dtype=torch.float64, device=device)
        cross = torch.zeros(widths, dtype=torch.float64, device=device)
        for x, y in blocks():
            centred = x.double() - x_mean
            gram.addmm_(centred.T, centred)
            cross.addmm_(centred.T, y.double() - y_mean)
        return cls(count=count, x_mean=x_mean, y_mean=y_mean, gram=gram, cross=cross)

    def penalty(self, ridge: float) -> Tensor:
        """:func:`ridge_penalty` of the centred x rows."""
        return ridge_penalty(ridge, self.gram.trace(), self.count)


def ridge_penalty(ridge: float, squares: Tensor, count: int) -> Tensor:
    """Penalty lambda on the squared coefficients: ``ridge`` times the mean squared norm of the rows.

    Args:
        ridge: strength, >= 0, without a unit: it means the same for rows of any scale.
        squares: sum of the squared norms of the rows, float64 scalar.
        count: rows.
    """
    return ridge * squares / count


def ridge_inverse(gram: Tensor, penalty: Tensor) -> Tensor:
    """Pseudo-inverse of ``gram + penalty * identity``, float64 [X, X]; ``gram`` is symmetric."""
    identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    return torch.linalg.pinv(gram + penalty * identity, hermitian=True)


def procrustes(cross: Tensor) -> Tensor:
    """The orthogonal matrix R that minimises ``||A R - B||`` (orthogonal Procrustes problem).

    Args:
        cross: float64 [X, X], the products ``A^T B``.

    Returns:
        float64 [X, X].
    """
    left, _, right = torch.linalg.svd(cross)
    return left @ right
