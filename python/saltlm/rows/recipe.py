"""Recipes: the source rows and weights that each new row is a sum of, at most :data:`MAX_ENTRIES` of them a row."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from ..operators.ragged import RaggedRows, offsets_of

# How a row was made; codes of ``rule`` in provenance.safetensors index this list, which saltlm.json saves as ``rules``.
RULES = (
    "none",
    "copy",
    "anchors",
    "pieces",
    "source tokens",
    "map",
    "pieces and map",
    "all anchors",
    "mean",
    "zeros",
    "random",
    "pieces and anchors",
    "pieces and all anchors",
    "map and anchors",
    "pieces, map and anchors",
)
MAX_ENTRIES = 64  # entries kept of a row: dense supports in full would take more space than the model
_BLOCK_VALUES = 1 << 22  # weights of a block of long rows in a padded matrix (16 MB)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Recipe(RaggedRows):
    """Source ids and weights of M new rows.

    The input row is the weighted sum of these source rows. Weights of the output row may differ.

    Attributes:
        offsets: int64 [M + 1]; row m has the entries ``offsets[m]`` to ``offsets[m + 1]``, at most :data:`MAX_ENTRIES`.
        ids: int32, source ids, in the order of the method: nearest or first picked first, pieces as they spell the token.
        weights: float32, signed.
        kept: float32 [M], sum of the absolute kept weights as a share of the sum of all; 1 where all are kept.
    """

    weights: Tensor
    kept: Tensor

    def __repr__(self) -> str:
        return f"Recipe(M={len(self)}, entries={len(self.ids)})"

    @classmethod
    def of(cls, offsets: Tensor, ids: Tensor, weights: Tensor) -> Recipe:
        """Keep the :data:`MAX_ENTRIES` weights of largest absolute value of each row, in their order.

        Args:
            offsets: int64 [M + 1].
            ids: integers [nnz], source ids.
            weights: reals [nnz].
        """
        offsets, ids, weights = offsets.cpu(), ids.cpu(), weights.cpu().double()
        size, weight = offsets.diff(), weights.abs()
        kept = torch.ones(len(size), dtype=torch.float64)
        chosen = torch.ones(len(ids), dtype=torch.bool)
        long = (size > MAX_ENTRIES).nonzero()[:, 0]
        for rows in long.split(max(1, _BLOCK_VALUES // max(1, int(size.max())))) if len(long) else ():
            column = torch.arange(int(size[rows].max()))
            inside = column < size[rows, None]
            entry = (offsets[rows, None] + column).clamp_max(len(ids) - 1)
            padded = torch.where(inside, weight[entry], -1.0)
            top = padded.topk(MAX_ENTRIES, dim=1)
            chosen[entry[inside]] = False
            chosen[offsets[rows, None] + top.indices] = True
            total = padded.clamp_min(0).sum(dim=1)
            kept[rows] = torch.where(total > 0, top.values.sum(dim=1) / total, 1.0)
        return cls(offsets_of(chosen)[offsets], ids[chosen].int(), weights[chosen].float(), kept.float())

    def pick(self, rows: Tensor) -> Recipe:
        """Recipes of some rows, given as a bool mask [M] or as int64 positions in any order."""
        rows = rows.nonzero()[:, 0] if rows.dtype == torch.bool else rows
        offsets, entries = self.select(rows)
        return Recipe(offsets, self.ids[entries], self.weights[entries], self.kept[rows])

    def plus(self, other: Recipe, factor: Tensor) -> Recipe:
        """Recipes of the sums ``self + factor * other``, row by row: entries of both, cut to the largest weights.

        Args:
            other: recipes of M rows.
            factor: reals [M].
        """
        rows = [self.row_of_entry, other.row_of_entry]
        order = torch.cat(rows).argsort(stable=True)
        weights = torch.cat([self.weights.double(), other.weights.double() * factor.double()[rows[1]]])
        both = Recipe.of(self.offsets + other.offsets, torch.cat([self.ids, other.ids])[order], weights[order])
        # Weights that an earlier cut removed belong to the sum of all weights.
        total = torch.zeros(len(self), dtype=torch.float64)
        for recipe, row, part in (
            (self, rows[0], weights[: len(self.ids)]),
            (other, rows[1], weights[len(self.ids) :]),
        ):
            size = torch.zeros_like(total).index_add_(0, row, part.abs())
            total += torch.where(recipe.kept > 0, size / recipe.kept.double(), 0.0)
        kept = torch.zeros_like(total).index_add_(0, both.row_of_entry, both.weights.double().abs())
        cut = (both.kept < 1) | (self.kept < 1) | (other.kept < 1)
        return dataclasses.replace(both, kept=torch.where(cut & (total > 0), kept / total, 1.0).float())

    @classmethod
    def joined(cls, recipes: Sequence[Recipe]) -> Recipe:
        """The rows of several recipes, one after the other."""
        starts = [0, *itertools.accumulate(len(recipe.ids) for recipe in recipes)]
        offsets = [recipe.offsets[:-1] + start for recipe, start in zip(recipes, starts, strict=False)]
        return cls(
            torch.cat([*offsets, torch.tensor([starts[-1]], dtype=torch.int64)]),
            torch.cat([torch.zeros(0, dtype=torch.int32), *(recipe.ids for recipe in recipes)]),
            torch.cat([torch.zeros(0), *(recipe.weights for recipe in recipes)]),
            torch.cat([torch.zeros(0), *(recipe.kept for recipe in recipes)]),
        )

    @classmethod
    def scattered(cls, count: int, parts: Sequence[tuple[Tensor, Recipe]]) -> Recipe:
        """Recipes of ``count`` rows of which only some have entries.

        Args:
            count: rows of the result.
            parts: positions int64 [m] of rows, and their recipes.
        """
        everything = cls.joined([cls.empty(1), *(recipe for _, recipe in parts)])
        position = torch.zeros(count, dtype=torch.int64)
        if parts:
            position[torch.cat([rows for rows, _ in parts])] = torch.arange(1, len(everything))
        return everything.pick(position)

    @classmethod
    def empty(cls, rows: int) -> Recipe:
        """Recipes without entries."""
        offsets = torch.zeros(rows + 1, dtype=torch.int64)
        return cls(offsets, torch.zeros(0, dtype=torch.int32), torch.zeros(0), torch.ones(rows))
