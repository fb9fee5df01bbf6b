"""Baselines that know nothing of the token: one row for all, or a random one."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ...model.stored_rows import blocks_of
from ..assembly import COMPOSED, DRAWN, Block, moments
from ..job import Job, row_blocks


def mean(job: Job) -> Iterator[Block]:
    """The mean of all source rows, for every new token."""
    row = moments(job.source_rows, job.used)[0].float()
    parts = [moments(side, job.used)[0].float() for side in (job.head.rows, job.head.bias) if side is not None]
    yield from _same(job, row, torch.cat(parts) if parts else None, "mean")


def zero(job: Job) -> Iterator[Block]:
    """Zeros, for every new token."""
    example = job.head.gather(torch.zeros(1, dtype=torch.int64))
    yield from _same(
        job, torch.zeros(job.source_rows.shape[1]), None if example is None else torch.zeros_like(example[0]), "zeros"
    )


def normal(job: Job) -> Iterator[Block]:
    """Nothing: every new token is drawn from a normal with the source rows' mean and deviation, per dimension."""
    yield from ()


def _same(job: Job, row: torch.Tensor, head: torch.Tensor | None, rule: str) -> Iterator[Block]:
    for block in row_blocks(job, torch.from_numpy(job.new)):
        shared = None if head is None else head.expand(len(block), -1)
        yield Block(block, row.expand(len(block), -1), shared, origin=COMPOSED, rule=rule)


def multivariate(job: Job) -> Iterator[Block]:
    """Draws from a normal with the mean and the full covariance of the source rows (Hewitt 2021); the head from its own.

    transformers' ``resize_token_embeddings`` shrinks the covariance by 1e-9, which gives ``mean`` in effect.
    """
    generator = torch.Generator().manual_seed(job.config.seed)
    mean, root = _spread(job.source_rows, torch.from_numpy(job.used))
    head = None
    if job.head.present:
        head = _spread(job.head.gather(torch.from_numpy(job.used)), torch.arange(len(job.used)))

    def draw(count: int, mean: torch.Tensor, root: torch.Tensor) -> torch.Tensor:
        return (mean + torch.randn(count, len(mean), generator=generator, dtype=torch.float64) @ root).float()

    done = 0
    for block in row_blocks(job, torch.from_numpy(job.new)):
        rows = draw(len(block), mean, root)
        drawn = None if head is None else draw(len(block), *head)
        yield Block(block, rows, drawn, origin=DRAWN, rule="random")
        done += len(block)
        job.progress(done, len(job.new))


def _spread(matrix: torch.Tensor, used: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean [D] of the rows ``used`` and a root R [D, D] of their covariance, R^T R, in float64."""
    mean = sum(block.sum(dim=0) for block in blocks_of(matrix, used)) / len(used)
    covariance = torch.zeros(len(mean), len(mean), dtype=torch.float64)
    for block in blocks_of(matrix, used):
        centred = block - mean
        covariance.addmm_(centred.T, centred)
    # Eigenvectors rather than Cholesky: fewer rows than dimensions make the covariance singular.
    values, vectors = torch.linalg.eigh(covariance / max(1, len(used) - 1))
    return mean, values.clamp_min(0).sqrt()[:, None] * vectors.T
