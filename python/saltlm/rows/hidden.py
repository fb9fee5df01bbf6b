"""Shared tokens that the self-check hides, and a job in which a method cannot look at them."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Sequence

import numpy as np
import torch

from .. import _rust
from ..alignment.tokens import HOLE, SPECIAL
from ..model.stored_rows import gather
from .job import Job
from .scripts import bands, script_of
from .self_check_figures import Spread

MOST = 1000  # hidden tokens: the figures' spread is then about 3 %, and the check takes seconds


def twin_keys(vocabulary: _rust.Vocabulary) -> list[str]:
    """What each token shares with its twins: its text without case and without the spaces around it.

    Bytes that are no text, blanks and byte pieces keep all their bytes; special tokens and holes, which have no twins, are
    empty.
    """
    data, offsets = vocabulary.token_bytes()
    content, text = data.tobytes(), vocabulary.flags() & (SPECIAL | HOLE) == 0
    keys = []
    for is_text, (start, end) in zip(text.tolist(), itertools.pairwise(offsets.tolist()), strict=True):
        # Bytes that are no UTF-8 become lone surrogates: one string for each byte string.
        spelled = content[start:end].decode(errors="surrogateescape") if is_text else ""
        keys.append(spelled.strip().casefold() or spelled)
    return keys


def hide(keys: Sequence[str], anchors: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split anchors into kept and hidden ones, whole groups at a time.

    Tokens that differ in case or word start alone form a group: with a twin among the anchors a hidden token would be found
    rather than predicted. Groups are taken in the order of a hash of their key, so that methods whose anchors differ by a few
    tokens are checked on nearly the same ones.

    Args:
        keys: of each target token, as :func:`twin_keys` gives them; tokens of one key are hidden together.
        anchors: int64 [A].
        share: of the anchors to hide, in [0, 0.5]; at most :data:`MOST` are.
        seed: of the choice.

    Returns:
        Kept and hidden anchors, ascending.
    """
    wanted = min(MOST, int(len(anchors) * share))
    groups: dict[str, list[int]] = {}
    for token in anchors.tolist():
        groups.setdefault(keys[token] or f"\0{token}", []).append(token)
    salt = seed.to_bytes(8, "little")
    order = {key: hashlib.blake2b(key.encode(errors="surrogatepass"), digest_size=8, key=salt) for key in groups}
    hidden: list[int] = []
    for key in sorted(groups, key=lambda key: (order[key].digest(), key)):
        if len(hidden) + len(groups[key]) <= wanted:
            hidden += groups[key]
        if len(hidden) >= wanted:
            break
    chosen = np.array(sorted(hidden), dtype=anchors.dtype)
    return np.setdiff1d(anchors, chosen), chosen


@dataclasses.dataclass(frozen=True)
class Hidden:
    """Shared tokens that a method may not look at, and a job in which it cannot.

    Attributes:
        tokens: int64 [n], target ids, ascending.
        new: int64 [m], target ids of new tokens whose rows are looked at beside theirs.
        true: float32 [n, D], the hidden tokens' rows in the source.
        spread: of the source's rows.
        job: builds hidden and new tokens from the other anchors; the hidden ones' twins among the source tokens count as
            hidden, and their pieces are neither themselves nor their twins.
        script: of each hidden token.
        band: of each hidden token, 1 for the most frequent quarter of the target's tokens.
        order: what the bands go by, ``score`` or ``id``.
    """

    tokens: np.ndarray
    new: np.ndarray
    true: torch.Tensor
    spread: Spread
    job: Job
    script: list[str]
    band: np.ndarray
    order: str


def hide_in(job: Job, share: float, seed: int) -> Hidden | None:
    """Hide a share of the job's anchors; ``None`` where there are too few to hide any."""
    alignment = job.alignment
    keys = twin_keys(alignment.target)
    kept, tokens = hide(keys, job.anchors, share, seed)
    if not len(tokens) or not len(kept):
        return None
    twins: dict[str, list[int]] = {keys[token]: [] for token in tokens.tolist()}
    for id_, key in enumerate(twin_keys(alignment.source)):
        if key in twins:
            twins[key].append(id_)
    own = alignment.source_id[tokens].astype(np.int64)
    # A match looser than exact may have another key: the source's own token is hidden in any case.
    forbidden = [
        np.union1d(np.array(twins[keys[token]], dtype=np.int64), own[i : i + 1]) for i, token in enumerate(tokens)
    ]
    shared = np.unique(alignment.source_id[job.anchors].astype(np.int64))
    new = np.random.default_rng(seed).permutation(job.new)[:MOST]
    flags, scores = alignment.target.flags(), alignment.target.scores()
    return Hidden(
        tokens=tokens,
        new=np.sort(new),
        true=gather(job.source_rows, torch.from_numpy(own)).float(),
        # New rows will stand beside shared ones, so these set the scale, if there are enough to tell.
        spread=Spread.of(job.source_rows, shared if len(shared) >= 4 * job.source_rows.shape[1] else job.used),
        job=dataclasses.replace(
            job,
            anchors=kept,
            new=np.union1d(tokens, new),
            alignment=alignment.with_covers(tokens, *alignment.covers_without(tokens, forbidden)),
            hidden=np.unique(np.concatenate(forbidden)),
            progress=lambda done, total: None,
        ),
        script=[script_of(keys[token]) for token in tokens],
        band=bands(np.flatnonzero(flags & (SPECIAL | HOLE) == 0), scores)[tokens],
        order="id" if scores is None else "score",
    )
