"""How rows of new tokens are built: one generator a method (step 4).

A method yields :class:`~saltlm.assemble.Block` after block, in target-id order, for the tokens it can build; what it leaves is
drawn (:meth:`~saltlm.assemble.Assembly.draw`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
import torch

from .align import Alignment, MatchKind
from .assemble import BLOCK, COMPOSED, NO_PLM_ROW, NO_VECTOR, SOLVED, Assembly, Block, Head, moments
from .auxiliary import Auxiliary
from .config import TransferConfig
from .ops import STATUSES, salt_rows

SOLVABLE = len(STATUSES[: STATUSES.index("no_support")])  # codes below this are rows the solver stands by


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


def anchors_of(
    assembly: Assembly, alignment: Alignment, auxiliary: Auxiliary | None, plm_rows: torch.Tensor
) -> np.ndarray:
    """Target ids of shared text tokens with a vector and a PLM row; roles stand for no text and never serve as anchors."""
    ids = np.flatnonzero((assembly.source_id >= 0)[: alignment.target.size] & (alignment.kind != MatchKind.ROLE))
    ids = ids[ids < len(plm_rows)]
    if auxiliary is not None:
        ids = ids[auxiliary.known.numpy()[ids]]
    at = torch.from_numpy(ids)
    good = [
        (rows.isfinite().all(dim=1) & (rows != 0).any(dim=1)) for rows in (plm_rows[part] for part in at.split(BLOCK))
    ]
    return ids[torch.cat(good).numpy()] if good else ids


def salt(job: Job) -> Iterator[Block]:
    """SALT: a regression from PLM to LLM space on each token's sparsemax neighbours (section 3.2; METHOD: steps 3 and 4)."""
    auxiliary, plm = job.auxiliary, job.plm_rows
    known = auxiliary.known.numpy()[job.new]
    reachable = known & (job.new < len(plm))
    for outcome, ids in ((NO_VECTOR, job.new[~known]), (NO_PLM_ROW, job.new[known & ~reachable])):
        if len(ids):
            yield _left(ids, outcome)
    anchors = torch.from_numpy(job.anchors)
    source = torch.from_numpy(job.alignment.source_id[job.anchors].astype(np.int64))
    anchor_lm = job.source_rows[source].to(job.device, torch.float32)
    anchor_head = job.head.gather(source)
    anchor_head = None if anchor_head is None else anchor_head.to(job.device)
    anchor_plm = plm[anchors].to(job.device, torch.float32)
    anchor_auxiliary = auxiliary.vectors[anchors].to(job.device)
    ids = torch.from_numpy(job.new[reachable])
    done = 0
    for block in ids.split(BLOCK):
        start = done
        built = salt_rows(
            auxiliary.vectors[block].to(job.device),
            anchor_auxiliary,
            plm[block].to(job.device, torch.float32),
            anchor_plm,
            anchor_lm,
            anchor_output=anchor_head,
            ridge=job.config.ridge,
            center=job.config.center,
            max_support=job.config.max_support,
            progress=lambda rows, _, start=start: job.progress(start + rows, len(ids)),
        )
        done += len(block)
        status = built.status.cpu()
        for solved in (True, False):
            at = (status < SOLVABLE) == solved
            if at.any():
                yield Block(
                    ids=block[at],
                    rows=built.rows.cpu()[at] if solved else None,
                    head=built.output_rows.cpu()[at] if solved and built.output_rows is not None else None,
                    origin=SOLVED,
                    support_size=built.support_size.cpu()[at],
                    rank=built.rank.cpu()[at],
                    residual=built.residual.cpu()[at],
                    status=status[at] + 1,
                )


def _left(ids: np.ndarray, outcome: int) -> Block:
    """Tokens left to be drawn, with the reason."""
    return Block(torch.from_numpy(ids), status=torch.full((len(ids),), outcome, dtype=torch.uint8))


def subword_mean(job: Job) -> Iterator[Block]:
    """The mean of the source pieces that spell the token (fast vocabulary transfer); tokens they cannot spell are left."""
    offsets, pieces = job.alignment.cover_offsets, job.alignment.cover_ids
    spelled = job.new[offsets[job.new + 1] > offsets[job.new]]
    limit = len(job.source_rows)
    done = 0
    for block in np.array_split(spelled, max(1, -(-len(spelled) // BLOCK))):
        starts, ends = offsets[block], offsets[block + 1]
        sizes = ends - starts
        flat = np.repeat(starts - np.concatenate([[0], np.cumsum(sizes)[:-1]]), sizes) + np.arange(sizes.sum())
        ids = torch.from_numpy(pieces[flat].astype(np.int64))
        if len(ids) and int(ids.max()) >= limit:
            raise IndexError(f"a cover names source id {int(ids.max())} of {limit} rows")
        owner = torch.from_numpy(np.repeat(np.arange(len(block)), sizes))
        count = torch.from_numpy(sizes.astype(np.float64))[:, None]

        def mean(rows: torch.Tensor, owner: torch.Tensor = owner, count: torch.Tensor = count) -> torch.Tensor:
            total = torch.zeros(len(count), rows.shape[1], dtype=torch.float64).index_add_(0, owner, rows.double())
            return (total / count).float()

        head = job.head.gather(ids)
        yield Block(
            ids=torch.from_numpy(block),
            rows=mean(job.source_rows[ids]),
            head=None if head is None else mean(head),
            origin=COMPOSED,
            support_size=torch.from_numpy(sizes.astype(np.int32)),
        )
        done += len(block)
        job.progress(done, len(spelled))


def mean(job: Job) -> Iterator[Block]:
    """The mean of all source rows, for every new token."""
    row = moments(job.source_rows, job.used)[0].float()
    parts = [moments(side, job.used)[0].float() for side in (job.head.rows, job.head.bias) if side is not None]
    yield from _same(job, row, torch.cat(parts) if parts else None)


def zero(job: Job) -> Iterator[Block]:
    """Zeros, for every new token."""
    example = job.head.gather(torch.zeros(1, dtype=torch.int64))
    yield from _same(
        job, torch.zeros(job.source_rows.shape[1]), None if example is None else torch.zeros_like(example[0])
    )


def normal(job: Job) -> Iterator[Block]:
    """Nothing: every new token is drawn from a normal with the source rows' mean and deviation, per dimension."""
    yield from ()


def _same(job: Job, row: torch.Tensor, head: torch.Tensor | None) -> Iterator[Block]:
    for block in torch.from_numpy(job.new).split(BLOCK):
        shared = None if head is None else head.expand(len(block), -1)
        yield Block(block, row.expand(len(block), -1), shared, origin=COMPOSED)


METHODS: dict[str, Callable[[Job], Iterator[Block]]] = {
    "salt": salt,
    "subword-mean": subword_mean,
    "mean": mean,
    "normal": normal,
    "zero": zero,
}
NEEDS_VECTORS = ("salt",)
