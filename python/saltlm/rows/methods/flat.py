"""Baselines that read nothing of the token: one row for all tokens, or a random one for each."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ...model.stored_rows import blocks_of
from ...operators.linear import centred_products, mean_of_rows
from ..assembly import COMPOSED, DRAWN, Block, row_moments
from ..job import Job, row_blocks


def mean(job: Job) -> Iterator[Block]:
    """The mean of all source rows, for every new token."""
    row = row_moments(job.source_rows, job.used)[0].float()
    parts = [row_moments(side, job.used)[0].float() for side in (job.head.rows, job.head.bias) if side is not None]
    yield from _same(job, row, torch.cat(parts) if parts else None, "mean")


def zero(job: Job) -> Iterator[Block]:
    """Zeros, for every new token."""
    head = torch.zeros(job.head.width) if job.head.present else None
    yield from _same(job, torch.zeros(job.source_rows.shape[1]), head, "zeros")


def normal(job: Job) -> Iterator[Block]:
    """Nothing: the assembly draws all tokens from a normal distribution with the source's mean and deviation per dimension."""
    yield from ()


def _same(job: Job, row: torch.Tensor, head: torch.Tensor | None, rule: str) -> Iterator[Block]:
    for ids in row_blocks(job, torch.from_numpy(job.new)):
        heads = None if head is None else head.expand(len(ids), -1)
        yield Block(ids, row.expand(len(ids), -1), heads, origin=COMPOSED, rule=rule)


def multivariate(job: Job) -> Iterator[Block]:
    """Draws from a normal distribution with the source rows' mean and full covariance (Hewitt 2021); output rows likewise.

    ``resize_token_embeddings`` of transformers scales the covariance by 1e-9, which in effect gives ``mean``.
    """
    generator = torch.Generator().manual_seed(job.config.seed)
    used = torch.from_numpy(job.used)
    mean, root = _distribution(job.source_rows, used)
    heads = job.head.gather(used)
    head = None if heads is None else _distribution(heads, torch.arange(len(used)))

    def draw(count: int, mean: torch.Tensor, root: torch.Tensor) -> torch.Tensor:
        return (mean + torch.randn(count, len(mean), generator=generator, dtype=torch.float64) @ root).float()

    done = 0
    for ids in row_blocks(job, torch.from_numpy(job.new)):
        rows = draw(len(ids), mean, root)
        yield Block(ids, rows, None if head is None else draw(len(ids), *head), origin=DRAWN, rule="random")
        done += len(ids)
        job.progress(done, len(job.new))


def _distribution(matrix: torch.Tensor, used: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean [D] of the rows ``used``, and a root R [D, D] of their covariance R^T R, in float64."""
    mean = mean_of_rows(blocks_of(matrix, used), len(used))
    covariance = centred_products(blocks_of(matrix, used), mean) / max(1, len(used) - 1)
    # Eigenvectors rather than Cholesky: with fewer rows than dimensions the covariance is singular.
    values, vectors = torch.linalg.eigh(covariance)
    return mean, values.clamp_min(0).sqrt()[:, None] * vectors.T
