"""Rows read from matrices as stored, mapped from a file or not, in blocks that keep memory small."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from .weights import release_pages

BLOCK = 8192
# Of one block of rows in float64; wide models get fewer rows a block. What is this small stays in the processor's cache from
# one step to the next, and the allocator hands its memory on; larger blocks come anew from the system each time.
BLOCK_BYTES = 8 << 20
# What is read of a mapped file at once. A row alone may bring a page of 2 MB along, where the system's cache is made of such.
NEAR_BYTES, FAR_ROWS = 256 << 20, 128


def block_rows(width: int) -> int:
    """How many rows of this width are worked on at once: few enough that their copies in float64 stay small."""
    return max(1, min(BLOCK, BLOCK_BYTES // (8 * max(1, width))))


def gather(matrix: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Rows ``ids`` of a matrix that may be mapped from a file, in its dtype; pages are given back on the way.

    They count as the process's memory, and rows from all over a matrix bring nearly all of it along.

    Args:
        matrix: [S, ...].
        ids: int64 [n].
    """
    rows = torch.empty(len(ids), *matrix.shape[1:], dtype=matrix.dtype)
    size = matrix[:1].numel() * matrix.element_size()
    begin = 0
    for part in ids.split(block_rows(matrix[:1].numel())):
        few = len(part) and (int(part.max()) - int(part.min()) + 1) * size > NEAR_BYTES
        for piece in part.split(FAR_ROWS if few else max(1, len(part))):
            torch.index_select(matrix, 0, piece, out=rows[begin : begin + len(piece)])
            begin += len(piece)
            release_pages()
    return rows


def blocks_of(matrix: torch.Tensor, ids: torch.Tensor) -> Iterator[torch.Tensor]:
    """The same rows in float64, block by block; none of no ids."""
    for part in ids.split(block_rows(matrix[:1].numel())) if len(ids) else ():
        yield gather(matrix, part).double()


def lengths_of(matrix: torch.Tensor, ids: torch.Tensor) -> np.ndarray:
    """Float64 [n]: norms of the rows ``ids``; a bias counts as rows of one value."""
    # Filled in place: lengths that stay between the blocks would keep the room of each block from the next one.
    lengths, begin = np.zeros(len(ids)), 0
    for block in blocks_of(matrix, ids):
        lengths[begin : begin + len(block)] = block.reshape(len(block), -1).norm(dim=1).numpy()
        begin += len(block)
    return lengths
