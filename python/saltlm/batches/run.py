"""Runs the transfers of a jobs file.

All jobs are checked before the first one starts. Work that jobs share is done once, finished jobs are skipped, and failures are
reported at the end.
"""

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

from ..environment import available_memory
from ..files.output_lock import locked_output
from .check import plan
from .config import BatchConfig, memory_bytes
from .jobs_file import BatchJob, read_drafts
from .pool import Pool, in_order
from .worker import Outcome

SHARE_OF_FREE = 0.8  # default memory limit, as a share of the free memory
SPARE_FILES = 256  # open files other than the locks of the jobs: pipes of the workers, weight files, libraries


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """Result of a batch.

    Attributes:
        jobs: all jobs, in the order of the file.
        outcomes: number of a job -> its outcome, for jobs that ended or were skipped.
        order: numbers of the jobs to run, in the order in which they start.
        workers: maximum number of processes.
        threads: number of threads of each process.
        memory: memory limit in bytes.
        seconds: wall-clock time of the batch, including the checks.
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
        """Plain values, which ``saltlm batch --json`` prints."""
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
            "jobs": jobs,
            **counts,
            "order": list(self.order),
            "workers": self.workers,
            "threads": self.threads,
            "memory": self.memory,
            "seconds": self.seconds,
            "shared": {
                "found": sum(outcome.found for outcome in self.outcomes.values()),
                "seconds": round(sum(outcome.saved for outcome in self.outcomes.values()), 3),
            },
        }


class Watcher:
    """Callbacks of a batch; the methods of this class do nothing."""

    def begin(self, jobs: Sequence[BatchJob], skipped: Sequence[BatchJob]) -> None:
        """Called after the checks, before the first job starts.

        Args:
            jobs: jobs to run.
            skipped: jobs that were finished before.
        """

    def tell(self, job: BatchJob, stage: str) -> None:
        """Called when a job reaches a stage."""

    def ended(self, job: BatchJob, outcome: Outcome) -> None:
        """Called when a job is done or has failed."""


def batch(
    path: str | Path, config: BatchConfig | None = None, *, watcher: Watcher | None = None, dry_run: bool = False
) -> Batch:
    """Run all jobs of a file. The other jobs run even if one fails.

    A second run does only the remaining jobs: a job whose folder already holds its result is skipped
    (:mod:`saltlm.batches.finished` lists what is compared).

    Args:
        path: the jobs file, see :func:`~saltlm.batches.jobs_file.read_drafts`. Paths in it are relative to the current folder.
        config: number of workers, memory limit and cluster; ``None`` for the defaults.
        watcher: its methods are called when jobs start, reach a stage and end.
        dry_run: check all jobs, and run none.

    Raises:
        InputError: the file has faults; the message lists each with its line, and no job has run.
        KeyboardInterrupt: the run was interrupted; the workers have been ended, and no unfinished folder is left.
    """
    start = time.perf_counter()
    config, watcher = config or BatchConfig(), watcher or Watcher()
    budget = memory_bytes(config.memory) if config.memory else int(SHARE_OF_FREE * available_memory())
    checked = plan(*read_drafts(Path(path)), budget)
    cores = len(os.sched_getaffinity(0))
    workers = config.workers or _workers(checked.jobs, budget, cores)
    threads = max(1, cores // workers)
    outcomes = {job.number: Outcome(number=job.number, status="skipped") for job in checked.finished}
    jobs = sorted([*checked.jobs, *checked.finished], key=lambda job: job.number)

    def ended(job: BatchJob, outcome: Outcome) -> None:
        outcomes[job.number] = outcome
        watcher.ended(job, outcome)

    if checked.jobs and not dry_run:
        _allow_files(len(checked.jobs) + SPARE_FILES)
        execute = _executor(config, workers, threads, budget, watcher.tell)
        with contextlib.ExitStack() as locks:
            for job in checked.jobs:
                locks.enter_context(locked_output(job.out))
            watcher.begin(checked.jobs, checked.finished)
            execute(checked.jobs, ended)
    return Batch(
        jobs=jobs,
        outcomes=outcomes,
        order=[job.number for job in in_order(checked.jobs)],
        workers=workers,
        threads=threads,
        memory=budget,
        seconds=round(time.perf_counter() - start, 3),
    )


def _allow_files(count: int) -> None:
    """Raise the limit of open files to ``count`` if possible: each job keeps a lock file open, and the usual limit is 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < limit:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


def _workers(jobs: Sequence[BatchJob], budget: int, cores: int) -> int:
    """Default number of processes: the number of cores, of jobs, or of jobs of median size within the budget; the smallest."""
    need = statistics.median([job.memory for job in jobs]) if jobs else 1
    return max(1, min(cores, len(jobs), int(budget // max(1, need))))


def _executor(
    config: BatchConfig, workers: int, threads: int, budget: int, tell: Callable[[BatchJob, str], None]
) -> Callable[[Sequence[BatchJob], Callable[[BatchJob, Outcome], None]], None]:
    """The function that runs the jobs, on this machine or on a Ray cluster; a connection to the cluster is opened here."""
    if config.ray is None:
        return lambda jobs, ended: Pool(jobs, workers, budget, threads, tell).run(ended)
    from .ray import Cluster

    cluster = Cluster(config.ray, workers if config.workers or config.ray == "local" else None, threads, tell)
    return cluster.run
