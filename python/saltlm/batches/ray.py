"""Runs the jobs of a batch on a Ray cluster. All nodes must have the same files under the same paths."""

from __future__ import annotations

import dataclasses
import os
import re
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..environment import require, silence_libraries
from ..errors import InputError, first_line, input_error
from ..files.open_file import FileKind, read_file
from ..files.output_folder import clear_leftovers
from ..shared import Shared
from .jobs_file import BatchJob
from .pool import Tell, in_order
from .worker import Outcome, run_job, set_threads

TIMEOUT = 5.0  # seconds to wait for a connection to the cluster
ATTEMPTS = 3  # of a job; a lost node ends jobs that have no fault
CLUSTER_FILE = Path("/tmp/ray/ray_current_cluster")  # `ray start` writes the address of the cluster into it

_SHARED = Shared()  # results that later jobs of this process can use; Ray runs one task after another in a process


class Cluster:
    """A connection to a Ray cluster."""

    def __init__(self, address: str, workers: int | None, threads: int, tell: Tell) -> None:
        """Connect to the cluster.

        Args:
            address: ``local`` starts a cluster on this machine, ``auto`` finds a running cluster; else HOST:PORT.
            workers: maximum number of jobs that run at once; ``None`` for as many as the cluster has cores for.
            threads: number of cores of each job.
            tell: called with a job and its stage, when a stage starts.

        Raises:
            InputError: Ray is not installed, or no cluster answers.
        """
        require("ray", "ray", "a Ray cluster")
        self.address = address if address == "local" else reachable(address)
        self.workers, self.threads, self.tell = workers, threads, tell
        import ray

        self.ray = ray
        settings = {"num_cpus": (workers or 1) * threads, "include_dashboard": False} if address == "local" else {}
        try:
            ray.init(address=self.address, log_to_driver=False, logging_level="ERROR", **settings)
        except Exception as error:  # Ray raises OSError, gRPC errors and errors of its own classes
            reason = first_line(error)
            raise _unreachable(address, reason) from None

    def run(self, jobs: Sequence[BatchJob], ended: Callable[[BatchJob, Outcome], None]) -> None:
        """Run all jobs.

        Args:
            jobs: jobs to run.
            ended: called with each job and its outcome when the job ends.

        Raises:
            KeyboardInterrupt: the run was interrupted; the running tasks have been cancelled.
        """
        waiting = in_order(jobs)
        running: dict[Any, BatchJob] = {}
        attempts = dict.fromkeys((job.number for job in jobs), 0)
        remote = self.ray.remote(max_retries=0, num_cpus=self.threads)(_task)
        try:
            while waiting or running:
                preparing = {name for job in running.values() for name in job.prepares}
                ready = [job for job in waiting if not preparing & {*job.prepares}]
                room = len(ready) if self.workers is None else self.workers - len(running)
                # A job that prepares an input starts alone; jobs that do not prepare it start in the next iteration.
                for job in ready[:1] if any(job.prepares for job in ready[:room]) else ready[: max(0, room)]:
                    waiting.remove(job)
                    attempts[job.number] += 1
                    self.tell(job, "given to the cluster")
                    task = remote.options(memory=job.memory).remote(job, os.getcwd(), self.threads)
                    running[task] = job
                done, _ = self.ray.wait(list(running), timeout=1.0)
                for task in done:
                    self._receive(task, running.pop(task), attempts, waiting, ended)
                self._fail_oversized(running, ended)
        except BaseException:
            for task in running:
                self.ray.cancel(task)
            self.ray.wait(list(running), num_returns=len(running), timeout=10.0) if running else None
            raise
        finally:
            self.ray.shutdown()

    def _receive(self, task: Any, job: BatchJob, attempts: dict[int, int], waiting: list[BatchJob], ended: Any) -> None:
        """Report the outcome of an ended task, or queue its job again if its process or node was lost."""
        try:
            fields = self.ray.get(task)
        except self.ray.exceptions.RayError as error:
            reason = first_line(error)
            if not isinstance(error, self.ray.exceptions.RayTaskError) and attempts[job.number] < ATTEMPTS:
                self.tell(job, "its process or node was lost; tried again")
                waiting.insert(0, job)
                return
            clear_leftovers(job.out)
            fields = {"status": "failed", "error": f"lost {attempts[job.number]} times: {reason}"}
        ended(job, Outcome(**{**fields, "number": job.number, "attempts": attempts[job.number]}))

    def _fail_oversized(self, running: dict[Any, BatchJob], ended: Any) -> None:
        """Fail the jobs that need more cores or memory than any live node has; Ray would wait for such a node without limit."""
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        for task, job in list(running.items()):
            if any(n.get("memory", 0) >= job.memory and n.get("CPU", 0) >= self.threads for n in nodes):
                continue
            self.ray.cancel(task)
            del running[task]
            error = f"no node has {self.threads} cores and {job.memory / 1e9:.1f} GB of memory"
            ended(job, Outcome(number=job.number, status="failed", error=error))


def _task(job: BatchJob, folder: str, threads: int) -> dict[str, Any]:
    """Run one job in a process of a node; returns the fields of its outcome.

    Args:
        job: the job.
        folder: working folder of the process that started the batch.
        threads: number of threads.
    """
    silence_libraries()
    set_threads(threads)
    if not os.path.isdir(folder):
        return {"status": "failed", "error": f"node {socket.gethostname()} has no folder {folder}"}
    os.chdir(folder)  # relative paths are relative to the folder where the batch was started
    _SHARED.shrink(2 * sum(job.shared.values()))
    outcome = run_job(job, _SHARED)
    return {**dataclasses.asdict(outcome), "process": f"{socket.gethostname()}:{os.getpid()}"}


def reachable(address: str) -> str:
    """Resolve the address of a cluster, and check that the cluster accepts connections.

    Args:
        address: ``auto`` or HOST:PORT.

    Raises:
        InputError: the address is malformed, no running cluster was found, or the cluster does not answer in time.
    """
    resolved = address
    if address == "auto":
        resolved = os.environ.get("RAY_ADDRESS", "")
        if not resolved and CLUSTER_FILE.is_file():
            resolved = read_file(CLUSTER_FILE, FileKind.LOCK).decode().strip()
        if not resolved:
            raise _unreachable(address, "no cluster runs here")
    match = re.fullmatch(r"(?:ray://)?\[?([^\[\]/]+?)\]?:(\d+)", resolved)
    if match is None:
        raise input_error("ray", repr(address), "auto, local or HOST:PORT", "name one")
    try:
        with socket.create_connection((match[1], int(match[2])), timeout=TIMEOUT):
            return resolved
    except (OSError, OverflowError) as error:
        raise _unreachable(address, f"{resolved}: {error}") from None


def _unreachable(address: str, reason: str) -> InputError:
    """The error of a cluster that cannot be reached."""
    return input_error(
        "ray", f"no cluster at {address!r} ({reason})", "a running cluster", "start it, or run here without --ray"
    )
