"""The rows of the new tokens: options tuned, rows built, drawn, shifted and guarded, and the self-check of the method."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..alignment.align import Alignment
from ..files.hashing import sha256_file
from ..progress import Clock
from ..protocols import Tokenizer
from .assembly import Assembly
from .hidden import hide_in
from .methods import Job, build
from .norm_guard import guard_norms
from .self_check import check
from .tune import Tuning, tune
from .tune_text import tune_by_text
from .unigram_shift import check_unigram, log_unigram, shift_unigram


@dataclasses.dataclass(frozen=True, kw_only=True)
class Built:
    """How the rows were filled.

    Attributes:
        job: with the options in use, the tuned ones included.
        heldout: figures of the self-check; ``None`` without one.
        too_few_hidden: whether the self-check was left out because too few shared tokens could be hidden.
        tuning: how the options were chosen; ``None`` if they were not tuned.
        posts: report of each step after the method (``unigram_shift``, ``norm_guard``), by its name in ``saltlm.json``.
    """

    job: Job
    heldout: Mapping[str, Any] | None = None
    too_few_hidden: bool = False
    tuning: Tuning | None = None
    posts: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class _Unigram:
    """The log-probabilities for the shift of output rows."""

    logs: np.ndarray  # float64 [T]
    origin: str
    strength: float


def build_rows(job: Job, assembly: Assembly, tokenizer: Tokenizer, clock: Clock, *, dry_run: bool = False) -> Built:
    """Fill the open rows of an assembly.

    Args:
        job: the method's input.
        assembly: rows under construction, the shared ones filled.
        tokenizer: the new one, for its unigram scores and for a text to tune by.
        clock: measures the stages and reports progress.
        dry_run: check the input, and build nothing.

    Raises:
        InputError: the head cannot hold the unigram shift that is asked for, or a text is unreadable or too short.
    """
    config = job.config
    unigram = None
    if config.unigram_shift is not None:
        check_unigram(assembly)
        logs, origin = log_unigram(tokenizer, job.alignment, config.unigram_text)
        unigram = _Unigram(logs, origin, config.unigram_shift)
    if dry_run:
        return Built(job=job)

    heldout, tuning = _self_check(job, clock) if config.tune else (None, None)
    if config.tune_text is not None:
        with clock("tune"):
            tuning = tune_by_text(
                job,
                assembly,
                tokenizer,
                fill=lambda trial, copy: _fill(trial, copy, unigram),
                report=lambda done, total: clock.progress("tune", done, total),
            )
    if tuning is not None:
        job = dataclasses.replace(job, config=dataclasses.replace(config, **tuning.choice))
    with clock("rows"):
        posts = _fill(job, assembly, unigram)
    if not config.tune:
        heldout, _ = _self_check(job, clock)
    too_few = bool(config.heldout) and heldout is None
    return Built(job=job, heldout=heldout, too_few_hidden=too_few, tuning=tuning, posts=posts)


def _fill(job: Job, assembly: Assembly, unigram: _Unigram | None) -> dict[str, Any]:
    """Build all open rows; returns the reports of the steps after the method."""
    config, posts = job.config, {}
    for block in build(job):
        assembly.put(block)
    assembly.draw(config.seed, job.used)
    if unigram is not None:
        report = shift_unigram(assembly, job.alignment, unigram.logs, unigram.strength)
        digest = None if config.unigram_text is None else sha256_file(Path(config.unigram_text))
        posts["unigram_shift"] = {**report, "from": unigram.origin, "sha256": digest}
    words = _words(assembly, job.alignment)
    posts["norm_guard"] = guard_norms(assembly, job.used, config.norm_guard, words, bias=unigram is None)
    assembly.pad(job.used)
    return posts


def _self_check(job: Job, clock: Clock) -> tuple[dict[str, Any] | None, Tuning | None]:
    """Figures of the self-check; with ``tune``, of the options chosen by it, and how they were chosen."""
    if not job.config.heldout:
        return None, None
    with clock("self-check"):
        hidden = hide_in(job, job.config.heldout, job.config.seed)
        if hidden is None:
            return None, None
        if not job.config.tune:
            return check(hidden), None
        tuning = tune(hidden)
        return tuning.check, tuning


def _words(assembly: Assembly, alignment: Alignment) -> list[str | None]:
    """Text of the target token of each row; ``None`` for rows without one."""
    words: list[str | None] = [None] * len(assembly.origin)
    for row, word in zip(assembly.row_of.tolist(), alignment.target.words(), strict=True):
        if row >= 0:
            words[row] = word
    return words
