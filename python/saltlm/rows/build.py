"""Rows of the new tokens, and how good they seem without training: options tuned, rows built, drawn, mended and checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..alignment.align import Alignment
from ..files.hashing import sha256_file
from ..progress import Clock
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
    """What was done to fill the rows.

    Attributes:
        job: with the options that were used, tuned where that was asked for.
        heldout: figures of the self-check; ``None`` without one.
        tuning: how options were chosen; ``None`` if they were given.
        posts: what each step after the rows did, by its name.
    """

    job: Job
    heldout: Mapping[str, Any] | None = None
    tuning: Tuning | None = None
    posts: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def build_rows(job: Job, assembly: Assembly, tokenizer: Any, clock: Clock, *, dry_run: bool = False) -> Built:
    """Fill the open rows of an assembly.

    Args:
        job: what the method works from.
        assembly: rows under construction; the shared ones are there.
        tokenizer: as it will be written, for its unigram scores and for a text to tune by.
        clock: told of the stages.
        dry_run: check, and build nothing.

    Raises:
        InputError: a shift is asked for that the head cannot hold, or its text is bad.
    """
    config = job.config
    logs = None
    if config.unigram_shift is not None:
        check_unigram(assembly)
        logs = log_unigram(tokenizer, job.alignment, config.unigram_text)
    if dry_run:
        return Built(job=job)

    heldout, tuning = _self_check(job, clock) if config.tune else (None, None)
    if config.tune_text is not None:
        with clock("tune"):
            tuning = tune_by_text(
                job, assembly, tokenizer, lambda trial, into: _fill(trial, into, logs),
                lambda done, total: clock.progress("tune", done, total),
            )  # fmt: skip
    if tuning is not None:
        job = dataclasses.replace(job, config=dataclasses.replace(config, **tuning.choice))
    with clock("rows"):
        posts = _fill(job, assembly, logs)
    if not config.tune:
        heldout, _ = _self_check(job, clock)
    return Built(job=job, heldout=heldout, tuning=tuning, posts=posts)


def _fill(job: Job, assembly: Assembly, logs: tuple[Any, str] | None) -> dict[str, Any]:
    """Build all open rows, and tell what each step after them did."""
    config, posts = job.config, {}
    for block in build(job):
        assembly.put(block)
    assembly.draw(config.seed, job.used)
    if logs is not None:
        found, counted = logs
        shifted = shift_unigram(assembly, job.alignment, found, config.unigram_shift)
        text = config.unigram_text
        digest = None if text is None else sha256_file(Path(text))
        posts["unigram_shift"] = {**shifted, "from": counted, "sha256": digest}
    posts["norm_guard"] = guard_norms(
        assembly, job.used, config.norm_guard, _words(assembly, job.alignment), bias=logs is None
    )
    assembly.pad(job.used)
    return posts


def _self_check(job: Job, clock: Clock) -> tuple[dict[str, Any] | None, Tuning | None]:
    """The figures of the start, and how its options were chosen where that was asked for."""
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
    """Text of each row's token, where it is one of the target's."""
    words: list[str | None] = [None] * len(assembly.origin)
    for row, word in zip(assembly.row_of.tolist(), alignment.target.words(), strict=True):
        if row >= 0:
            words[row] = word
    return words
