"""Read rows of a matrix, which may be mapped from a file, in blocks that need little memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from .weights import release_pages

BLOCK = 8192
# Size of one block of rows in float64; wide matrices get fewer rows per block. A block of this size stays in the processor's
# cache from one step to the next, and the allocator reuses its memory; larger blocks are requested from the system each time.
BLOCK_BYTES = 8 << 20
# Rows that span more than NEAR_BYTES of a mapped file are read FAR_ROWS at a time: where the system's file cache uses pages
# of 2 MiB, each single row can bring a whole page into memory.
NEAR_BYTES, FAR_ROWS = 256 << 20, 128


def block_rows(width: int) -> int:
    """Number of rows of this width in one block: their float64 copy has at most :data:`BLOCK_BYTES`."""
    return max(1, min(BLOCK, BLOCK_BYTES // (8 * max(1, width))))


def gather(matrix: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Copy rows of a matrix.

    Pages of a mapped file are released after each block. They count as memory of this process, and rows scattered over a
    matrix would otherwise keep nearly all of it in memory.

    Args:
        matrix: [S, ...].
        ids: int64 [n], in [0, S).

    Returns:
        [n, ...] in the matrix's dtype.
    """
    rows = torch.empty(len(ids), *matrix.shape[1:], dtype=matrix.dtype)
    size = matrix[:1].numel() * matrix.element_size()
    begin = 0
    for part in ids.split(block_rows(matrix[:1].numel())):
        scattered = len(part) and (int(part.max()) - int(part.min()) + 1) * size > NEAR_BYTES
        for piece in part.split(FAR_ROWS if scattered else max(1, len(part))):
            torch.index_select(matrix, 0, piece, out=rows[begin : begin + len(piece)])
            begin += len(piece)
            release_pages()
    return rows


def blocks_of(matrix: torch.Tensor, ids: torch.Tensor) -> Iterator[torch.Tensor]:
    """The rows of :func:`gather` in float64, block by block; no block if ``ids`` is empty."""
    for part in ids.split(block_rows(matrix[:1].numel())) if len(ids) else ():
        yield gather(matrix, part).double()


def lengths_of(matrix: torch.Tensor, ids: torch.Tensor) -> np.ndarray:
    """float64 [n]: Euclidean norms of the rows ``ids``; a vector (a bias) counts as a matrix with one column."""
    # Written into one array: small arrays allocated between the blocks would keep a block's memory from being reused.
    lengths, begin = np.zeros(len(ids)), 0
    for block in blocks_of(matrix, ids):
        lengths[begin : begin + len(block)] = block.reshape(len(block), -1).norm(dim=1).numpy()
        begin += len(block)
    return lengths
