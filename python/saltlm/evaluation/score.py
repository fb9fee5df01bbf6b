"""The cost of every token of token sequences in nats, by sliding windows and with the logits computed in slices."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple, NoReturn

import numpy as np
import torch

from ..errors import InputError, input_error
from ..model.body_and_head import BodyAndHead, close, split_head
from ..model.causal_lm import CausalLM
from ..progress import Progress

# Logits in memory at once. 2**25 floats are over a hundred rows for a vocabulary of 256k, enough for efficient products.
LOGIT_FLOATS = 2**25
# Tokens of the trial forward pass that checks a model.
PROBE_TOKENS = 8


class Window(NamedTuple):
    """Positions ``start`` to ``end - 1`` of a sequence; the positions from ``first`` on are scored."""

    sequence: int
    start: int
    first: int
    end: int


def windows(length: int, max_length: int, stride: int, sequence: int = 0) -> Iterator[Window]:
    """Cover a sequence with windows so that every position but the first is scored exactly once.

    A window has at most ``max_length`` positions. The next window starts ``stride`` positions later and scores the positions
    after the end of the window before. So a scored position sees all positions before it, or at least
    ``max_length - stride`` of them.

    Args:
        length: number of positions of the sequence.
        max_length: maximum number of positions of a window, in [2, inf).
        stride: positions between the starts of two windows, in [1, max_length - 1].
        sequence: number of the sequence, copied into the windows.

    Yields:
        The windows; none for a sequence of fewer than two positions.

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
    target_logits = logits.gather(-1, targets[:, None]).double()
    total = logits.sub_(top).exp_().sum(dim=-1, dtype=torch.float64)
    return total.log() + (top.double() - target_logits)[:, 0]


def score_tokens(
    lm: CausalLM,
    tokens: Sequence[np.ndarray],
    *,
    max_length: int,
    stride: int,
    batch_tokens: int,
    logit_floats: int = LOGIT_FLOATS,
    progress: Progress | None = None,
) -> np.ndarray:
    """The cost of every token given the tokens before it.

    The first token of a sequence is predicted from the start token; without a start token it costs ``ln V``. Windows are
    sorted by length and packed into batches with padding on the right, which no scored position of a causal model sees.

    Args:
        lm: the model.
        tokens: int arrays of ids below ``lm.rows``, one per sequence, at least one of them not empty.
        max_length: positions in a window, the start token included, in [2, inf).
        stride: positions between the starts of two windows, in [1, max_length - 1].
        batch_tokens: positions in a batch, padding included, in [1, inf); a batch has at least one window.
        logit_floats: logits in memory at once, in [1, inf), but at least those of one position.
        progress: called with (scored tokens, all tokens) after each batch.

    Returns:
        float64 [tokens of all sequences], the costs in nats, in the order of the sequences.

    Raises:
        InputError: predictions of the model depend on later tokens, a token has no finite cost, or the model has fewer
            logits than the text has token ids.
    """
    starts = np.concatenate([[0], np.cumsum([len(ids) for ids in tokens])])
    nats = np.zeros(starts[-1])
    prefix = [] if lm.start_id is None else [lm.start_id]
    sequences = [np.concatenate([prefix, ids]).astype(np.int64) for ids in tokens]
    all_windows = [w for i, ids in enumerate(sequences) for w in windows(len(ids), max_length, stride, i)]
    all_windows.sort(key=lambda w: (w.start - w.end, w.sequence, w.start))
    with torch.inference_mode():
        parts, width = _probe(lm, max(sequences, key=len)[: min(PROBE_TOKENS, max_length)])
        if not prefix:
            nats[starts[:-1][np.diff(starts) > 0]] = math.log(width)
        if (largest := max(int(ids.max()) for ids in tokens if len(ids))) >= width:
            expected = f"one for each token of the text, {largest} among them"
            raise input_error(f"model {lm.name!r}", f"{width} logits", expected, "check its output rows")
        rows = max(1, logit_floats // width)
        done = len(nats) - sum(w.end - w.first for w in all_windows)
        for batch in _batches(all_windows, batch_tokens if parts is not None else min(batch_tokens, rows)):
            costs = _score_batch(lm, parts, [sequences[w.sequence] for w in batch], batch, rows)
            # Index of each scored position in ``nats``, where the start tokens have no entry.
            slots = np.concatenate([starts[w.sequence] - len(prefix) + np.arange(w.first, w.end) for w in batch])
            if not np.isfinite(costs).all():
                _refuse_cost(lm, int(slots[~np.isfinite(costs)][0]), starts)
            nats[slots] = costs
            done += len(slots)
            if progress is not None:
                progress(done, len(nats))
    return nats


def _batches(all_windows: Sequence[Window], batch_tokens: int) -> Iterator[Sequence[Window]]:
    """Split windows, the longest first, into batches of at most ``batch_tokens`` positions, padding included."""
    start = 0
    while start < len(all_windows):
        longest = all_windows[start].end - all_windows[start].start - 1
        size = max(1, batch_tokens // longest)
        yield all_windows[start : start + size]
        start += size


def _score_batch(
    lm: CausalLM, parts: BodyAndHead | None, ids: list[np.ndarray], batch: Sequence[Window], rows: int
) -> np.ndarray:
    """The costs of the scored positions of a batch, window after window.

    Args:
        lm: the model.
        parts: body and head of the model; ``None`` computes all logits of the batch at once.
        ids: the sequence of each window.
        batch: the windows.
        rows: positions whose logits are computed together.
    """
    # The last position of a window is only a target, so that the inputs are one position shorter than the window.
    longest = max(w.end - w.start - 1 for w in batch)
    inputs = torch.zeros(len(batch), longest, dtype=torch.int64)
    mask = torch.zeros(len(batch), longest, dtype=torch.int64)
    position_parts, target_parts = [], []
    for row, (window, sequence) in enumerate(zip(batch, ids, strict=True)):
        length = window.end - window.start - 1
        inputs[row, :length] = torch.from_numpy(sequence[window.start : window.end - 1])
        mask[row, :length] = 1
        position_parts.append(row * longest + torch.arange(window.first - window.start - 1, length))
        target_parts.append(torch.from_numpy(sequence[window.first : window.end]))
    inputs, mask, positions, targets = (
        part.to(lm.device) for part in (inputs, mask, torch.cat(position_parts), torch.cat(target_parts))
    )
    if parts is None:
        logits = lm.model(input_ids=inputs, attention_mask=mask, use_cache=False).logits.flatten(0, 1)
        slices = (logits[part] for part in positions.split(rows))
    else:
        hidden = parts.body(input_ids=inputs, attention_mask=mask, use_cache=False).last_hidden_state.flatten(0, 1)
        slices = (parts.head(hidden[part]) for part in positions.split(rows))
    costs = [token_nats(part, target) for part, target in zip(slices, targets.split(rows), strict=True)]
    return torch.cat(costs).cpu().numpy()


def _probe(lm: CausalLM, ids: np.ndarray) -> tuple[BodyAndHead | None, int]:
    """Run the model on a few tokens to check that it is causal, and separate its body from its head.

    Args:
        lm: the model.
        ids: int64 ids of a few tokens.

    Returns:
        Body and head, or ``None`` if the model cannot be separated (all logits of a batch are then computed at once); and
        the number of logits ``V``.

    Raises:
        InputError: a logit is not finite, or predictions depend on later tokens.
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
            problem = "predictions that change with a token to their right"
            raise input_error(f"model {lm.name!r}", problem, "a causal language model", "evaluate a decoder")
    return split_head(lm.model, {"input_ids": inputs, "attention_mask": mask}, logits), len(logits[0])


def _no_finite(lm: CausalLM, location: str) -> InputError:
    problem = f"NaN or infinite logits at {location}"
    return input_error(f"model {lm.name!r}", problem, "finite predictions", "check the weights, or try dtype float32")


def _refuse_cost(lm: CausalLM, slot: int, starts: np.ndarray) -> NoReturn:
    """Raise the error for a token without a finite cost; ``slot`` is its index among the tokens of all documents."""
    document = int(np.searchsorted(starts, slot, side="right")) - 1
    raise _no_finite(lm, f"token {slot - starts[document]} of document {document}")
