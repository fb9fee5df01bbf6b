"""Methods that compose a row from the source pieces that spell the token; they need no anchors."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from ...alignment.align import Alignment
from ...model.stored_rows import block_rows, gather, lengths_of
from ..assembly import COMPOSED, Block
from ..job import Job
from ..recipe import Recipe


class Pieces:
    """The source pieces of new tokens and the mean of their rows."""

    def __init__(self, job: Job, *, by_length: bool = False) -> None:
        """Weighs the pieces equally, or by their characters."""
        self.offsets, self.ids = job.alignment.cover_offsets, job.alignment.cover_ids
        self.weight = characters(job.alignment) if by_length else None
        self.limit = len(job.source_rows)

    def spelled(self, ids: np.ndarray) -> np.ndarray:
        """Bool, for each target id: source pieces spell it."""
        return self.offsets[ids + 1] > self.offsets[ids]

    def count(self, ids: np.ndarray) -> np.ndarray:
        """How many pieces spell each target id."""
        return self.offsets[ids + 1] - self.offsets[ids]

    def flat(self, ids: np.ndarray) -> torch.Tensor:
        """int64: the pieces of all the target ids, one after the other."""
        sizes = self.count(ids)
        starts = self.offsets[ids] - np.concatenate([[0], np.cumsum(sizes)[:-1]])
        pieces = torch.from_numpy(self.ids[np.repeat(starts, sizes) + np.arange(sizes.sum())].astype(np.int64))
        if len(pieces) and int(pieces.max()) >= self.limit:
            raise IndexError(f"a cover names source id {int(pieces.max())} of {self.limit} rows")
        return pieces

    def mean(self, ids: np.ndarray, rows: torch.Tensor) -> torch.Tensor:
        """Float64 [n, D]: the weighted mean of the rows of each token's pieces, given one after the other."""
        sizes = self.count(ids)
        owner = torch.from_numpy(np.repeat(np.arange(len(ids)), sizes))
        total = torch.zeros(len(ids), rows.shape[1], dtype=torch.float64)
        if self.weight is None:
            return total.index_add_(0, owner, rows.double()) / torch.from_numpy(sizes.astype(np.float64))[:, None]
        weight = self.weight[self.flat(ids)][:, None]
        return total.index_add_(0, owner, rows.double() * weight) / torch.zeros(len(ids), 1).double().index_add_(
            0, owner, weight
        )

    def recipe(self, ids: np.ndarray, scale: float | torch.Tensor = 1.0) -> Recipe:
        """The pieces with the weights of :meth:`mean`, times ``scale``, one for all or float64 [n]."""
        sizes = torch.from_numpy(self.count(ids))
        flat, owner = self.flat(ids), torch.arange(len(ids)).repeat_interleave(sizes)
        weight = torch.ones(len(flat), dtype=torch.float64) if self.weight is None else self.weight[flat]
        total = torch.zeros(len(ids), dtype=torch.float64).index_add_(0, owner, weight)
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)])
        return Recipe.of(offsets, flat, weight * (scale / total)[owner])


def characters(alignment: Alignment) -> torch.Tensor:
    """Float64 [S]: the characters of each source token, the space of a word start among them; a part of one counts as one."""
    data, offsets = alignment.source.token_bytes()
    starts = np.concatenate([[0], np.cumsum((data & 0xC0) != 0x80)])
    return torch.from_numpy(np.maximum(1, np.diff(starts[offsets])).astype(np.float64))


def subword_mean(job: Job) -> Iterator[Block]:
    """The mean of the source pieces that spell the token (fast vocabulary transfer); tokens they cannot spell are left."""
    uniform = Pieces(job)
    yield from _composed(job, uniform, uniform)


def subword_length(job: Job) -> Iterator[Block]:
    """The mean of the source pieces, weighted by their characters (weighted vocabulary transfer)."""
    weighted = Pieces(job, by_length=True)
    yield from _composed(job, weighted, weighted)


def subword_asymmetric(job: Job) -> Iterator[Block]:
    """Input row: the uniform mean at the typical norm of the source's rows; output row: the mean weighted by characters.

    The typical norm is the median. A tied head has one row for both sides and so only the input's rule.
    """
    yield from _composed(job, Pieces(job), Pieces(job, by_length=True), norm=_typical_norm(job))


def _composed(job: Job, pieces: Pieces, output: Pieces, norm: float | None = None) -> Iterator[Block]:
    spelled = job.new[pieces.spelled(job.new)]
    done = 0
    for block in np.array_split(spelled, max(1, -(-len(spelled) // block_rows(job.width)))):
        flat = pieces.flat(block)
        rows, head, scale = pieces.mean(block, gather(job.source_rows, flat)), job.head.gather(flat), 1.0
        if norm is not None:
            length = rows.norm(dim=1, keepdim=True)
            scale = torch.where(length > 0, norm / length, 1.0)
            rows, scale = rows * scale, scale[:, 0]
        yield Block(
            ids=torch.from_numpy(block),
            rows=rows.float(),
            head=None if head is None else output.mean(block, head).float(),
            origin=COMPOSED,
            support_size=torch.from_numpy(pieces.count(block).astype(np.int32)),
            rule="pieces",
            recipe=pieces.recipe(block, scale),
        )
        done += len(block)
        job.progress(done, len(spelled))


def _typical_norm(job: Job) -> float:
    used = torch.from_numpy(job.used)
    return float(torch.from_numpy(lengths_of(job.source_rows, used)).median())
