"""Jobs on processes of this machine: within a memory budget, neighbours in the same process, one killed process is no end."""

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
GRACE = 10.0  # seconds a worker has to clear up before it is killed
Tell = Callable[[BatchJob, str], None]


@dataclasses.dataclass
class _Worker:
    """A process, the job it does, what it holds of earlier ones, and the memory set aside for it."""

    process: Any
    pipe: Connection
    reserved: int
    job: BatchJob | None = None
    holds: set[str] = dataclasses.field(default_factory=set)
    started: float = 0.0


class Pool:
    """Workers that are started as jobs need them."""

    def __init__(self, jobs: Sequence[BatchJob], workers: int, budget: int, threads: int, tell: Tell) -> None:
        """Take jobs over.

        Args:
            jobs: each of which fits the budget.
            workers: processes at most.
            budget: bytes of memory for all of them.
            threads: of each.
            tell: told of a job's stages.
        """
        self.share = budget // workers
        # Jobs that fit a worker's share come first: a larger one waits until the others have left, and starves nobody.
        self.waiting = sorted(in_order(jobs), key=lambda job: job.memory > self.share)
        self.workers: list[_Worker] = []
        self.most, self.budget, self.threads, self.tell = workers, budget, threads, tell
        self.attempts: dict[int, int] = {}
        self.preparing: set[str] = set()
        self.context = multiprocessing.get_context("spawn")  # a forked child would share torch's threads and locks

    def run(self, ended: Callable[[BatchJob, Outcome], None]) -> None:
        """Do all jobs; ``ended`` is told of each as it ends. An interrupt stops the workers and goes on upwards."""
        try:
            while self.waiting or any(worker.job for worker in self.workers):
                self._fill()
                for worker in self._ready():
                    self._hear(worker, ended)
        except BaseException:
            self._stop()
            raise
        for worker in self.workers:
            self._end(worker)

    def _ready(self) -> list[_Worker]:
        ready = waiting.wait([worker.pipe for worker in self.workers], timeout=1.0)
        return [worker for worker in self.workers if worker.pipe in ready]

    def _fill(self) -> None:
        """Give jobs to idle workers, and start workers, as far as the budget goes."""
        while True:
            idle = [worker for worker in self.workers if worker.job is None]
            if not idle and len(self.workers) >= self.most:
                return
            found = self._next(idle)
            if found is None:
                return
            job, worker = found
            need = max(job.memory, self.share)
            if not self._make_room(need, worker):
                return
            if worker is None:
                worker = self._start(need)
            self._give(worker, job, need)

    def _next(self, idle: Sequence[_Worker]) -> tuple[BatchJob, _Worker | None] | None:
        """An idle worker and the waiting job whose inputs it holds most of; where none is idle, a job for a new worker."""
        small = bool(self.waiting) and self.waiting[0].memory <= self.share
        ready = [
            job for job in self.waiting if not self.preparing & {*job.prepares} and (job.memory <= self.share) == small
        ]
        if not ready:
            return None
        held = set().union(*(worker.holds for worker in self.workers))
        if idle:
            # What other workers hold is better left to them.
            pairs = [
                (_common(job, worker.holds), -_common(job, held), -place, job, worker)
                for place, job in enumerate(ready)
                for worker in idle
            ]
            *_, job, worker = max(pairs, key=lambda pair: pair[:3])
            return job, worker
        return min(ready, key=lambda job: _common(job, held)), None

    def _make_room(self, need: int, worker: _Worker | None) -> bool:
        """Whether the budget has ``need`` bytes, for ``worker`` if it is one that is there; idle ones may go for it."""
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
        ours, theirs = self.context.Pipe()
        process = self.context.Process(target=serve, args=(theirs, self.threads), daemon=True)
        before = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "RAYON_NUM_THREADS")}
        os.environ.update(dict.fromkeys(before, str(self.threads)))  # read when the libraries are loaded
        # A worker is born with interrupts blocked: one from the terminal is for the parent, however early it comes.
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
        theirs.close()
        worker = _Worker(process, ours, reserved)
        self.workers.append(worker)
        return worker

    def _give(self, worker: _Worker, job: BatchJob, need: int) -> None:
        self.waiting.remove(job)
        self.preparing |= {*job.prepares}
        self.attempts[job.number] = self.attempts.get(job.number, 0) + 1
        worker.job, worker.reserved, worker.started = job, need, time.perf_counter()
        worker.holds = {*job.shared}
        # What the reservation leaves beside this job may hold results for the next.
        keep = need - job.memory + sum(job.shared.values())
        self.tell(job, "starts")
        try:
            worker.pipe.send((job, keep))
        except OSError:
            pass  # it has died; its end is heard next

    def _hear(self, worker: _Worker, ended: Callable[[BatchJob, Outcome], None]) -> None:
        job = worker.job
        try:
            message = worker.pipe.recv()
        except (EOFError, OSError):
            self.workers.remove(worker)
            if job is not None:
                self._died(worker, job, ended)
            return
        if job is None:
            return
        if isinstance(message, str):
            self.tell(job, message)
            return
        worker.job = None
        self.preparing -= {*job.prepares}
        ended(job, dataclasses.replace(message, attempts=self.attempts[job.number]))

    def _died(self, worker: _Worker, job: BatchJob, ended: Callable[[BatchJob, Outcome], None]) -> None:
        worker.process.join(GRACE)
        how = died_of(worker.process.exitcode)
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
        """End all workers; one that does not clear up in time is killed, and its folder cleared here."""
        for worker in self.workers:
            worker.process.terminate()
        until = time.monotonic() + GRACE
        for worker in self.workers:
            worker.process.join(max(0.0, until - time.monotonic()))
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
            if worker.job is not None and worker.job.out.parent.is_dir():
                clear_leftovers(worker.job.out)


def in_order(jobs: Sequence[BatchJob]) -> list[BatchJob]:
    """Jobs with the same inputs behind one another: by the source, then the target, as they first occur."""
    first: dict[str, int] = {}
    for job in jobs:
        for key in job.shared:
            first.setdefault(key, len(first))
    return sorted(jobs, key=lambda job: [first[key] for key in job.shared])


def _common(job: BatchJob, holds: set[str]) -> int:
    """Bytes of the job's inputs that are held."""
    return sum(size for key, size in job.shared.items() if key in holds)


def died_of(code: int | None) -> str:
    """An exit code in words."""
    if code is not None and code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with code {code}"
