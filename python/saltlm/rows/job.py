"""What a method works from, and what several of them share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..alignment.align import Alignment, MatchKind
from ..config import TransferConfig
from ..model.stored_rows import BLOCK, block_rows, gather
from ..operators.ops import Support
from ..vectors.auxiliary import Auxiliary
from .assembly import NO_PLM_ROW, NO_VECTOR, STATUSES, Assembly, Block, Head
from .recipe import Recipe

if TYPE_CHECKING:
    from ..shared import Shared

NO_SUPPORT = STATUSES.index("no_support")
# Memory that the supports of one chunk of tokens may take if every anchor were in every one of them.
CHUNK_BYTES = 256 << 20


@dataclasses.dataclass(frozen=True)
class Job:
    """What a method works from.

    Attributes:
        alignment: source and target tokens.
        source_rows: [S, D], the source's input rows as stored.
        head: the source's output side.
        used: int64, ids of source tokens that have a row.
        auxiliary: vectors of the target tokens; ``None`` where the method needs none.
        plm_rows: [T or fewer, E], the PLM's input rows as stored.
        anchors: int64 [A], target ids of shared tokens that can serve as anchors.
        new: int64 [N], target ids to build, ascending.
        config: the options.
        device: where the operators run.
        progress: called with (rows done, rows in all).
        source_auxiliary: vectors of the source tokens in the space of ``auxiliary``; ``None`` where the method needs none.
        hidden: int64, ids of source tokens whose rows must not be looked at; empty but in the self-check.
        shared: what earlier transfers of this process have computed; ``None`` keeps nothing.
        basis: stands for the content of PLM rows and vectors, for what is kept there.
    """

    alignment: Alignment
    source_rows: torch.Tensor
    head: Head
    used: np.ndarray
    auxiliary: Auxiliary | None
    plm_rows: torch.Tensor
    anchors: np.ndarray
    new: np.ndarray
    config: TransferConfig
    device: torch.device
    progress: Callable[[int, int], None] = lambda done, total: None
    source_auxiliary: Auxiliary | None = None
    shared: Shared | None = None
    basis: Hashable = None
    hidden: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    @property
    def width(self) -> int:
        """D + D': of an input row and an output row beside it, the bias counted."""
        return self.source_rows.shape[1] + self.head.width


def anchors_of(
    assembly: Assembly, alignment: Alignment, auxiliary: Auxiliary | None, plm_rows: torch.Tensor | None
) -> np.ndarray:
    """Target ids of shared text tokens with a vector and a PLM row; roles stand for no text and never serve as anchors.

    Args:
        assembly: rows under construction.
        alignment: of the two tokenizers.
        auxiliary: vectors; ``None`` asks for none.
        plm_rows: [T or fewer, E]; ``None`` asks for no PLM row.
    """
    ids = np.flatnonzero(assembly.shared & (alignment.kind != MatchKind.ROLE))
    if auxiliary is not None:
        ids = ids[auxiliary.known.numpy()[ids]]
    return ids if plm_rows is None else ids[have_row(plm_rows, ids)]


def have_row(plm_rows: torch.Tensor, ids: np.ndarray) -> np.ndarray:
    """Bool, for each id: the PLM has a finite row for it that is not zero."""
    found = ids < len(plm_rows)
    within = torch.from_numpy(ids[found])
    good = [
        rows.isfinite().all(dim=1) & (rows != 0).any(dim=1)
        for rows in (gather(plm_rows, part) for part in within.split(BLOCK))
    ]
    found[found] = torch.cat(good).numpy() if good else False
    return found


def left(ids: np.ndarray | torch.Tensor, outcome: int) -> Block:
    """Tokens left to be drawn, with the reason, a code of :data:`~saltlm.rows.assembly.STATUSES`."""
    ids = torch.as_tensor(ids)
    return Block(ids, status=torch.full((len(ids),), outcome, dtype=torch.uint8))


def split_by_vector(job: Job) -> tuple[torch.Tensor, list[Block]]:
    """New tokens that have a vector, and a block of those that have none."""
    known = job.auxiliary.known.numpy()[job.new]
    return torch.from_numpy(job.new[known]), [left(job.new[~known], NO_VECTOR)] if not known.all() else []


def split_by_plm_row(job: Job) -> tuple[torch.Tensor, list[Block]]:
    """New tokens that have a usable PLM row, and a block of those that have none."""
    have = have_row(job.plm_rows, job.new)
    return torch.from_numpy(job.new[have]), [left(job.new[~have], NO_PLM_ROW)] if not have.all() else []


def anchor_sides(job: Job, anchors: np.ndarray | None = None) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The anchors' rows in the source model, float32 [A, D], and their output rows [A, D'] where the head has its own.

    Args:
        job: whose anchors are meant.
        anchors: some of them alone, target ids.
    """
    chosen = job.anchors if anchors is None else anchors
    source = torch.from_numpy(job.alignment.source_id[chosen].astype(np.int64))
    head = job.head.gather(source)
    return gather(job.source_rows, source).to(job.device, torch.float32), None if head is None else head.to(job.device)


def recipe_of(job: Job, support: Support, weights: torch.Tensor) -> Recipe:
    """Recipes of supports among the anchors."""
    source = torch.from_numpy(job.alignment.source_id[job.anchors])
    return Recipe.of(support.offsets, source[support.ids.cpu().long()], weights)


def rows_at(matrix: torch.Tensor, ids: torch.Tensor | np.ndarray, device: torch.device) -> torch.Tensor:
    """Float32 rows of a stored matrix, on the device."""
    return gather(matrix, torch.as_tensor(ids)).to(device, torch.float32)


def row_blocks(job: Job, ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Target ids in parts whose rows, input and output, stay small."""
    return ids.split(block_rows(job.width))


def support_blocks(ids: torch.Tensor, entries: int = 1, most: int = BLOCK) -> tuple[torch.Tensor, ...]:
    """Target ids in parts whose supports, up to ``entries`` neighbours a token, stay small.

    Else as large as may be, at most ``most``, for the anchors are prepared anew for each.
    """
    return ids.split(max(1, min(most, CHUNK_BYTES // (24 * max(1, entries)))))


def side_blocks(job: Job) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Block by block, on the device: the anchors' PLM rows, float32 [n, E], and input and output rows, float64 [n, D + D'].

    Whole, the latter would be the largest thing in memory.
    """
    for ids in row_blocks(job, torch.from_numpy(job.anchors)):
        sides = [side for side in anchor_sides(job, ids.numpy()) if side is not None]
        yield rows_at(job.plm_rows, ids, job.device), torch.cat(sides, dim=1).double()
