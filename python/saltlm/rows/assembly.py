"""The new matrices under construction, with the origin of each row (step 5)."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from ..alignment.align import HOLE, Alignment, MatchKind
from ..alignment.causal_tokenizer import adds_bos_eos
from ..alignment.expand import Expansion
from ..errors import input_error
from ..model.checkpoint import Source, Table
from ..model.stored_rows import block_rows, blocks_of, gather
from ..operators.checks import all_finite, finite_rows
from ..operators.linear import mean_and_deviation
from ..operators.ops import STATUSES as SOLVER_STATUSES
from .matrices import NewMatrices
from .recipe import RULES, Recipe

ORIGINS = ("copied", "role", "solved", "composed", "drawn", "padding")
COPIED, ROLE, SOLVED, COMPOSED, DRAWN, PADDING = range(len(ORIGINS))
# The codes of the solver follow "not_solved" in their order; the last three are set outside of the solver.
STATUSES = ("not_solved", *SOLVER_STATUSES, "no_vector", "no_plm_row", "out_of_range")
NOT_SOLVED, NO_VECTOR, NO_PLM_ROW, OUT_OF_RANGE = 0, *range(len(SOLVER_STATUSES) + 1, len(STATUSES))


@dataclasses.dataclass(frozen=True)
class Block:
    """Built rows of ``M`` target tokens, or the reason why they were not built.

    Attributes:
        ids: int64 [M], target ids.
        rows: [M, D], input rows in float32 or wider; ``None`` where the tokens are not built and so will be drawn.
        head: [M, D'], output rows, with the bias as last column where the model has one; ``None`` for a tied head.
        origin: position in :data:`ORIGINS`.
        support_size: int32 [M], number of neighbours; ``None`` where the rule has no neighbours.
        rank: int32 [M], rank of each regression; ``None`` without one.
        residual: float32 [M], unexplained share of each PLM row; ``None`` without a regression.
        status: uint8 [M], codes of :data:`STATUSES`; ``None`` for ``not_solved``.
        rule: how the rows were made, one of :data:`~saltlm.rows.recipe.RULES`.
        recipe: source rows and weights of the rows; ``None`` where they are not a weighted sum of source rows.
    """

    ids: torch.Tensor
    rows: torch.Tensor | None = None
    head: torch.Tensor | None = None
    origin: int = DRAWN
    support_size: torch.Tensor | None = None
    rank: torch.Tensor | None = None
    residual: torch.Tensor | None = None
    status: torch.Tensor | None = None
    rule: str = "none"
    recipe: Recipe | None = None

    def part(self, mask: torch.Tensor) -> Block:
        """The rows that a bool mask [M] selects."""
        changes: dict[str, Any] = {
            name: value[mask] for name, value in vars(self).items() if isinstance(value, torch.Tensor)
        }
        changes["recipe"] = None if self.recipe is None else self.recipe.pick(mask)
        return dataclasses.replace(self, **changes)


class Head:
    """Output rows of a source model, with its bias as one more column: the same coefficients build both."""

    def __init__(self, source: Source) -> None:
        self.rows = source.output_rows
        self.bias = source.output_bias

    @property
    def present(self) -> bool:
        """Whether the model has output rows or a bias; a tied head without bias has neither."""
        return self.rows is not None or self.bias is not None

    @property
    def width(self) -> int:
        """D', values of an output row and its bias; 0 for a tied head without bias."""
        return (0 if self.rows is None else self.rows.shape[1]) + (self.bias is not None)

    def gather(self, ids: torch.Tensor) -> torch.Tensor | None:
        """Output rows and biases of source ids, float32 [n, D']; ``None`` for a tied head without bias."""
        parts = []
        if self.rows is not None:
            parts.append(gather(self.rows, ids).float())
        if self.bias is not None:
            parts.append(self.bias[ids].float()[:, None])
        return torch.cat(parts, dim=1) if parts else None


class Assembly:
    """The new matrices under construction, and the origin of each row.

    Attributes:
        source_id: int32 [T'], source token of each copied input row; -1 for none.
        output_id: int32 [T'], the same for output rows. It differs for a token that begins and ends a text.
    """

    def __init__(
        self,
        source: Source,
        alignment: Alignment,
        rows: int,
        dtype: torch.dtype | None,
        expansion: Expansion | None = None,
    ) -> None:
        """Copy the shared rows (all of the source's with an expansion), and mark the rows to build as open.

        Args:
            source: the source model.
            alignment: of the source's tokenizer and the new one.
            rows: T', rows of the new matrices, at least T.
            dtype: of the written rows; ``None`` keeps the checkpoint's.
            expansion: the tokens that are added to the source's rows; ``None`` if the target's tokenizer replaces the source's.
        """
        self.head = Head(source)
        self.source = source
        self.tables: dict[str, torch.Tensor] = {}  # key -> new rows, see NewMatrices
        self._arguments = (alignment, rows, dtype, expansion)
        self.input_rows = torch.zeros(rows, source.input_rows.shape[1], dtype=dtype or source.input_rows.dtype)
        self.output_rows: torch.Tensor | None = None
        if source.output_rows is not None:
            shape = (rows, source.output_rows.shape[1])
            self.output_rows = torch.zeros(shape, dtype=dtype or source.output_rows.dtype)
        self.output_bias: torch.Tensor | None = None
        if source.output_bias is not None:
            self.output_bias = torch.zeros(rows, dtype=dtype or source.output_bias.dtype)
        self.origin = np.full(rows, PADDING, dtype=np.uint8)
        self.source_id = np.full(rows, -1, dtype=np.int32)
        self.support_size = np.zeros(rows, dtype=np.int32)
        self.rank = np.zeros(rows, dtype=np.int32)
        self.residual = np.zeros(rows, dtype=np.float32)
        self.status = np.full(rows, NOT_SOLVED, dtype=np.uint8)
        self.rule = np.zeros(rows, dtype=np.uint8)
        self._recipes: list[tuple[torch.Tensor, Recipe]] = []
        size = alignment.target.size
        # A tokenizer may have more tokens than its model has rows: a token matched to such a token has no row to copy.
        shared = alignment.shared & (alignment.source_id < len(source.input_rows))
        hole = alignment.target.flags() & HOLE > 0
        self.shared = shared
        self.open = np.zeros(rows, dtype=bool)
        # Methods use target ids. They are the positions of the rows, except where tokens are added to the source's rows.
        self.row_of = np.arange(size)
        if expansion is None:
            self.new = np.flatnonzero(~shared & ~hole)
            ids = np.flatnonzero(shared)
            self.source_id[ids] = alignment.source_id[ids]
            ends = {token: match for token, match in alignment.ends.items() if match < len(source.input_rows)}
            if self.output_rows is None and not adds_bos_eos(source.tokenizer)[0]:
                # The one row of a token that begins and ends a text: see saltlm.alignment.roles.
                self.source_id[list(ends)] = list(ends.values())
            self.origin[ids] = np.where(alignment.kind[ids] == MatchKind.ROLE, ROLE, COPIED)
        else:
            self.new = expansion.added
            self.row_of = np.full(size, -1)
            self.row_of[self.new] = expansion.first + np.arange(len(self.new))
            ids = np.arange(len(source.input_rows))
            self.source_id[ids], self.origin[ids] = ids, COPIED
        self.open[self.row_of[self.new]] = True
        self._copy(ids)
        self.output_id = self.source_id.copy()
        if expansion is None and ends:
            self.output_id[list(ends)] = list(ends.values())
            self._copy_outputs(np.array(sorted(ends)))

    def _copy(self, ids: np.ndarray) -> None:
        self.rule[ids] = RULES.index("copy")
        step = block_rows(self.input_rows.shape[1])
        for block in np.array_split(ids, max(1, -(-len(ids) // step))):
            rows, source = torch.from_numpy(block), torch.from_numpy(self.source_id[block].astype(np.int64))
            for matrix, copied in self.sides():
                copied[rows] = gather(matrix, source).to(copied.dtype)
                if copied.dtype != matrix.dtype and not all_finite(copied[rows]):
                    raise input_error(
                        "dtype",
                        str(copied.dtype).removeprefix("torch."),
                        "one that holds the source's rows",
                        f"leave --dtype out to keep {str(matrix.dtype).removeprefix('torch.')}",
                    )

    def for_table(self, table: Table) -> Assembly:
        """An assembly as this one was before any row was built, with a table in the place of input matrix, head or bias.

        A table of per-layer inputs may have fewer rows than the input matrix: shared tokens beyond them get row 0, which the
        model reads for them.
        """
        alignment, rows, dtype, expansion = self._arguments
        count = len(table.rows)
        if table.role == "input":
            source = dataclasses.replace(self.source, input_rows=table.rows, output_rows=None, output_bias=None)
        elif table.role == "output":
            source = dataclasses.replace(self.source, output_rows=table.rows, output_bias=None)
        else:
            source = dataclasses.replace(self.source, output_rows=None, output_bias=table.rows)
        alignment = dataclasses.replace(
            alignment, source_id=np.where(alignment.source_id < count, alignment.source_id, np.int32(0))
        )
        part = Assembly(source, alignment, rows, dtype, expansion)
        if expansion is not None and count < len(self.source.input_rows):
            part._copy_first(np.arange(count, len(self.source.input_rows)))
        return part

    def _copy_first(self, ids: np.ndarray) -> None:
        """Copy the first source row to some rows."""
        self.source_id[ids], self.origin[ids] = 0, COPIED
        self._copy(ids)

    def rows_of(self, table: Table) -> torch.Tensor:
        """The matrix that :meth:`for_table` put the table in the place of.

        Raises:
            ValueError: this assembly is not one for a table of this role.
        """
        matrices = {"input": self.input_rows, "output": self.output_rows, "bias": self.output_bias}
        matrix = matrices[table.role]
        if matrix is None:
            raise ValueError(f"an assembly without rows for {table.key}")
        return matrix

    def _copy_outputs(self, ids: np.ndarray) -> None:
        """Copy the output rows and biases of tokens whose :attr:`output_id` differs from their :attr:`source_id`."""
        rows, source = torch.from_numpy(ids), torch.from_numpy(self.output_id[ids].astype(np.int64))
        for matrix, copied in itertools.islice(self.sides(), 1, None):
            copied[rows] = gather(matrix, source).to(copied.dtype)

    def copy(self) -> Assembly:
        """An independent copy of this assembly as it is now."""
        other = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, torch.Tensor):
                setattr(other, name, value.clone())
            elif isinstance(value, np.ndarray | list | dict):
                setattr(other, name, value.copy())
        return other

    def put(self, block: Block) -> None:
        """Store built rows; a row that is not finite in the written dtype stays open, with status ``out_of_range``."""
        ids = self.row_of[block.ids.numpy()]
        positions = torch.from_numpy(ids)
        for name in ("support_size", "rank", "residual", "status"):
            values = getattr(block, name)
            if values is not None:
                getattr(self, name)[ids] = values.numpy()
        if block.rows is None or not len(ids):
            return
        rows = block.rows.to(self.input_rows.dtype)
        finite = finite_rows(rows)
        head, bias = self._split_head(block.head)
        for part in (head, bias):
            if part is not None:
                finite &= finite_rows(part)
        kept = finite.numpy()
        self.input_rows[positions[finite]] = rows[finite]
        if self.output_rows is not None and head is not None:
            self.output_rows[positions[finite]] = head[finite]
        if self.output_bias is not None and bias is not None:
            self.output_bias[positions[finite]] = bias[finite]
        self.origin[ids[kept]] = block.origin
        self.rule[ids[kept]] = RULES.index(block.rule)
        if block.recipe is not None:
            self._recipes.append((positions[finite], block.recipe.pick(finite)))
        self.open[ids[kept]] = False
        self.status[ids[~kept]] = OUT_OF_RANGE

    def _split_head(self, head: torch.Tensor | None) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Output rows and bias of a block, in the written dtype."""
        if head is None:
            return None, None
        bias = head[:, -1].to(self.output_bias.dtype) if self.output_bias is not None else None
        rows = head[:, : self.output_rows.shape[1]].to(self.output_rows.dtype) if self.output_rows is not None else None
        return rows, bias

    def draw(self, seed: int, used: np.ndarray) -> None:
        """Draw the open rows from a normal distribution with mean and deviation of the source rows in each dimension.

        Section 3.1 of the paper does so for a token without a vector. Rows are drawn in the order of their ids, so that one
        seed gives one result.

        Args:
            seed: of the generator.
            used: int64, ids of the source tokens that mean and deviation are taken of (not padding rows of the matrix).
        """
        ids = torch.from_numpy(np.flatnonzero(self.open))
        if not len(ids):
            return
        generator = torch.Generator().manual_seed(seed)
        for matrix, drawn in self.sides():
            mean, deviation = row_moments(matrix, used)
            limit = torch.finfo(drawn.dtype).max
            for block in ids.split(block_rows(len(mean))):
                noise = torch.randn(len(block), len(mean), generator=generator, dtype=torch.float64)
                values = (mean + noise * deviation).clamp(-limit, limit)
                drawn[block] = values.reshape(-1, *drawn.shape[1:]).to(drawn.dtype)
        self.origin[ids.numpy()] = DRAWN
        self.rule[ids.numpy()] = RULES.index("random")
        self.open[ids.numpy()] = False

    def pad(self, used: np.ndarray) -> None:
        """Set the rows that belong to no token to the mean source row: finite, and never the most likely output."""
        ids = torch.from_numpy(np.flatnonzero(self.origin == PADDING))
        self.rule[ids.numpy()] = RULES.index("mean")
        if len(ids):
            for matrix, padded in self.sides():
                mean = row_moments(matrix, used)[0]
                padded[ids] = mean.expand(len(ids), -1).reshape(-1, *padded.shape[1:]).to(padded.dtype)

    def recipe(self) -> Recipe:
        """Recipes of all T' rows; empty for rows that are not a weighted sum of source rows."""
        return Recipe.scattered(len(self.origin), self._recipes)

    def sides(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Source and new matrix of input rows and, where the model has them, of output rows and the head's bias."""
        yield self.source.input_rows, self.input_rows
        if self.source.output_rows is not None and self.output_rows is not None:
            yield self.source.output_rows, self.output_rows
        if self.source.output_bias is not None and self.output_bias is not None:
            yield self.source.output_bias, self.output_bias

    def matrices(self) -> NewMatrices:
        """The finished matrices."""
        if self.open.any():
            raise RuntimeError(f"{int(self.open.sum())} rows were never built")
        return NewMatrices(
            input_rows=self.input_rows,
            output_rows=self.output_rows,
            output_bias=self.output_bias,
            tables=self.tables,
        )


def row_moments(matrix: torch.Tensor, used: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of the rows ``used`` of a stored matrix in each dimension, float64 [D], [1] for a bias."""
    ids = torch.from_numpy(used)

    def blocks() -> Iterator[torch.Tensor]:
        return (block.reshape(len(block), -1) for block in blocks_of(matrix, ids))

    return mean_and_deviation(blocks, len(ids))
