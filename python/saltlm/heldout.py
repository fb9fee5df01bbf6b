"""The self-check without training: hide shared tokens, predict their rows, compare with the true ones."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import torch

from .assemble import BLOCK

if TYPE_CHECKING:
    from .methods import Job

MOST = 1000  # hidden tokens: the figures' spread is then about 3 %, and the check takes seconds


def hide(words: list[str | None], anchors: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split anchors into kept and hidden ones, whole groups at a time.

    Tokens that differ in case or word start alone form a group: with a twin among the anchors a hidden token would be found
    rather than predicted.

    Args:
        words: text of each target token.
        anchors: int64 [A].
        share: of the anchors to hide, in [0, 0.5]; at most :data:`MOST` are.
        seed: of the choice.

    Returns:
        Kept and hidden anchors, ascending.
    """
    wanted = min(MOST, int(len(anchors) * share))
    keys = [(words[token] or f"\0{token}").casefold() for token in anchors]
    groups: dict[str, list[int]] = {}
    for token, key in zip(anchors.tolist(), keys, strict=True):
        groups.setdefault(key, []).append(token)
    names = sorted(groups)
    hidden: list[int] = []
    for index in np.random.default_rng(seed).permutation(len(names)):
        members = groups[names[index]]
        if len(hidden) + len(members) <= wanted:
            hidden += members
        if len(hidden) >= wanted:
            break
    chosen = np.array(sorted(hidden), dtype=anchors.dtype)
    return np.setdiff1d(anchors, chosen), chosen


def heldout_check(job: Job, share: float, seed: int) -> dict[str, float | int] | None:
    """Predict hidden anchors' input rows by the job's own method from the anchors that remain.

    Returns:
        ``tokens``; medians of ``relative_error`` (|predicted - true| / |true|), ``cosine``, and ``rank`` (place of the true
        row among all shared tokens' rows by cosine to the predicted one, 1 is best); ``top1``, the share of rank 1; and
        ``candidates``. ``None`` where nothing could be hidden or the method predicts no hidden token.
    """
    from .methods import build

    kept, hidden = hide(job.alignment.target.words(), job.anchors, share, seed)
    if not len(hidden) or not len(kept):
        return None
    if job.source_auxiliary is not None:
        # Neighbours among all source tokens: the hidden ones and their twins there must not be found.
        words = job.alignment.target.words()
        groups = {words[token].casefold() for token in hidden if words[token]}
        twins = [i for i, word in enumerate(job.alignment.source.words()) if word and word.casefold() in groups]
        job = dataclasses.replace(job, hidden=np.union1d(twins, job.alignment.source_id[hidden]).astype(np.int64))
    blocks = [
        b
        for b in build(dataclasses.replace(job, anchors=kept, new=hidden, progress=lambda *_: None))
        if b.rows is not None
    ]
    if not blocks:
        return None
    ids = torch.cat([block.ids for block in blocks]).numpy()
    predicted = torch.cat([block.rows for block in blocks]).double()
    finite = predicted.isfinite().all(dim=1)
    if not finite.any():
        return None
    ids, predicted = ids[finite.numpy()], predicted[finite]
    source = torch.from_numpy(job.alignment.source_id[job.anchors].astype(np.int64))
    true = job.source_rows[source[np.searchsorted(job.anchors, ids)]].double()
    error = (predicted - true).norm(dim=1) / true.norm(dim=1).clamp_min(1e-12)
    unit = torch.nn.functional.normalize(predicted, dim=1)
    cosine = (unit * torch.nn.functional.normalize(true, dim=1)).sum(dim=1)
    rank = torch.ones(len(ids), dtype=torch.int64)
    for part in source.split(BLOCK):  # all candidates at once would be the shared rows once more in float32
        candidates = torch.nn.functional.normalize(job.source_rows[part].float(), dim=1)
        rank += (unit.float() @ candidates.T > cosine.float()[:, None] + 1e-6).sum(dim=1)
    return {
        "tokens": len(ids),
        "candidates": len(source),
        "relative_error": float(error.median()),
        "cosine": float(cosine.median()),
        "rank": int(rank.median()),
        "top1": float((rank == 1).float().mean()),
    }
