"""Built output rows moved towards how frequent their tokens are, so that a fresh start does not spread its guesses evenly."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch

from ..alignment.align import HOLE, SPECIAL, Alignment
from ..errors import input_error
from ..model.stored_rows import block_rows
from ..text.documents import read_documents
from .assembly import COMPOSED, DRAWN, ROLE, SOLVED, Assembly

FEWEST = 8  # shared tokens of known frequency to learn from
RIDGE = 1.0


def log_unigram(tokenizer: Any, alignment: Alignment, text: str | None) -> tuple[np.ndarray, str]:
    """Natural logarithm of each target token's probability, float64 [T], NaN where there is none; and where it is from.

    From a text: ``log((n_t + 1) / (sum n + T))`` over the tokens of the text. Else the scores of a Unigram tokenizer, which are
    such logarithms.

    Args:
        tokenizer: the target tokenizer.
        alignment: of source and target.
        text: path of a UTF-8 text; ``None`` takes scores.

    Raises:
        InputError: the text is missing or empty, or there are no scores.
    """
    size = alignment.target.size
    flags = alignment.target.flags()
    plain = flags & (HOLE | SPECIAL) == 0
    logs = np.full(size, np.nan)
    if text is not None:
        documents = tokenizer(read_documents(text), add_special_tokens=False, verbose=False)["input_ids"]
        counts = np.bincount([token for document in documents for token in document], minlength=size)[:size]
        logs[plain] = np.log((counts[plain] + 1) / (counts[plain].sum() + plain.sum()))
        return logs, str(text)
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    if model["type"] != "Unigram":
        raise input_error(
            "unigram_shift", f"a target tokenizer of kind {model['type']}, which has no scores",
            "scores of a Unigram tokenizer, or a text", "give --unigram-text FILE",
        )  # fmt: skip
    scores = np.array([score for _, score in model["vocab"]])[:size]
    logs[: len(scores)] = np.where(plain[: len(scores)] & (scores < 0), scores, np.nan)
    return logs, "tokenizer scores"


def check_unigram(assembly: Assembly) -> None:
    """Refuse a tied head without bias: its rows are the input rows, which a shift would bend as well.

    Raises:
        InputError: there is nothing to hold the shift.
    """
    if assembly.output_rows is None and assembly.output_bias is None:
        raise input_error(
            "unigram_shift", "a source whose head is tied and has no bias", "an untied head, or a bias",
            "leave --unigram-shift out",
        )  # fmt: skip


def shift_unigram(assembly: Assembly, alignment: Alignment, logs: np.ndarray, strength: float) -> dict[str, Any]:
    """Move the built output rows, or their bias where there is one, towards the log-unigram of their tokens.

    A ridge regression over shared tokens reads the log-unigram z off an output row (and bias); a built row already says a
    part of its z, and only what it lacks, ``d = strength (z - reading)``, is added: to the bias, or without one along the
    slope of the shared output rows over z, ``row + d cov(row, z) / var(z)``.

    Args:
        assembly: finished rows, changed in place; copied rows stay.
        alignment: of source and target.
        logs: float64 [T], of :func:`log_unigram`.
        strength: in (0, 1].

    Returns:
        ``shared`` tokens learned from, built ``rows`` shifted, and the ``median`` absolute shift in nats.

    Raises:
        InputError: too few shared tokens have a known frequency.
    """
    size = len(logs)
    origin, known = assembly.origin[:size], np.isfinite(logs)
    shared = torch.from_numpy(np.flatnonzero(known & (assembly.source_id[:size] >= 0) & (origin != ROLE)))
    built = torch.from_numpy(np.flatnonzero(known & np.isin(origin, (SOLVED, COMPOSED, DRAWN))))
    if len(shared) < FEWEST:
        raise input_error(
            "unigram_shift", f"{len(shared)} shared tokens of known frequency", f"at least {FEWEST}",
            "leave --unigram-shift out, or give --unigram-text",
        )  # fmt: skip
    heads = assembly.input_rows if assembly.output_rows is None else assembly.output_rows

    def said(ids: torch.Tensor) -> torch.Tensor:
        """Float64 [n, D or D + 1]: what the reading looks at."""
        rows = heads[ids].double()
        return (
            rows if assembly.output_bias is None else torch.cat([rows, assembly.output_bias[ids].double()[:, None]], 1)
        )

    z, most = torch.from_numpy(logs), block_rows(heads.shape[1])
    mean, middle = sum(said(part).sum(dim=0) for part in shared.split(most)) / len(shared), z[shared].mean()
    gram, cross = 0, 0
    for part in shared.split(most):
        centred = said(part) - mean
        gram, cross = gram + centred.T @ centred, cross + centred.T @ (z[part] - middle)
    penalty = RIDGE * gram.trace() / len(shared) * torch.eye(len(mean), dtype=torch.float64)
    reading = torch.linalg.pinv(gram + penalty, hermitian=True) @ cross
    slope = cross / (z[shared] - middle).square().sum().clamp_min(1e-12)
    shifts = []
    for part in built.split(most):
        shift = strength * (z[part] - middle - (said(part) - mean) @ reading)
        if assembly.output_bias is not None:
            assembly.output_bias[part] = (assembly.output_bias[part].double() + shift).to(assembly.output_bias.dtype)
        else:
            heads[part] = (heads[part].double() + shift[:, None] * slope).to(heads.dtype)
        shifts.append(shift.abs())
    return {
        "shared": len(shared),
        "rows": len(built),
        "median": float(torch.cat(shifts).median()) if shifts else 0.0,
    }
