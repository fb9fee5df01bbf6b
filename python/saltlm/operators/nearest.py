"""Products of rows whose ties do not depend on the machine: equal rows tie, and the smaller position comes first.

A matrix product may round the same two rows differently at different positions of the matrix: BLAS treats the rows at an edge
of its blocks in another order than the rows inside. Whatever compares products with each other goes through this module.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

_PREFIX = 8  # columns that are compared first: few rows share these, and whole rows are compared for those alone
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
        """Compares the rows of ``rows`` (reals [A, E]) by their bits; 0.0 and -0.0 are the same value."""
        positions = torch.arange(rows.shape[0], device=rows.device)
        first = positions.clone()
        if rows.numel():
            group, sizes = _groups(rows[:, :_PREFIX])
            alike = (sizes[group] > 1).nonzero().squeeze(1)
            if len(alike):
                group, sizes = _groups(rows[alike])
                smallest = alike.new_full((len(sizes),), rows.shape[0]).scatter_reduce_(0, group, alike, "amin")
                first[alike] = smallest[group]
        return cls(first, (first != positions).nonzero().squeeze(1))

    def share_columns(self, product: Tensor) -> Tensor:
        """``product`` [N, A] after every later equal row's column was overwritten by the column of the first one."""
        if len(self.later):
            product[:, self.later] = product[:, self.first[self.later]]
        return product

    def share_rows(self, product: Tensor) -> Tensor:
        """``product`` [A, D] after every later equal row's row was overwritten by the row of the first one."""
        if len(self.later):
            product[self.later] = product[self.first[self.later]]
        return product


def _groups(rows: Tensor) -> tuple[Tensor, Tensor]:
    # Each row's group of equal rows, and the sizes of the groups. Integers have a total order, which NaN has not.
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
    values, at = product.topk(count, dim=1)
    least = values[:, -1:]
    # topk takes any of the entries that equal its least one; where it left some out, those at the smallest positions count.
    unsure = ((product >= least).sum(dim=1) > count).nonzero().squeeze(1)
    if len(unsure):
        above, tied = product[unsure] > least[unsure], product[unsure] == least[unsure]
        room = count - above.sum(dim=1, keepdim=True)
        kept = above | (tied & (tied.cumsum(dim=1, dtype=torch.int32) <= room))
        at[unsure] = kept.nonzero()[:, 1].view(len(unsure), count)
    at = at.sort(dim=1).values
    values, order = product.gather(1, at).sort(dim=1, descending=True, stable=True)
    return values, at.gather(1, order)
