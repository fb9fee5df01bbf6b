"""Many transfers from one jobs file: checked first, shared work done once, finished ones skipped, failures told at the end."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..files.output_lock import locked_output
from .check import plan
from .config import BatchConfig, memory_bytes
from .jobs_file import BatchJob, read_drafts
from .memory import available
from .pool import Pool, in_order
from .worker import Outcome

SHARE_OF_FREE = 0.8  # of the memory that is free, where no budget is given
SPARE_FILES = 256  # open at once beside the jobs' locks: workers' pipes, weight files, libraries


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """What became of a jobs file.

    Attributes:
        jobs: all, in the order of the file.
        outcomes: of each that has ended, by its number; none of those to run after a dry run.
        order: numbers of the jobs to run, in the order they are started.
        workers: processes at most.
        threads: of each.
        memory: the budget in bytes.
        seconds: for all, checks included.
    """

    jobs: Sequence[BatchJob]
    outcomes: dict[int, Outcome]
    order: Sequence[int]
    workers: int
    threads: int
    memory: int
    seconds: float

    @property
    def failed(self) -> list[Outcome]:
        """The outcomes of jobs that failed."""
        return [outcome for outcome in self.outcomes.values() if outcome.status == "failed"]

    def to_json(self) -> dict[str, Any]:
        """Plain values, as ``saltlm batch --json`` prints them."""
        counts = {status: 0 for status in ("done", "skipped", "failed", "waiting")}
        jobs = []
        for job in self.jobs:
            outcome = self.outcomes.get(job.number) or Outcome(number=job.number, status="waiting")
            counts[outcome.status] += 1
            entry = {
                **dataclasses.asdict(outcome),
                "out": str(job.out),
                "memory": job.memory,
                "method": job.config.method,
            }
            jobs.append({"source": job.source, "target": job.target, "auxiliary": job.auxiliary, **entry})
        return {
            "jobs": jobs, **counts, "order": list(self.order), "workers": self.workers, "threads": self.threads,
            "memory": self.memory, "seconds": self.seconds,
            "shared": {
                "found": sum(outcome.found for outcome in self.outcomes.values()),
                "seconds": round(sum(outcome.saved for outcome in self.outcomes.values()), 3),
            },
        }  # fmt: skip


class Watcher:
    """Told of what happens; this one keeps it to itself."""

    def begin(self, jobs: Sequence[BatchJob], skipped: Sequence[BatchJob]) -> None:
        """All is checked, the jobs start."""

    def tell(self, job: BatchJob, stage: str) -> None:
        """A job has come to a stage."""

    def ended(self, job: BatchJob, outcome: Outcome) -> None:
        """A job is done or has failed."""


def batch(
    path: str | Path, config: BatchConfig | None = None, *, watcher: Watcher | None = None, dry_run: bool = False
) -> Batch:
    """Do all jobs of a file; a failed one stops no other.

    Running it again does what is left: folders that hold what their job would make are skipped
    (:mod:`saltlm.batches.finished` says what is compared).

    Args:
        path: the jobs file, see :func:`~saltlm.batches.jobs_file.read_drafts`. Paths in it are relative to the current folder.
        config: where they run.
        watcher: told of what happens.
        dry_run: check everything and tell what would run.

    Raises:
        InputError: lists every fault of the file with its line; nothing has run then.
        KeyboardInterrupt: the workers have been stopped, and nothing is half-written.
    """
    start = time.perf_counter()
    config, watcher = config or BatchConfig(), watcher or Watcher()
    budget = memory_bytes(config.memory) if config.memory else int(SHARE_OF_FREE * available())
    found = plan(*read_drafts(Path(path)), budget)
    cores = len(os.sched_getaffinity(0))
    workers = config.workers or _workers(found.jobs, budget, cores)
    threads = max(1, cores // workers)
    outcomes = {job.number: Outcome(number=job.number, status="skipped") for job in found.finished}
    jobs = sorted([*found.jobs, *found.finished], key=lambda job: job.number)

    def ended(job: BatchJob, outcome: Outcome) -> None:
        outcomes[job.number] = outcome
        watcher.ended(job, outcome)

    if found.jobs and not dry_run:
        _allow_files(len(found.jobs) + SPARE_FILES)
        execute = _executor(config, workers, threads, budget, watcher.tell)
        with contextlib.ExitStack() as locks:
            for job in found.jobs:
                locks.enter_context(locked_output(job.out))
            watcher.begin(found.jobs, found.finished)
            execute(found.jobs, ended)
    return Batch(
        jobs=jobs, outcomes=outcomes, order=[job.number for job in in_order(found.jobs)], workers=workers,
        threads=threads, memory=budget, seconds=round(time.perf_counter() - start, 3),
    )  # fmt: skip


def _allow_files(count: int) -> None:
    """Each waiting job holds the lock of its output open, and the usual limit is 1,024 files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _workers(jobs: Sequence[BatchJob], budget: int, cores: int) -> int:
    """As many processes as there are cores and jobs, and as the middle one of the jobs fits the budget times."""
    need = statistics.median([job.memory for job in jobs]) if jobs else 1
    return max(1, min(cores, len(jobs), int(budget // max(1, need))))


def _executor(
    config: BatchConfig, workers: int, threads: int, budget: int, tell: Callable[[BatchJob, str], None]
) -> Callable[[Sequence[BatchJob], Callable[[BatchJob, Outcome], None]], None]:
    """What runs the jobs: processes of this machine, or a cluster, which is reached here."""
    if config.ray is None:
        return lambda jobs, ended: Pool(jobs, workers, budget, threads, tell).run(ended)
    from .ray import Cluster

    cluster = Cluster(config.ray, workers if config.workers or config.ray == "local" else None, threads, tell)
    return cluster.run
