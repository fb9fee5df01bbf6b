"""The self-check without training: hide shared tokens, predict their rows, compare with the true ones."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .. import _rust
from ..alignment.tokens import HOLE, SPECIAL
from ..model.stored_rows import blocks_of, gather
from .assembly import moments
from .scripts import bands, script_of
from .self_check_figures import Spread, compared, grouped, score

if TYPE_CHECKING:
    from .methods import Job

MOST = 1000  # hidden tokens: the figures' spread is then about 3 %, and the check takes seconds
LONGEST = 10.0  # times the longest shared row: a tied head then predicts this token everywhere
EQUAL = 1e-6  # variance of rows, in units of the source's, below which they tell nothing apart
WORST = -0.75  # draws with the source's covariance score about -1/2


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


def predict(hidden: Hidden, **options: Any) -> tuple[torch.Tensor, torch.Tensor, int]:
    """The rows that the job's method gives to hidden and to new tokens.

    What it leaves is drawn here too: the figures are of the rows that a transfer would write.

    Args:
        hidden: of :func:`hide_in`.
        **options: of :class:`~saltlm.TransferConfig`, in place of the job's.

    Returns:
        Float64 [n, D] and [m, D], and how many of the hidden tokens were drawn.
    """
    from .methods import build

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
