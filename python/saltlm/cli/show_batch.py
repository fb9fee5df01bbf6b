"""Progress and result of a batch: a live table on stderr, or lines if stderr is not a terminal; the result on stdout."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.live import Live
from rich.table import Table

from ..batches.jobs_file import BatchJob
from ..batches.run import Batch, Watcher
from ..batches.worker import Outcome
from .markup import escape
from .show import Output

LATEST = 8  # number of ended jobs that the live table shows
COLOURS = {"done": "green", "failed": "red", "skipped": "dim", "waiting": "default"}


@contextlib.contextmanager
def watching(quiet: bool) -> Iterator[Watcher]:
    """Show the progress of a batch on stderr.

    Args:
        quiet: show nothing.

    Yields:
        The callbacks for :func:`saltlm.batch`.
    """
    console = Console(stderr=True)
    if quiet:
        yield Watcher()
    elif not console.is_terminal:
        yield _LineWatcher()
    else:
        table = _TableWatcher()
        with Live(console=console, get_renderable=table.render, refresh_per_second=4, transient=True):
            yield table


class _LineWatcher(Watcher):
    """Writes a line when a job starts, is tried again or ends."""

    def __init__(self) -> None:
        self.total = self.count = 0

    def begin(self, jobs: Sequence[BatchJob], skipped: Sequence[BatchJob]) -> None:
        self.total = len(jobs)
        _write(f"{len(jobs)} jobs to run, {len(skipped)} finished before")

    def tell(self, job: BatchJob, stage: str) -> None:
        if stage in ("starts", "given to the cluster") or "tried again" in stage:
            _write(f"{job}: {stage}")

    def ended(self, job: BatchJob, outcome: Outcome) -> None:
        self.count += 1
        error = f": {outcome.error}" if outcome.error else ""
        _write(f"{job}: {outcome.status} in {outcome.seconds:.1f} s, {self.count} of {self.total}{error}")


def _write(line: str) -> None:
    """Write a line to stderr without delay."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


class _TableWatcher(Watcher):
    """Live table of the running jobs and of the :data:`LATEST` jobs that ended."""

    def __init__(self) -> None:
        self.total = self.skipped = 0
        self.running: dict[int, tuple[BatchJob, str, float]] = {}
        self.ended_jobs: list[tuple[BatchJob, Outcome]] = []

    def begin(self, jobs: Sequence[BatchJob], skipped: Sequence[BatchJob]) -> None:
        self.total, self.skipped = len(jobs), len(skipped)

    def tell(self, job: BatchJob, stage: str) -> None:
        start = self.running[job.number][2] if job.number in self.running else time.monotonic()
        self.running[job.number] = (job, stage, start)

    def ended(self, job: BatchJob, outcome: Outcome) -> None:
        self.running.pop(job.number, None)
        self.ended_jobs.append((job, outcome))

    def render(self) -> Table:
        """The current table."""
        failed = sum(outcome.status == "failed" for _, outcome in self.ended_jobs)
        title = f"{len(self.ended_jobs)} of {self.total} jobs ended, {failed} failed, {self.skipped} finished before"
        table = Table(title=title)
        for heading in ("job", "folder", "state"):
            table.add_column(heading, overflow="fold")
        table.add_column("seconds", justify="right")
        for job, outcome in self.ended_jobs[-LATEST:]:
            state = f"[{COLOURS[outcome.status]}]{outcome.status}[/]"
            table.add_row(str(job.number), escape(job.out.name), state, f"{outcome.seconds:.1f}")
        for job, stage, start in list(self.running.values()):
            table.add_row(str(job.number), escape(job.out.name), escape(stage), f"{time.monotonic() - start:.0f}")
        return table


def batch(result: Batch, *, dry_run: bool) -> None:
    """Print all jobs, the totals, and the errors of failed jobs."""
    console = Output()
    plain = result.to_json()
    counts = ", ".join(f"{plain[status]} {status}" for status in COLOURS if plain[status])
    table = Table(title=f"{len(result.jobs)} jobs: {counts}")
    for heading in ("job", "folder", "method", "state"):
        table.add_column(heading, overflow="fold")
    for heading in ("seconds", "memory, GB"):
        table.add_column(heading, justify="right")
    for job in result.jobs:
        outcome = result.outcomes.get(job.number) or Outcome(number=job.number, status="waiting")
        state = f"[{COLOURS[outcome.status]}]{outcome.status}[/]"
        memory = f"{outcome.peak / 1e9:.2f}" if outcome.peak else f"up to {job.memory / 1e9:.2f}" if job.memory else ""
        cells = (str(job.number), escape(str(job.out)), job.config.method, state)
        table.add_row(*cells, f"{outcome.seconds:.1f}" if outcome.seconds else "", memory)
    console.print(table)
    where = f"{result.workers} processes of {result.threads} threads, {result.memory / 1e9:.1f} GB of memory"
    if dry_run:
        console.print(f"would run in {where}; nothing was run", highlight=False)
        return
    console.print(
        f"{result.seconds:.1f} s in {where}; {plain['shared']['found']} shared results were used again, which saved"
        f" {plain['shared']['seconds']:.1f} s of processor time",
        highlight=False,
    )
    for outcome in result.failed:
        job = next(job for job in result.jobs if job.number == outcome.number)
        console.print(
            f"[red]failed[/red] {escape(str(job))}: {escape(outcome.error or '')}", highlight=False, soft_wrap=True
        )
