"""Runs jobs in worker processes of this machine, within a memory budget.

Jobs with the same inputs run in the same process if possible. A job whose process is killed is tried once more.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Sequence
from multiprocessing import connection as waiting
from multiprocessing.connection import Connection
from typing import Any

from ..files.output_folder import clear_leftovers
from .jobs_file import BatchJob
from .worker import Outcome, serve

ATTEMPTS = 2
GRACE = 10.0  # seconds that a worker has to remove its unfinished folder before it is killed
# Called with a job and the stage that it has reached.
Tell = Callable[[BatchJob, str], None]


@dataclasses.dataclass
class _Worker:
    """A worker process.

    Attributes:
        process: the process.
        pipe: the parent's end of the pipe to the process.
        reserved: memory reserved for the process, in bytes.
        job: the job that runs; ``None`` if the worker is idle.
        cached: keys of the shared inputs that the process may still have in memory.
        started: start of the job, in seconds of ``time.perf_counter``.
    """

    process: Any
    pipe: Connection
    reserved: int
    job: BatchJob | None = None
    cached: set[str] = dataclasses.field(default_factory=set)
    started: float = 0.0


class Pool:
    """Worker processes, started when jobs need them."""

    def __init__(self, jobs: Sequence[BatchJob], workers: int, budget: int, threads: int, tell: Tell) -> None:
        """Create a pool without processes.

        Args:
            jobs: jobs to run; the memory of each is within the budget.
            workers: maximum number of processes.
            budget: memory limit of all processes together, in bytes.
            threads: number of threads of each process.
            tell: called with a job and its stage, when a stage starts.
        """
        self.share = budget // workers
        # Jobs within a worker's share of the memory run first. A larger job runs after them, when idle workers can be ended.
        self.waiting = sorted(in_order(jobs), key=lambda job: job.memory > self.share)
        self.workers: list[_Worker] = []
        self.max_workers, self.budget, self.threads, self.tell = workers, budget, threads, tell
        self.attempts: dict[int, int] = {}
        self.preparing: set[str] = set()
        self.context = multiprocessing.get_context("spawn")  # a forked child would inherit torch's threads and locks

    def run(self, ended: Callable[[BatchJob, Outcome], None]) -> None:
        """Run all jobs.

        Args:
            ended: called with each job and its outcome when the job ends.

        Raises:
            KeyboardInterrupt: the run was interrupted; the workers have been ended and their unfinished folders removed.
        """
        try:
            while self.waiting or any(worker.job for worker in self.workers):
                self._fill()
                for worker in self._ready():
                    self._receive(worker, ended)
        except BaseException:
            self._stop()
            raise
        for worker in self.workers:
            self._end(worker)

    def _ready(self) -> list[_Worker]:
        ready = waiting.wait([worker.pipe for worker in self.workers], timeout=1.0)
        return [worker for worker in self.workers if worker.pipe in ready]

    def _fill(self) -> None:
        """Give jobs to idle workers, and start workers, as long as the budget suffices."""
        while True:
            idle = [worker for worker in self.workers if worker.job is None]
            if not idle and len(self.workers) >= self.max_workers:
                return
            choice = self._choose(idle)
            if choice is None:
                return
            job, worker = choice
            need = max(job.memory, self.share)
            if not self._make_room(need, worker):
                return
            if worker is None:
                worker = self._start(need)
            self._give(worker, job, need)

    def _choose(self, idle: Sequence[_Worker]) -> tuple[BatchJob, _Worker | None] | None:
        """Choose the next job and its worker.

        Args:
            idle: workers without a job.

        Returns:
            The waiting job and the idle worker that share the most bytes of cached inputs. If no worker is idle: a job, and
            ``None`` for a new worker. ``None`` if no job can start now.
        """
        small = bool(self.waiting) and self.waiting[0].memory <= self.share
        ready = [
            job for job in self.waiting if not self.preparing & {*job.prepares} and (job.memory <= self.share) == small
        ]
        if not ready:
            return None
        cached_anywhere = set().union(*(worker.cached for worker in self.workers))
        if idle:
            # Ties go to the job that shares the fewest bytes with any worker; the other jobs suit another worker.
            pairs = [
                (_cached_bytes(job, worker.cached), -_cached_bytes(job, cached_anywhere), -index, job, worker)
                for index, job in enumerate(ready)
                for worker in idle
            ]
            *_, job, worker = max(pairs, key=lambda pair: pair[:3])
            return job, worker
        return min(ready, key=lambda job: _cached_bytes(job, cached_anywhere)), None

    def _make_room(self, need: int, worker: _Worker | None) -> bool:
        """Whether the budget allows ``need`` bytes for ``worker`` (``None``: a new worker); ends idle workers if necessary."""
        others = [other for other in self.workers if other is not worker]
        while sum(other.reserved for other in others) + need > self.budget:
            idle = next((other for other in others if other.job is None), None)
            if idle is None:
                return False
            self._end(idle)
            self.workers.remove(idle)
            others.remove(idle)
        return True

    def _start(self, reserved: int) -> _Worker:
        """Start a worker process."""
        parent_end, child_end = self.context.Pipe()
        process = self.context.Process(target=serve, args=(child_end, self.threads), daemon=True)
        before = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "RAYON_NUM_THREADS")}
        os.environ.update(dict.fromkeys(before, str(self.threads)))  # the libraries read them when they are loaded
        # The worker inherits the blocked SIGINT. An interrupt from the terminal reaches all processes; the parent handles it.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value
        child_end.close()
        worker = _Worker(process, parent_end, reserved)
        self.workers.append(worker)
        return worker

    def _give(self, worker: _Worker, job: BatchJob, need: int) -> None:
        """Send a job to an idle worker, with ``need`` bytes reserved for it."""
        self.waiting.remove(job)
        self.preparing |= {*job.prepares}
        self.attempts[job.number] = self.attempts.get(job.number, 0) + 1
        worker.job, worker.reserved, worker.started = job, need, time.perf_counter()
        worker.cached = {*job.shared}
        # Memory that is reserved and that this job does not need may hold results for later jobs.
        cache_limit = need - job.memory + sum(job.shared.values())
        self.tell(job, "starts")
        try:
            worker.pipe.send((job, cache_limit))
        except OSError:
            pass  # the process has exited; _receive handles the closed pipe in the next iteration

    def _receive(self, worker: _Worker, ended: Callable[[BatchJob, Outcome], None]) -> None:
        """Handle one message of a worker, a stage or an outcome, or the end of its process."""
        job = worker.job
        try:
            message = worker.pipe.recv()
        except (EOFError, OSError):
            self.workers.remove(worker)
            if job is not None:
                self._retry_or_fail(worker, job, ended)
            return
        if job is None:
            return
        if isinstance(message, str):
            self.tell(job, message)
            return
        worker.job = None
        self.preparing -= {*job.prepares}
        ended(job, dataclasses.replace(message, attempts=self.attempts[job.number]))

    def _retry_or_fail(self, worker: _Worker, job: BatchJob, ended: Callable[[BatchJob, Outcome], None]) -> None:
        """Queue the job of an exited process again, or fail it after :data:`ATTEMPTS` attempts."""
        worker.process.join(GRACE)
        how = exit_words(worker.process.exitcode)
        self.preparing -= {*job.prepares}
        if self.attempts[job.number] < ATTEMPTS:
            self.tell(job, f"its process {how}; tried again")
            self.waiting.insert(0, job)
            return
        clear_leftovers(job.out)
        error = f"its process {how}, {ATTEMPTS} times; if memory ran out, give fewer --workers or less --memory"
        seconds = round(time.perf_counter() - worker.started, 3)
        ended(job, Outcome(number=job.number, status="failed", error=error, attempts=ATTEMPTS, seconds=seconds))

    def _end(self, worker: _Worker) -> None:
        """Ask an idle worker to exit, and kill it if it does not within :data:`GRACE` seconds."""
        try:
            worker.pipe.send(None)
        except OSError:
            pass
        worker.process.join(GRACE)
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()
        worker.pipe.close()

    def _stop(self) -> None:
        """Terminate all workers, kill those that do not exit in time, and remove their unfinished folders."""
        for worker in self.workers:
            worker.process.terminate()
        deadline = time.monotonic() + GRACE
        for worker in self.workers:
            worker.process.join(max(0.0, deadline - time.monotonic()))
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
            if worker.job is not None and worker.job.out.parent.is_dir():
                clear_leftovers(worker.job.out)


def in_order(jobs: Sequence[BatchJob]) -> list[BatchJob]:
    """Sort jobs so that equal inputs are adjacent: by source, then by target, in the order of first occurrence."""
    first: dict[str, int] = {}
    for job in jobs:
        for key in job.shared:
            first.setdefault(key, len(first))
    return sorted(jobs, key=lambda job: [first[key] for key in job.shared])


def _cached_bytes(job: BatchJob, cached: set[str]) -> int:
    """Bytes of the job's shared inputs whose keys are in ``cached``."""
    return sum(size for key, size in job.shared.items() if key in cached)


def exit_words(code: int | None) -> str:
    """Describe an exit code, as the end of a sentence."""
    if code is not None and code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with code {code}"
