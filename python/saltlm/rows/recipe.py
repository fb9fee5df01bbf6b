"""Which source rows, with which weights, made each new row: kept in compressed rows, the largest weights of long ones."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

# What a row was made by; codes of provenance.safetensors' ``rule`` index this list, saved as ``rules`` in saltlm.json.
RULES = (
    "none", "copy", "anchors", "pieces", "source tokens", "map", "pieces and map", "all anchors", "mean", "zeros", "random",
    "pieces and anchors", "pieces and all anchors", "map and anchors", "pieces, map and anchors",
)  # fmt: skip
MOST = 64  # entries kept of a row: dense supports would take more room than the model
_VALUES = 1 << 22  # weights of a block of long rows laid side by side (16 MB)


@dataclasses.dataclass(frozen=True, eq=False)
class Recipe:
    """Source rows and weights of M new rows; the input row is their weighted sum, an output row's weights may differ.

    Attributes:
        offsets: int64 [M + 1]; row m owns entries ``offsets[m]`` to ``offsets[m + 1]``, at most :data:`MOST`.
        ids: int32, source ids, in the order of the method: nearest or first picked first, pieces as they spell the token.
        weights: float32, signed.
        kept: float32 [M], share of the sum of all weights' sizes that the kept ones have, 1 where all are kept.
    """

    offsets: Tensor
    ids: Tensor
    weights: Tensor
    kept: Tensor

    def __repr__(self) -> str:
        return f"Recipe(M={len(self.kept)}, entries={len(self.ids)})"

    @classmethod
    def of(cls, offsets: Tensor, ids: Tensor, weights: Tensor) -> Recipe:
        """Keep the :data:`MOST` weights of largest size of each row, in their order.

        Args:
            offsets: int64 [M + 1].
            ids: integers [nnz], source ids.
            weights: reals [nnz].
        """
        offsets, ids, weights = offsets.cpu(), ids.cpu(), weights.cpu().double()
        size, weight = offsets.diff(), weights.abs()
        kept = torch.ones(len(size), dtype=torch.float64)
        inside = torch.ones(len(ids), dtype=torch.bool)
        long = (size > MOST).nonzero()[:, 0]
        for rows in long.split(max(1, _VALUES // max(1, int(size.max())))) if len(long) else ():
            place = torch.arange(int(size[rows].max()))
            own = place < size[rows, None]
            at = (offsets[rows, None] + place).clamp_max(len(ids) - 1)
            beside = torch.where(own, weight[at], -1.0)
            top = beside.topk(MOST, dim=1)
            inside[at[own]] = False
            inside[offsets[rows, None] + top.indices] = True
            total = beside.clamp_min(0).sum(dim=1)
            kept[rows] = torch.where(total > 0, top.values.sum(dim=1) / total, 1.0)
        ends = torch.cat([torch.zeros(1, dtype=torch.int64), inside.cumsum(0)])[offsets]
        return cls(ends, ids[inside].int(), weights[inside].float(), kept.float())

    def pick(self, rows: Tensor) -> Recipe:
        """The recipes of some rows: a bool mask [M] or int64 positions, in that order."""
        rows = rows.nonzero()[:, 0] if rows.dtype == torch.bool else rows
        size = self.offsets.diff()[rows]
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), size.cumsum(0)])
        at = torch.arange(int(offsets[-1])) + (self.offsets[rows] - offsets[:-1]).repeat_interleave(size)
        return Recipe(offsets, self.ids[at], self.weights[at], self.kept[rows])

    def beside(self, other: Recipe, factor: Tensor) -> Recipe:
        """Each row's entries and, after them, the other's times ``factor`` [M]; the largest of both."""
        owners = [torch.arange(len(part.kept)).repeat_interleave(part.offsets.diff()) for part in (self, other)]
        order = torch.cat(owners).argsort(stable=True)
        weights = torch.cat([self.weights.double(), other.weights.double() * factor.double()[owners[1]]])
        both = Recipe.of(self.offsets + other.offsets, torch.cat([self.ids, other.ids])[order], weights[order])
        # What an earlier cut took away counts as well.
        whole = torch.zeros(len(self.kept), dtype=torch.float64)
        for part, owner, own in (
            (self, owners[0], weights[: len(self.ids)]),
            (other, owners[1], weights[len(self.ids) :]),
        ):
            size = torch.zeros_like(whole).index_add_(0, owner, own.abs())
            whole += torch.where(part.kept > 0, size / part.kept.double(), 0.0)
        owner = torch.arange(len(self.kept)).repeat_interleave(both.offsets.diff())
        left = torch.zeros_like(whole).index_add_(0, owner, both.weights.double().abs())
        cut = (both.kept < 1) | (self.kept < 1) | (other.kept < 1)
        return dataclasses.replace(both, kept=torch.where(cut & (whole > 0), left / whole, 1.0).float())

    @classmethod
    def joined(cls, parts: Sequence[Recipe]) -> Recipe:
        """One after the other."""
        starts = [0, *itertools.accumulate(len(part.ids) for part in parts)]
        offsets = [part.offsets[:-1] + start for part, start in zip(parts, starts, strict=False)]
        return cls(
            torch.cat([*offsets, torch.tensor([starts[-1]], dtype=torch.int64)]),
            torch.cat([torch.zeros(0, dtype=torch.int32), *(part.ids for part in parts)]),
            torch.cat([torch.zeros(0), *(part.weights for part in parts)]),
            torch.cat([torch.zeros(0), *(part.kept for part in parts)]),
        )

    @classmethod
    def placed(cls, rows: int, parts: Sequence[tuple[Tensor, Recipe]]) -> Recipe:
        """Recipes of all ``rows``: each part goes to the rows it names, int64 [m]; the others are empty and whole."""
        every = cls.joined([cls.empty(1), *(part for _, part in parts)])
        at = torch.zeros(rows, dtype=torch.int64)
        if parts:
            at[torch.cat([named for named, _ in parts])] = torch.arange(1, len(every.kept))
        return every.pick(at)

    @classmethod
    def empty(cls, rows: int) -> Recipe:
        """Nothing, for so many rows."""
        offsets = torch.zeros(rows + 1, dtype=torch.int64)
        return cls(offsets, torch.zeros(0, dtype=torch.int32), torch.zeros(0), torch.ones(rows))
