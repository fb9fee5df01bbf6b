"""The rows of the new tokens: options tuned, rows built, drawn, shifted and guarded, and the self-check of the method."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch

from ..alignment.align import Alignment
from ..files.hashing import sha256_file
from ..files.summary_file import SelfCheck, StepReports
from ..model.checkpoint import Table
from ..progress import Clock
from ..protocols import Tokenizer
from .assembly import Assembly
from .hidden import hide_in
from .methods import Job, build
from .methods.whole import cleaned_anchors
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
        reports: reports of the steps after the method.
    """

    job: Job
    heldout: SelfCheck | None = None
    too_few_hidden: bool = False
    tuning: Tuning | None = None
    reports: StepReports = dataclasses.field(default_factory=StepReports)


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
                fill=lambda trial, copy: _fill_trial(trial, copy, unigram),
                report=lambda done, total: clock.progress("tune", done, total),
            )
    if tuning is not None:
        job = dataclasses.replace(job, config=dataclasses.replace(config, **tuning.choice))
    with clock("rows"):
        reports = _fill(job, assembly, unigram)
        for table in assembly.source.tables:
            assembly.tables[table.key] = _table_rows(job, assembly, table, unigram)
    if not config.tune:
        heldout, _ = _self_check(job, clock)
    too_few = bool(config.heldout) and heldout is None
    return Built(job=job, heldout=heldout, too_few_hidden=too_few, tuning=tuning, reports=reports)


def _fill(job: Job, assembly: Assembly, unigram: _Unigram | None) -> StepReports:
    """Build all open rows; returns the reports of the steps after the method."""
    config, reports = job.config, StepReports()
    for block in build(job):
        assembly.put(block)
    assembly.draw(config.seed, job.used)
    if unigram is not None:
        figures = shift_unigram(assembly, job.alignment, unigram.logs, unigram.strength)
        digest = None if config.unigram_text is None else sha256_file(Path(config.unigram_text))
        reports["unigram_shift"] = {**figures, "from": unigram.origin, "sha256": digest}
    words = _words(assembly, job.alignment)
    reports["norm_guard"] = guard_norms(assembly, job.used, config.norm_guard, words, bias=unigram is None)
    assembly.pad(job.used)
    return reports


def _fill_trial(job: Job, assembly: Assembly, unigram: _Unigram | None) -> None:
    """Build all open rows that the model class reads."""
    _fill(job, assembly, unigram)
    for table in assembly.source.tables:
        if table.names:
            assembly.tables[table.key] = _table_rows(job, assembly, table, unigram)


def _table_rows(job: Job, assembly: Assembly, table: Table, unigram: _Unigram | None) -> torch.Tensor:
    """New rows of a further table."""
    part, part_job = table_job(job, assembly, table)
    _fill(part_job, part, None if table.role == "input" else unigram)
    return part.rows_of(table)


def table_job(job: Job, assembly: Assembly, table: Table) -> tuple[Assembly, Job]:
    """The assembly and the job of a further table: the method with the table in the place of input matrix or head.

    The options are those of the model's own rows, the tuned ones included, so that a table of input rows is built like the
    input matrix, and one of output rows like the head: from the same anchors, and by the same coefficients where the method
    has coefficients. A new token with a piece beyond the table's last row is drawn.

    Args:
        job: the input of the method for the model's own rows.
        assembly: of the model's own rows.
        table: the further table.
    """
    part, count = assembly.for_table(table), len(table.rows)
    anchors = cleaned_anchors(job) if job.config.clean_anchors else job.anchors
    new = job.new
    if count < len(job.source_rows):
        alignment = job.alignment
        anchors = anchors[alignment.source_id[anchors] < count]
        beyond = np.append(0, np.cumsum(alignment.cover_ids >= count))
        new = new[beyond[alignment.cover_offsets[new + 1]] == beyond[alignment.cover_offsets[new]]]
    return part, dataclasses.replace(
        job,
        source_rows=part.source.input_rows,
        head=part.head,
        used=job.used[job.used < count],
        anchors=anchors,
        new=new,
        config=dataclasses.replace(job.config, clean_anchors=0.0),
    )


def _self_check(job: Job, clock: Clock) -> tuple[SelfCheck | None, Tuning | None]:
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
