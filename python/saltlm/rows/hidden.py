"""Shared tokens that the self-check hides, a job in which a method cannot read their rows, and groups to report them by."""

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
from ..text.scripts import script_of
from .job import Job
from .self_check_figures import Spread

MAX_TOKENS = 1000  # hidden tokens: the standard error of the figures is then about 3 %, and the check takes seconds
# Fewer hidden tokens are no check: the variance of their rows is the unit of the score, and for one token it is zero.
MIN_TOKENS = 4
MIN_VARIANCE = 1e-3  # of hidden rows, in units of the source's; rows of less are nearly equal, and no unit either
BANDS = 4  # frequency bands of the vocabulary


def twin_keys(vocabulary: _rust.Vocabulary) -> list[str]:
    """A key for each token that it shares with its twins: its text in lower case, without spaces around it.

    A token that is not UTF-8 or only blanks has its whole text as key. Special tokens and holes have no twins and an empty
    key.
    """
    data, offsets = vocabulary.token_bytes()
    content, text = data.tobytes(), vocabulary.flags() & (SPECIAL | HOLE) == 0
    keys = []
    for is_text, (start, end) in zip(text.tolist(), itertools.pairwise(offsets.tolist()), strict=True):
        # Bytes that are not UTF-8 become lone surrogates, so that different bytes give different strings.
        spelled = content[start:end].decode(errors="surrogateescape") if is_text else ""
        keys.append(spelled.strip().casefold() or spelled)
    return keys


def hide(keys: Sequence[str], anchors: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split the anchors into kept and hidden ones, so that twins are on the same side.

    A method could copy the row of a hidden token from a twin among the kept anchors, instead of predicting it. Groups of
    twins are hidden in the order of a hash of their key, so that two methods whose anchors differ by a few tokens are checked
    on nearly the same tokens.

    Args:
        keys: of each target token, from :func:`twin_keys`.
        anchors: int64 [A], target ids.
        share: of the anchors to hide, in [0, 0.5]; no more than :data:`MAX_TOKENS` are hidden.
        seed: of the hash.

    Returns:
        Kept and hidden anchors, ascending.
    """
    count = min(MAX_TOKENS, int(len(anchors) * share))
    groups: dict[str, list[int]] = {}
    for token in anchors.tolist():
        groups.setdefault(keys[token] or f"\0{token}", []).append(token)
    salt = seed.to_bytes(8, "little")
    order = {key: hashlib.blake2b(key.encode(errors="surrogatepass"), digest_size=8, key=salt) for key in groups}
    hidden: list[int] = []
    for key in sorted(groups, key=lambda key: (order[key].digest(), key)):
        if len(hidden) + len(groups[key]) <= count:
            hidden += groups[key]
        if len(hidden) >= count:
            break
    chosen = np.array(sorted(hidden), dtype=anchors.dtype)
    return np.setdiff1d(anchors, chosen), chosen


@dataclasses.dataclass(frozen=True)
class Hidden:
    """Hidden shared tokens, and a job in which a method cannot read their rows.

    Attributes:
        tokens: int64 [n], target ids of the hidden tokens, ascending.
        new: int64 [m], target ids of new tokens whose rows are built and checked as well.
        true: float32 [n, D], rows of the hidden tokens in the source.
        spread: mean and covariance of the source's rows.
        job: builds the hidden and the new tokens from the kept anchors. Its ``hidden`` has the hidden tokens' source ids and
            those of their twins; the pieces of a hidden token contain neither the token nor a twin.
        script: of each hidden token, from :func:`script_of`.
        band: frequency band of each hidden token, from :func:`bands`.
        order: what the bands are sorted by, ``score`` or ``id``.
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
    """Hide a share of a job's anchors.

    Args:
        job: the method's input.
        share: of the anchors to hide, in [0, 0.5].
        seed: of the choice.

    Returns:
        ``None`` where fewer than :data:`MIN_TOKENS` tokens can be hidden, or their rows are nearly equal.
    """
    alignment = job.alignment
    keys = twin_keys(alignment.target)
    kept, tokens = hide(keys, job.anchors, share, seed)
    if len(tokens) < MIN_TOKENS or not len(kept):
        return None
    twins: dict[str, list[int]] = {keys[token]: [] for token in tokens.tolist()}
    for source_id, key in enumerate(twin_keys(alignment.source)):
        if key in twins:
            twins[key].append(source_id)
    matched = alignment.source_id[tokens].astype(np.int64)
    # A token matched by a looser rule than exact may have another key than its match, which must be hidden as well.
    forbidden = [
        np.union1d(np.array(twins[keys[token]], dtype=np.int64), matched[i : i + 1]) for i, token in enumerate(tokens)
    ]
    shared = np.unique(alignment.source_id[job.anchors].astype(np.int64))
    new = np.random.default_rng(seed).permutation(job.new)[:MAX_TOKENS]
    flags, scores = alignment.target.flags(), alignment.target.scores()
    true = gather(job.source_rows, torch.from_numpy(matched)).float()
    # The shared rows set the scale, because the new rows are used together with them; all rows where they are too few.
    spread = Spread.of(job.source_rows, shared if len(shared) >= 4 * job.source_rows.shape[1] else job.used)
    if float(spread.whiten(true).var(dim=0, correction=0).mean()) < MIN_VARIANCE:
        return None
    return Hidden(
        tokens=tokens,
        new=np.sort(new),
        true=true,
        spread=spread,
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


def bands(text: np.ndarray, scores: np.ndarray | None) -> np.ndarray:
    """Frequency band of each token: 1 for the most frequent quarter of the text tokens, 4 for the least frequent.

    Args:
        text: int64, ids of the text tokens, ascending.
        scores: float64 [T], log-probabilities of a Unigram model. ``None`` sorts by id, because the vocabularies of other
            models begin with the most frequent tokens.

    Returns:
        int8 [largest id + 1], 0 for ids not in ``text``.
    """
    ordered = text if scores is None else text[np.argsort(-scores[text], kind="stable")]
    band = np.zeros(int(text.max(initial=-1)) + 1, dtype=np.int8)
    band[ordered] = 1 + np.arange(len(ordered)) * BANDS // max(1, len(ordered))
    return band
