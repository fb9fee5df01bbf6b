"""Rows of different lengths in compressed form: the entries of all rows one after the other, and where each row begins."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Int, Int64


class PrintsShapes:
    """Base of dataclasses that print the dtype and shape of a tensor in place of its values."""

    def __repr__(self) -> str:
        parts = []
        for name, value in vars(self).items():
            shown = f"{str(value.dtype)[6:]}{list(value.shape)}" if isinstance(value, Tensor) else repr(value)
            parts.append(f"{name}={shown}")
        return f"{type(self).__name__}({', '.join(parts)})"


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class RaggedRows(PrintsShapes):
    """N rows with any number of ids each.

    Attributes:
        offsets: int64 [N + 1]; row n has the entries ``offsets[n]`` to ``offsets[n + 1]``.
        ids: integers [nnz], ids of the entries.
    """

    offsets: Int64[Tensor, " N_plus_1"]
    ids: Int[Tensor, " nnz"]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def sizes(self) -> Tensor:
        """int64 [N], entries of each row."""
        return self.offsets.diff()

    @property
    def row_of_entry(self) -> Tensor:
        """int64 [nnz], the row that each entry belongs to."""
        return torch.arange(len(self), device=self.offsets.device).repeat_interleave(self.sizes)

    def select(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The entries of some rows.

        Args:
            rows: int64 [m], positions of rows, in any order.

        Returns:
            offsets int64 [m + 1] of those rows alone, and int64 positions of their entries among all entries.
        """
        sizes = self.offsets[rows + 1] - self.offsets[rows]
        offsets = offsets_of(sizes)
        entry = torch.arange(int(offsets[-1]), device=offsets.device)
        positions = entry + (self.offsets[rows] - offsets[:-1]).repeat_interleave(sizes)
        return offsets, positions


def offsets_of(sizes: Tensor) -> Tensor:
    """Offsets int64 [N + 1] of rows with these sizes, integers [N]."""
    return torch.cat([torch.zeros(1, dtype=torch.int64, device=sizes.device), sizes.cumsum(0)])
