"""The self-check without training: hide shared tokens, predict their rows, compare them with the true ones."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch

from ..files.summary_file import ScoreParts, SelfCheck
from ..model.stored_rows import blocks_of
from .assembly import row_moments
from .hidden import Hidden
from .methods import build
from .self_check_figures import compared, grouped, score

MAX_LENGTH = 10.0  # in units of the longest shared row; a tied head predicts a longer row's token everywhere
MIN_NOISE = 1e-6  # variance of rows in units of the source's; rows of less are all equal
MIN_SCORE = -0.75  # random rows with the covariance of the source score about -0.5


def predict(hidden: Hidden, **options: Any) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Rows that the job's method builds for the hidden and the new tokens.

    Tokens that the method does not build are drawn as in a transfer, so that the figures describe the rows of a transfer.

    Args:
        hidden: from :func:`~saltlm.rows.hidden.hide_in`.
        **options: fields of :class:`~saltlm.TransferConfig` that replace the job's.

    Returns:
        Float64 [n, D] and [m, D], and the number of hidden tokens that were drawn.
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
        mean, deviation = row_moments(job.source_rows, job.used)
        generator = torch.Generator().manual_seed(job.config.seed)
        noise = torch.randn(int(drawn.sum()), len(mean), generator=generator, dtype=torch.float64)
        rows[drawn] = mean + noise * deviation
    tokens, new = (torch.from_numpy(np.searchsorted(job.new, ids)) for ids in (hidden.tokens, hidden.new))
    return rows[tokens], rows[new], int(drawn[tokens].sum())


def check(hidden: Hidden, **options: Any) -> SelfCheck:
    """Figures of a method on tokens that are hidden already.

    Args:
        hidden: from :func:`~saltlm.rows.hidden.hide_in`.
        **options: fields of :class:`~saltlm.TransferConfig` that replace the job's.

    Returns:
        The figures of :func:`~saltlm.rows.self_check_figures.compared` and :func:`~saltlm.rows.self_check_figures.score`;
        ``drawn``, the number of hidden tokens that the method cannot build; ``new_tokens``, the number of new tokens checked;
        ``scripts`` and ``bands``, error, cosine and rank by group; ``band_order``, what the bands are sorted by (``score`` or
        ``id``); and ``broken``, see :func:`fault`.
    """
    rows, new, drawn = predict(hidden, **options)
    job = hidden.job
    source = job.source_ids(np.union1d(job.anchors, hidden.tokens))
    figures, by_token = compared(rows, hidden.true, job.source_rows, source)
    parts = score(rows, hidden.true, new, hidden.spread)
    lengths = torch.cat([rows, new]).norm(dim=1)
    longest = max(float(block.norm(dim=1).max()) for block in blocks_of(job.source_rows, source))
    return {
        **figures,
        **parts,
        "drawn": drawn,
        "new_tokens": len(new),
        "broken": fault(parts, float(lengths.max()) / max(longest, 1e-30)),
        "scripts": grouped(by_token, hidden.script),
        "bands": grouped(by_token, hidden.band.tolist()),
        "band_order": hidden.order,
    }


def fault(parts: ScoreParts, length: float) -> str | None:
    """The reason why rows are unusable as a start, as the end of a sentence; ``None`` if they are usable.

    Args:
        parts: from :func:`~saltlm.rows.self_check_figures.score`.
        length: norm of the longest row, in units of the longest shared row's.
    """
    if length > MAX_LENGTH:
        return f"its longest row is {length:.0f} times the longest shared one"
    if parts["noise"] < MIN_NOISE:
        return "all its rows are equal"
    if parts["score"] < MIN_SCORE:
        return f"its rows fit the source no better than random ones (score {parts['score']:.2f}; exact rows have 1.5)"
    return None
