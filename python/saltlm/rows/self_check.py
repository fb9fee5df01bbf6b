"""The self-check without training: hide shared tokens, predict their rows, compare with the true ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..model.stored_rows import blocks_of
from .assembly import moments
from .hidden import Hidden, hide_in
from .methods import build
from .self_check_figures import compared, grouped, score

if TYPE_CHECKING:
    from .methods import Job

LONGEST = 10.0  # times the longest shared row: a tied head then predicts this token everywhere
EQUAL = 1e-6  # variance of rows, in units of the source's, below which they tell nothing apart
WORST = -0.75  # draws with the source's covariance score about -1/2


def predict(hidden: Hidden, **options: Any) -> tuple[torch.Tensor, torch.Tensor, int]:
    """The rows that the job's method gives to hidden and to new tokens.

    What it leaves is drawn here too: the figures are of the rows that a transfer would write.

    Args:
        hidden: of :func:`hide_in`.
        **options: of :class:`~saltlm.TransferConfig`, in place of the job's.

    Returns:
        Float64 [n, D] and [m, D], and how many of the hidden tokens were drawn.
    """
    job = hidden.job
    if options:
        job = dataclasses.replace(job, config=dataclasses.replace(job.config, **options))
    rows = torch.full((len(job.new), hidden.true.shape[1]), torch.nan, dtype=torch.float64)
    for block in build(job):
        if block.rows is not None and len(block.ids):
            rows[torch.from_numpy(np.searchsorted(job.new, block.ids.numpy()))] = block.rows.double()
    drawn = ~rows.isfinite().all(dim=1)
    if drawn.any():
        mean, deviation = moments(job.source_rows, job.used)
        generator = torch.Generator().manual_seed(job.config.seed)
        noise = torch.randn(int(drawn.sum()), len(mean), generator=generator, dtype=torch.float64)
        rows[drawn] = mean + noise * deviation
    at, of = (torch.from_numpy(np.searchsorted(job.new, ids)) for ids in (hidden.tokens, hidden.new))
    return rows[at], rows[of], int(drawn[at].sum())


def heldout_check(job: Job, share: float, seed: int) -> dict[str, Any] | None:
    """Predict hidden anchors' input rows by the job's own method from what remains.

    Returns:
        :func:`check` of them; ``None`` where nothing could be hidden.
    """
    hidden = hide_in(job, share, seed)
    return None if hidden is None else check(hidden)


def check(hidden: Hidden, **options: Any) -> dict[str, Any]:
    """Figures of a method, by its job's options or others, on tokens that are hidden already.

    Returns:
        Those of :func:`~saltlm.rows.self_check_figures.compared` and :func:`~saltlm.rows.self_check_figures.score`; ``drawn``, the hidden
        tokens that the method cannot build; ``new_tokens`` looked at; ``scripts`` and ``bands``, error, cosine and rank by
        group; ``band_order``, whether bands go by the tokenizer's ``score`` or by ``id``; and ``broken``, see :func:`fault`.
    """
    rows, new, drawn = predict(hidden, **options)
    job = hidden.job
    source = torch.from_numpy(job.alignment.source_id[np.union1d(job.anchors, hidden.tokens)].astype(np.int64))
    figures, each = compared(rows, hidden.true, job.source_rows, source)
    parts = score(rows, hidden.true, new, hidden.spread)
    lengths = torch.cat([rows, new]).norm(dim=1)
    longest = max(float(block.norm(dim=1).max()) for block in blocks_of(job.source_rows, source))
    return {
        **figures,
        **parts,
        "drawn": drawn,
        "new_tokens": len(new),
        "broken": fault(parts, float(lengths.max()) / max(longest, 1e-30)),
        "scripts": grouped(each, hidden.script),
        "bands": grouped(each, hidden.band.tolist()),
        "band_order": hidden.order,
    }


def fault(parts: Mapping[str, float], length: float) -> str | None:
    """What makes a start unusable, in words; ``None`` if nothing does.

    Args:
        parts: as :func:`~saltlm.rows.self_check_figures.score` gives them.
        length: of the longest row, in units of the longest shared one's.
    """
    if length > LONGEST:
        return f"its longest row is {length:.0f} times the longest shared one"
    if parts["noise"] < EQUAL:
        return "all its rows are equal"
    if parts["score"] < WORST:
        return f"its rows fit the source no better than random ones (score {parts['score']:.2f}; exact rows have 1.5)"
    return None
