"""Shift of built output rows towards the log-probabilities of their tokens, so that a fresh start prefers frequent tokens."""

from __future__ import annotations

import json

import numpy as np
import torch

from ..alignment.align import HOLE, SPECIAL, Alignment
from ..errors import input_error
from ..files.summary_file import ShiftFigures
from ..model.stored_rows import block_rows
from ..operators.linear import mean_of_rows, ridge_inverse, ridge_penalty
from ..protocols import Tokenizer
from ..text.documents import read_documents
from .assembly import COMPOSED, DRAWN, ROLE, SOLVED, Assembly

MIN_SHARED = 8  # shared tokens of known probability that the regression needs
RIDGE = 1.0


def log_unigram(tokenizer: Tokenizer, alignment: Alignment, text: str | None) -> tuple[np.ndarray, str]:
    """Natural logarithm of the probability of each target token.

    From a text: ``log((n_t + 1) / (sum n + T))`` with n_t the count of token t in the text. Without one: the scores of a
    Unigram tokenizer, which are such logarithms.

    Args:
        tokenizer: the target tokenizer.
        alignment: of source and target.
        text: path of a UTF-8 text; ``None`` takes the scores.

    Returns:
        Float64 [T], NaN for a token without a probability; and the origin of the values, for the summary.

    Raises:
        InputError: the text is missing or empty, or there are no scores.
    """
    size = alignment.target.size
    ordinary = alignment.target.flags() & (HOLE | SPECIAL) == 0
    logs = np.full(size, np.nan)
    if text is not None:
        documents = tokenizer(read_documents(text), add_special_tokens=False, verbose=False)["input_ids"]
        counts = np.bincount([token for document in documents for token in document], minlength=size)[:size]
        logs[ordinary] = np.log((counts[ordinary] + 1) / (counts[ordinary].sum() + ordinary.sum()))
        return logs, str(text)
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    if model["type"] != "Unigram":
        raise input_error(
            "unigram_shift",
            f"a target tokenizer of kind {model['type']}, which has no scores",
            "scores of a Unigram tokenizer, or a text",
            "give --unigram-text FILE",
        )
    scores = np.array([score for _, score in model["vocab"]])[:size]
    logs[: len(scores)] = np.where(ordinary[: len(scores)] & (scores < 0), scores, np.nan)
    return logs, "tokenizer scores"


def check_unigram(assembly: Assembly) -> None:
    """Refuse a tied head without bias: its output rows are the input rows, which a shift would change as well.

    Raises:
        InputError: the head is tied and has no bias.
    """
    if assembly.output_rows is None and assembly.output_bias is None:
        raise input_error(
            "unigram_shift",
            "a source whose head is tied and has no bias",
            "an untied head, or a bias",
            "leave --unigram-shift out",
        )


def shift_unigram(assembly: Assembly, alignment: Alignment, logs: np.ndarray, strength: float) -> ShiftFigures:
    """Shift the built output rows, or their biases where the head has some, towards their tokens' log-probabilities.

    A ridge regression over shared tokens predicts the log-probability z of a token from its output row (and bias). A built
    row already carries a part of its z, the prediction; only the rest, ``d = strength (z - prediction)``, is added: to the
    bias, or without a bias along the slope of the shared output rows over z, ``row + d cov(row, z) / var(z)``.

    Args:
        assembly: finished rows; built rows are changed, copied rows are not.
        alignment: of source and target.
        logs: float64 [T], from :func:`log_unigram`.
        strength: in (0, 1].

    Returns:
        ``shared``, the number of shared tokens in the regression; ``rows``, the number of shifted rows; and the ``median``
        absolute shift in nats.

    Raises:
        InputError: too few shared tokens have a known probability.
    """
    size = len(logs)
    origin, known = assembly.origin[:size], np.isfinite(logs)
    shared = torch.from_numpy(np.flatnonzero(known & (assembly.source_id[:size] >= 0) & (origin != ROLE)))
    built = torch.from_numpy(np.flatnonzero(known & np.isin(origin, (SOLVED, COMPOSED, DRAWN))))
    if len(shared) < MIN_SHARED:
        raise input_error(
            "unigram_shift",
            f"{len(shared)} shared tokens of known frequency",
            f"at least {MIN_SHARED}",
            "leave --unigram-shift out, or give --unigram-text",
        )
    heads = assembly.input_rows if assembly.output_rows is None else assembly.output_rows
    bias = assembly.output_bias

    def features(ids: torch.Tensor) -> torch.Tensor:
        """Output rows, with the bias as last column: float64 [n, D or D + 1]."""
        rows = heads[ids].double()
        return rows if bias is None else torch.cat([rows, bias[ids].double()[:, None]], dim=1)

    z, block = torch.from_numpy(logs), block_rows(heads.shape[1])
    mean, z_mean = mean_of_rows((features(part) for part in shared.split(block)), len(shared)), z[shared].mean()
    gram = torch.zeros(len(mean), len(mean), dtype=torch.float64)
    cross = torch.zeros(len(mean), dtype=torch.float64)
    for part in shared.split(block):
        centred = features(part) - mean
        gram, cross = gram + centred.T @ centred, cross + centred.T @ (z[part] - z_mean)
    regression = ridge_inverse(gram, ridge_penalty(RIDGE, gram.trace(), len(shared))) @ cross
    slope = cross / (z[shared] - z_mean).square().sum().clamp_min(1e-12)
    shifts = []
    for part in built.split(block):
        shift = strength * (z[part] - z_mean - (features(part) - mean) @ regression)
        if bias is not None:
            bias[part] = (bias[part].double() + shift).to(bias.dtype)
        else:
            heads[part] = (heads[part].double() + shift[:, None] * slope).to(heads.dtype)
        shifts.append(shift.abs())
    return {
        "shared": len(shared),
        "rows": len(built),
        "median": float(torch.cat(shifts).median()) if shifts else 0.0,
    }
