"""Token sequences -> the cost of every token in nats, by sliding windows and with the logits made piece by piece."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from ..errors import input_error
from ..model.body_and_head import BodyAndHead, close, split_head
from ..model.causal_lm import CausalLM

# Floats of logits held at once. 2**25 keeps a few hundred rows of a 256k vocabulary, enough for full matrix products.
LOGIT_FLOATS = 2**25
PROBE_TOKENS = 8


class Window(NamedTuple):
    """Positions ``start..end`` (end excluded) of a sequence, of which those from ``first`` on are scored."""

    sequence: int
    start: int
    first: int
    end: int


def windows(length: int, max_length: int, stride: int, sequence: int = 0) -> Iterator[Window]:
    """Cover a sequence with windows so that every position but the first is scored exactly once.

    A window holds at most ``max_length`` positions; the next one starts ``stride`` later and scores what lies beyond the end
    of the one before, so each scored position sees everything before it or at least ``max_length - stride`` positions.

    Args:
        length: positions in the sequence.
        max_length: in [2, inf).
        stride: in [1, max_length - 1].
        sequence: number of the sequence, carried into the windows.

    Yields:
        The windows, none for a sequence of fewer than two positions.

    Example:
        >>> [tuple(window) for window in windows(10, 6, 3)]
        [(0, 0, 1, 6), (0, 3, 6, 9), (0, 6, 9, 10)]
    """
    start, first = 0, 1
    while first < length:
        end = min(start + max_length, length)
        yield Window(sequence, start, first, end)
        start, first = start + stride, end


def token_nats(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """``-ln softmax(logits)[target]`` for each row.

    Args:
        logits: ``[n, V]`` of any float dtype; float32 and float64 tensors are overwritten.
        targets: int64 ``[n]`` in [0, V).

    Returns:
        float64 ``[n]``. Exponentials are float32; the sum's logarithm is float64, so equal logits cost exactly ``ln V``.
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    top = logits.amax(dim=-1, keepdim=True)
    wanted = logits.gather(-1, targets[:, None]).double()
    total = logits.sub_(top).exp_().sum(dim=-1, dtype=torch.float64)
    return total.log() + (top.double() - wanted)[:, 0]


def score_tokens(
    lm: CausalLM,
    tokens: Sequence[np.ndarray],
    *,
    max_length: int,
    stride: int,
    batch_tokens: int,
    logit_floats: int = LOGIT_FLOATS,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """The cost of every token given those before it.

    The first token of a sequence is predicted from the start token; without one it costs ``ln V``. Windows are sorted by
    length and packed into right-padded batches, which a causal model cannot see: the result does not depend on them.

    Args:
        lm: the model.
        tokens: int arrays of ids below ``lm.rows``, one per sequence, at least one of them not empty.
        max_length: positions in a window, the start token included, in [2, inf).
        stride: in [1, max_length - 1].
        batch_tokens: padded positions in a batch, in [1, inf); a batch holds at least one window.
        logit_floats: floats of logits held at once, in [1, inf); at least one row is.
        progress: called with (scored tokens, all tokens) after each batch.

    Returns:
        float64, the nats of all tokens, the sequences one after the other.

    Raises:
        InputError: the model sees tokens to the right, or gives a token no finite cost.
    """
    starts = np.concatenate([[0], np.cumsum([len(ids) for ids in tokens])])
    nats = np.zeros(starts[-1])
    prefix = [] if lm.start_id is None else [lm.start_id]
    sequences = [np.concatenate([prefix, ids]).astype(np.int64) for ids in tokens]
    jobs = [w for i, ids in enumerate(sequences) for w in windows(len(ids), max_length, stride, i)]
    jobs.sort(key=lambda w: (w.start - w.end, w.sequence, w.start))
    with torch.inference_mode():
        parts, width = _probe(lm, max(sequences, key=len)[: min(PROBE_TOKENS, max_length)])
        if not prefix:
            nats[starts[:-1][np.diff(starts) > 0]] = math.log(width)
        if (largest := max(int(ids.max()) for ids in tokens if len(ids))) >= width:
            found, expected = f"{width} logits", f"one for each token of the text, {largest} among them"
            raise input_error(f"model {lm.name!r}", found, expected, "check its output rows")
        rows = max(1, logit_floats // width)
        done = len(nats) - sum(w.end - w.first for w in jobs)
        for batch in _batches(jobs, batch_tokens if parts is not None else min(batch_tokens, rows)):
            costs = _score_batch(lm, parts, [sequences[w.sequence] for w in batch], batch, rows)
            slots = np.concatenate(
                [starts[w.sequence] - len(prefix) + np.arange(w.first, w.end) for w in batch]
            )  # a position is one token further when a start token stands before it
            if not np.isfinite(costs).all():
                _refuse_cost(lm, int(slots[~np.isfinite(costs)][0]), starts)
            nats[slots] = costs
            done += len(slots)
            if progress is not None:
                progress(done, len(nats))
    return nats


def _batches(jobs: Sequence[Window], batch_tokens: int) -> Iterator[Sequence[Window]]:
    at = 0
    while at < len(jobs):
        longest = jobs[at].end - jobs[at].start - 1
        size = max(1, batch_tokens // longest)
        yield jobs[at : at + size]
        at += size


def _score_batch(
    lm: CausalLM, parts: BodyAndHead | None, ids: list[np.ndarray], batch: Sequence[Window], rows: int
) -> np.ndarray:
    """The costs of the batch's scored positions, window after window; the last position of a window is only predicted."""
    longest = max(w.end - w.start - 1 for w in batch)
    inputs = torch.zeros(len(batch), longest, dtype=torch.int64)
    mask = torch.zeros(len(batch), longest, dtype=torch.int64)
    where, targets = [], []
    for row, (window, sequence) in enumerate(zip(batch, ids, strict=True)):
        length = window.end - window.start - 1
        inputs[row, :length] = torch.from_numpy(sequence[window.start : window.end - 1])
        mask[row, :length] = 1
        where.append(row * longest + torch.arange(window.first - window.start - 1, length))
        targets.append(torch.from_numpy(sequence[window.first : window.end]))
    device = lm.device
    inputs, mask, places, wanted = (part.to(device) for part in (inputs, mask, torch.cat(where), torch.cat(targets)))
    if parts is None:
        logits = lm.model(input_ids=inputs, attention_mask=mask, use_cache=False).logits.flatten(0, 1)
        pieces = (logits[part] for part in places.split(rows))
    else:
        hidden = parts.body(input_ids=inputs, attention_mask=mask, use_cache=False).last_hidden_state.flatten(0, 1)
        pieces = (parts.head(hidden[part]) for part in places.split(rows))
    costs = [token_nats(piece, part) for piece, part in zip(pieces, wanted.split(rows), strict=True)]
    return torch.cat(costs).cpu().numpy()


def _probe(lm: CausalLM, ids: np.ndarray) -> tuple[BodyAndHead | None, int]:
    """Run a few tokens: refuse a model that looks to the right, and take it apart.

    Returns:
        Its parts, ``None`` when no part proves to be a body (whole logits are computed then); and the number of logits ``V``.
    """
    inputs = torch.from_numpy(ids)[None].to(lm.device)
    mask = torch.ones_like(inputs)
    logits = lm.model(input_ids=inputs, attention_mask=mask, use_cache=False).logits[0]
    if not torch.isfinite(logits).any(dim=-1).all():
        raise _no_finite(lm, "the first tokens")
    if len(ids) > 1:
        changed = inputs.clone()
        changed[0, -1] = (changed[0, -1] + 1) % lm.rows
        other = lm.model(input_ids=changed, attention_mask=mask, use_cache=False).logits[0]
        if not close(other[:-1], logits[:-1]):
            found = "predictions that change with a token to their right"
            raise input_error(f"model {lm.name!r}", found, "a causal language model", "evaluate a decoder")
    return split_head(lm.model, {"input_ids": inputs, "attention_mask": mask}, logits), len(logits[0])


def _no_finite(lm: CausalLM, place: str) -> Exception:
    found = f"NaN or infinite logits at {place}"
    return input_error(f"model {lm.name!r}", found, "finite predictions", "check the weights, or try dtype float32")


def _refuse_cost(lm: CausalLM, slot: int, starts: np.ndarray) -> None:
    document = int(np.searchsorted(starts, slot, side="right")) - 1
    raise _no_finite(lm, f"token {slot - starts[document]} of document {document}")
