"""Methods that average the source pieces that spell a token; they need no anchors."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from ...alignment.align import Alignment
from ...model.stored_rows import block_rows, gather, lengths_of
from ...operators.ragged import RaggedRows, offsets_of
from ..assembly import COMPOSED, Block
from ..job import Job
from ..recipe import Recipe

Ids = torch.Tensor | np.ndarray  # int64 [n], target ids


class Pieces:
    """The source pieces that spell each target token (its cover), and the weighted means of their rows."""

    def __init__(self, job: Job, *, by_length: bool = False) -> None:
        """Read the covers of the alignment.

        Args:
            job: the method's input.
            by_length: weight the pieces by their numbers of characters instead of equally.
        """
        offsets, ids = torch.from_numpy(job.alignment.cover_offsets), torch.from_numpy(job.alignment.cover_ids)
        self.covers = RaggedRows(offsets, ids)
        self.weight = characters(job.alignment) if by_length else None
        self.source_size = len(job.source_rows)

    def spelled(self, ids: Ids) -> torch.Tensor:
        """Bool [n]: the token has a cover."""
        return self.count(ids) > 0

    def count(self, ids: Ids) -> torch.Tensor:
        """int64 [n]: number of pieces of each token."""
        tokens = torch.as_tensor(ids)
        return self.covers.offsets[tokens + 1] - self.covers.offsets[tokens]

    def flat(self, ids: Ids) -> torch.Tensor:
        """int64: source ids of the pieces of all tokens, one token after the other."""
        pieces = self.covers.ids[self.covers.select(torch.as_tensor(ids))[1]].long()
        if len(pieces) and int(pieces.max()) >= self.source_size:
            raise IndexError(f"a cover names source id {int(pieces.max())} of {self.source_size} rows")
        return pieces

    def mean(self, ids: Ids, rows: torch.Tensor) -> torch.Tensor:
        """Weighted mean of the rows of each token's pieces.

        Args:
            ids: int64 [n], target ids.
            rows: [p, D], the rows of the pieces that :meth:`flat` gives.

        Returns:
            Float64 [n, D].
        """
        sizes = self.count(ids)
        token = torch.arange(len(sizes)).repeat_interleave(sizes)
        total = torch.zeros(len(sizes), rows.shape[1], dtype=torch.float64)
        if self.weight is None:
            return total.index_add_(0, token, rows.double()) / sizes.double()[:, None]
        weight = self.weight[self.flat(ids)][:, None]
        weights = torch.zeros(len(sizes), 1, dtype=torch.float64).index_add_(0, token, weight)
        return total.index_add_(0, token, rows.double() * weight) / weights

    def recipe(self, ids: Ids, scale: float | torch.Tensor = 1.0) -> Recipe:
        """Recipes with the weights of :meth:`mean` times ``scale``, one number for all tokens or float64 [n]."""
        sizes = self.count(ids)
        flat, token = self.flat(ids), torch.arange(len(sizes)).repeat_interleave(sizes)
        weight = torch.ones(len(flat), dtype=torch.float64) if self.weight is None else self.weight[flat]
        total = torch.zeros(len(sizes), dtype=torch.float64).index_add_(0, token, weight)
        return Recipe.of(offsets_of(sizes), flat, weight * (scale / total)[token])


def characters(alignment: Alignment) -> torch.Tensor:
    """Number of characters of each source token, float64 [S].

    The space of a word start counts. A token that is a part of one character has 1.
    """
    data, offsets = alignment.source.token_bytes()
    starts = np.concatenate([[0], np.cumsum((data & 0xC0) != 0x80)])
    return torch.from_numpy(np.maximum(1, np.diff(starts[offsets])).astype(np.float64))


def subword_mean(job: Job) -> Iterator[Block]:
    """The mean of the source pieces that spell the token (fast vocabulary transfer); other tokens are not built."""
    uniform = Pieces(job)
    yield from _composed(job, uniform, uniform)


def subword_length(job: Job) -> Iterator[Block]:
    """The mean of the source pieces, weighted by their numbers of characters (weighted vocabulary transfer)."""
    weighted = Pieces(job, by_length=True)
    yield from _composed(job, weighted, weighted)


def subword_asymmetric(job: Job) -> Iterator[Block]:
    """Input row: the plain mean, scaled to the median norm of the source's rows; output row: the mean weighted by characters.

    A tied head has one row for both sides, which is the input row.
    """
    norm = float(torch.from_numpy(lengths_of(job.source_rows, torch.from_numpy(job.used))).median())
    yield from _composed(job, Pieces(job), Pieces(job, by_length=True), norm=norm)


def _composed(job: Job, pieces: Pieces, output: Pieces, norm: float | None = None) -> Iterator[Block]:
    """Means of the input rows by ``pieces`` and of the output rows by ``output``.

    Args:
        job: the method's input.
        pieces: weights of the input rows.
        output: weights of the output rows.
        norm: that the input rows are scaled to; ``None`` does not scale them.
    """
    spelled = job.new[pieces.spelled(job.new).numpy()]
    done = 0
    for block in np.array_split(spelled, max(1, -(-len(spelled) // block_rows(job.width)))):
        flat = pieces.flat(block)
        rows, head = pieces.mean(block, gather(job.source_rows, flat)), job.head.gather(flat)
        scale: float | torch.Tensor = 1.0
        if norm is not None:
            length = rows.norm(dim=1)
            scale = torch.where(length > 0, norm / length, 1.0)
            rows = rows * scale[:, None]
        yield Block(
            ids=torch.from_numpy(block),
            rows=rows.float(),
            head=None if head is None else output.mean(block, head).float(),
            origin=COMPOSED,
            support_size=pieces.count(block).int(),
            rule="pieces",
            recipe=pieces.recipe(block, scale),
        )
        done += len(block)
        job.progress(done, len(spelled))
