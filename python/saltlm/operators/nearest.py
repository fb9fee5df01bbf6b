"""Products of rows whose ties do not depend on the machine: equal rows tie, and the smaller position comes first.

A matrix product may round the same two rows differently at different positions of the matrix: BLAS sums the rows at an edge
of its blocks in another order than the rows inside. All code that compares products with each other uses this module.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

_PREFIX = 8  # columns that are compared first; whole rows are compared only where these columns are equal
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclasses.dataclass(frozen=True)
class EqualRows:
    """Which rows of a matrix have the same values as an earlier row.

    Attributes:
        first: int64 [A], for each row the smallest position of a row with the same values.
        later: int64 [T], the positions that are not the first of their values, ascending.
    """

    first: Tensor
    later: Tensor

    @classmethod
    def of(cls, rows: Tensor) -> EqualRows:
        """Compare the rows of ``rows``, reals [A, E], by their bits; 0.0 and -0.0 are the same value."""
        positions = torch.arange(rows.shape[0], device=rows.device)
        first = positions.clone()
        if rows.numel():
            group, sizes = _groups(rows[:, :_PREFIX])
            candidates = (sizes[group] > 1).nonzero().squeeze(1)
            if len(candidates):
                group, sizes = _groups(rows[candidates])
                smallest = candidates.new_full((len(sizes),), rows.shape[0])
                smallest.scatter_reduce_(0, group, candidates, "amin")
                first[candidates] = smallest[group]
        return cls(first, (first != positions).nonzero().squeeze(1))

    def share_columns(self, product: Tensor) -> Tensor:
        """Copy the column of each first row over the columns of its equals, in place; returns ``product`` [N, A]."""
        if len(self.later):
            product[:, self.later] = product[:, self.first[self.later]]
        return product

    def share_rows(self, product: Tensor) -> Tensor:
        """Copy the row of each first row over the rows of its equals, in place; returns ``product`` [A, D]."""
        if len(self.later):
            product[self.later] = product[self.first[self.later]]
        return product


def _groups(rows: Tensor) -> tuple[Tensor, Tensor]:
    # The group of equal rows that each row is in, and the sizes of the groups. Bits are compared as integers: NaN has no order.
    bits = (rows + 0.0).contiguous().view(_INTEGERS[rows.element_size()])
    return bits.unique(dim=0, return_inverse=True, return_counts=True)[1:]


def largest(product: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The largest entries of each row, descending, equal ones by position.

    Args:
        product: reals [N, A].
        count: entries of each row, in [1, A].

    Returns:
        the values [N, count] and their positions, int64 [N, count].
    """
    values, positions = product.topk(count, dim=1)
    smallest = values[:, -1:]
    # topk returns any of the entries that equal its smallest one. Where it left some out, take those at the smallest positions.
    ambiguous = ((product >= smallest).sum(dim=1) > count).nonzero().squeeze(1)
    if len(ambiguous):
        above, tied = product[ambiguous] > smallest[ambiguous], product[ambiguous] == smallest[ambiguous]
        missing = count - above.sum(dim=1, keepdim=True)
        chosen = above | (tied & (tied.cumsum(dim=1, dtype=torch.int32) <= missing))
        positions[ambiguous] = chosen.nonzero()[:, 1].view(len(ambiguous), count)
    positions = positions.sort(dim=1).values
    values, order = product.gather(1, positions).sort(dim=1, descending=True, stable=True)
    return values, positions.gather(1, order)
