"""The input of a method, and helpers that several methods share."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..alignment.align import Alignment, MatchKind
from ..config import TransferConfig
from ..model.stored_rows import BLOCK, block_rows, gather
from ..operators.ops import Support
from ..progress import Progress
from ..vectors.auxiliary import Auxiliary
from .assembly import NO_PLM_ROW, NO_VECTOR, STATUSES, Assembly, Block, Head
from .recipe import Recipe

if TYPE_CHECKING:
    from ..shared import Shared

NO_SUPPORT = STATUSES.index("no_support")
# Memory of the supports of one chunk of tokens in the worst case, where every anchor is in every support.
CHUNK_BYTES = 256 << 20
ENTRY_BYTES = 24  # of one entry of a support: id, weight and coefficient


@dataclasses.dataclass(frozen=True)
class Job:
    """The input of a method.

    Attributes:
        alignment: of source and target tokens.
        source_rows: [S, D], the source's input rows as stored.
        head: output rows and bias of the source.
        used: int64, ids of source tokens that have a row.
        auxiliary: vectors of the target tokens; ``None`` for a method that reads none. Methods read :attr:`vectors`.
        plm_rows: [T or fewer, E], the PLM's input rows as stored; [0, 0] for a tokenizer alone.
        anchors: int64 [A], target ids of the anchors: shared text tokens that the method learns from.
        new: int64 [N], target ids of the tokens to build, ascending.
        config: the options.
        device: that the operators run on.
        progress: called with (tokens done, tokens in all).
        source_auxiliary: vectors of the source tokens in the space of ``auxiliary``; ``None`` for a method that reads none.
            Methods read :attr:`source_vectors`.
        shared: results of earlier transfers of this process; ``None`` keeps nothing.
        basis: identifies the content of the PLM rows and vectors, as part of the keys in ``shared``.
        hidden: int64, ids of source tokens whose rows a method must not read; empty outside the self-check.
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
    progress: Progress = lambda done, total: None
    source_auxiliary: Auxiliary | None = None
    shared: Shared | None = None
    basis: Hashable = None
    hidden: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    @property
    def width(self) -> int:
        """D + D', values of an input row and an output row together, the bias included."""
        return self.source_rows.shape[1] + self.head.width

    @property
    def vectors(self) -> torch.Tensor:
        """Auxiliary vectors of the target tokens, float32 [T, P]; zeros for a token without one.

        Raises:
            RuntimeError: the job has none, because the method's entry in METHODS does not say that it reads them.
        """
        return self._required(self.auxiliary, "vectors=True").vectors

    @property
    def has_vector(self) -> torch.Tensor:
        """Bool [T]: the target token has an auxiliary vector. Raises as :attr:`vectors`."""
        return self._required(self.auxiliary, "vectors=True").known

    @property
    def source_vectors(self) -> torch.Tensor:
        """Vectors of the source tokens in the space of :attr:`vectors`, float32 [S, P].

        Raises:
            RuntimeError: the job has none, because the method's entry in METHODS does not say where they come from.
        """
        return self._required(self.source_auxiliary, "source_vectors").vectors

    @property
    def source_has_vector(self) -> torch.Tensor:
        """Bool [S]: the source token has a vector. Raises as :attr:`source_vectors`."""
        return self._required(self.source_auxiliary, "source_vectors").known

    def _required(self, vectors: Auxiliary | None, entry: str) -> Auxiliary:
        if vectors is None:
            raise RuntimeError(
                f"method {self.config.method!r} reads vectors that its entry in METHODS lacks: set {entry}"
            )
        return vectors

    def source_ids(self, tokens: np.ndarray) -> torch.Tensor:
        """int64: the source ids of shared target tokens."""
        return torch.from_numpy(self.alignment.source_id[tokens].astype(np.int64))


def anchors_of(
    assembly: Assembly, alignment: Alignment, auxiliary: Auxiliary | None, plm_rows: torch.Tensor | None
) -> np.ndarray:
    """Target ids of the shared text tokens that have a vector and a PLM row; tokens matched by their role are not text.

    Args:
        assembly: rows under construction.
        alignment: of the two tokenizers.
        auxiliary: vectors; ``None`` does not ask for a vector.
        plm_rows: [T or fewer, E]; ``None`` does not ask for a PLM row.
    """
    ids = np.flatnonzero(assembly.shared & (alignment.kind != MatchKind.ROLE))
    if auxiliary is not None:
        ids = ids[auxiliary.known.numpy()[ids]]
    return ids if plm_rows is None else ids[has_row(plm_rows, ids)]


def has_row(plm_rows: torch.Tensor, ids: np.ndarray) -> np.ndarray:
    """Bool, for each id: the PLM has a row for it that is finite and not all zeros."""
    usable = ids < len(plm_rows)
    stored = torch.from_numpy(ids[usable])
    parts = [
        rows.isfinite().all(dim=1) & (rows != 0).any(dim=1)
        for rows in (gather(plm_rows, part) for part in stored.split(BLOCK))
    ]
    usable[usable] = torch.cat(parts).numpy() if parts else False
    return usable


def not_built(ids: np.ndarray | torch.Tensor, status: int) -> Block:
    """A block without rows, for tokens that the method cannot build and the assembly draws.

    Args:
        ids: int64, target ids.
        status: the reason, a code of :data:`~saltlm.rows.assembly.STATUSES`.
    """
    ids = torch.as_tensor(ids)
    return Block(ids, status=torch.full((len(ids),), status, dtype=torch.uint8))


def split_by_vector(job: Job) -> tuple[torch.Tensor, list[Block]]:
    """Ids of the new tokens that have a vector, and a block of those without one, if there are any."""
    known = job.has_vector.numpy()[job.new]
    return torch.from_numpy(job.new[known]), [] if known.all() else [not_built(job.new[~known], NO_VECTOR)]


def split_by_plm_row(job: Job) -> tuple[torch.Tensor, list[Block]]:
    """Ids of the new tokens that have a usable PLM row, and a block of those without one, if there are any."""
    usable = has_row(job.plm_rows, job.new)
    return torch.from_numpy(job.new[usable]), [] if usable.all() else [not_built(job.new[~usable], NO_PLM_ROW)]


def anchor_sides(job: Job, anchors: np.ndarray | None = None) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Input rows of the anchors in the source model, float32 [A, D], and their output rows [A, D'] unless the head is tied.

    Args:
        job: the method's input.
        anchors: target ids of some of the anchors; ``None`` takes all.
    """
    source = job.source_ids(job.anchors if anchors is None else anchors)
    head = job.head.gather(source)
    return gather(job.source_rows, source).to(job.device, torch.float32), None if head is None else head.to(job.device)


def recipe_of(job: Job, support: Support, weights: torch.Tensor) -> Recipe:
    """Recipes of rows that are weighted sums of anchors.

    Args:
        job: the method's input.
        support: of the rows, among the job's anchors.
        weights: reals [nnz].
    """
    return Recipe.of(support.offsets, job.source_ids(job.anchors)[support.ids.cpu().long()], weights)


def rows_at(matrix: torch.Tensor, ids: torch.Tensor | np.ndarray, device: torch.device) -> torch.Tensor:
    """Float32 rows ``ids`` of a stored matrix, on the device."""
    return gather(matrix, torch.as_tensor(ids)).to(device, torch.float32)


def row_blocks(job: Job, ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Target ids in parts whose input and output rows take little memory."""
    return ids.split(block_rows(job.width))


def support_blocks(ids: torch.Tensor, entries: int = 1, max_rows: int = BLOCK) -> tuple[torch.Tensor, ...]:
    """Target ids in parts whose supports take at most :data:`CHUNK_BYTES`.

    Parts are as large as that allows, because the anchors are prepared again for each part.

    Args:
        ids: int64 [n].
        entries: largest number of neighbours of a token.
        max_rows: largest number of tokens in a part.
    """
    return ids.split(max(1, min(max_rows, CHUNK_BYTES // (ENTRY_BYTES * max(1, entries)))))


def anchor_blocks(job: Job) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """PLM rows of the anchors, float32 [n, E], and their input and output rows side by side, float64 [n, D + D'].

    They come in blocks, on the device: in one piece the float64 matrix would be the largest object in memory.
    """
    for ids in row_blocks(job, torch.from_numpy(job.anchors)):
        sides = [side for side in anchor_sides(job, ids.numpy()) if side is not None]
        yield rows_at(job.plm_rows, ids, job.device), torch.cat(sides, dim=1).double()
