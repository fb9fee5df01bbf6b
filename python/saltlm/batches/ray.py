"""The jobs of a batch on a Ray cluster whose nodes see the same files."""

from __future__ import annotations

import importlib.util
import os
import re
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError, first_line, input_error
from ..files.output_folder import clear_leftovers
from ..shared import Shared
from .jobs_file import BatchJob
from .pool import Tell, in_order
from .worker import Outcome, run_job, set_threads

TIMEOUT = 5.0  # seconds for the cluster to answer
ATTEMPTS = 3  # a node that goes takes jobs along that are no fault of theirs
CLUSTER_FILE = Path("/tmp/ray/ray_current_cluster")  # where `ray start` leaves its address

_KEPT = Shared()  # of this process: Ray gives a process one task after another


class Cluster:
    """A connection to a cluster."""

    def __init__(self, address: str, workers: int | None, threads: int, tell: Tell) -> None:
        """Connect.

        Args:
            address: ``local`` starts a cluster of this machine; ``auto`` finds a running one; or HOST:PORT.
            workers: jobs at once at most; ``None`` leaves it to the cluster's cores.
            threads: cores of each job.
            tell: told of a job's stages.

        Raises:
            InputError: Ray is not installed, or no cluster answers.
        """
        if importlib.util.find_spec("ray") is None:
            raise input_error("ray", "no package ray", "it, to reach a cluster", 'pip install "saltlm[ray]"')
        self.address = address if address == "local" else reachable(address)
        self.workers, self.threads, self.tell = workers, threads, tell
        import ray

        self.ray = ray
        own = {"num_cpus": (workers or 1) * threads, "include_dashboard": False} if address == "local" else {}
        try:
            ray.init(address=self.address, log_to_driver=False, logging_level="ERROR", **own)
        except Exception as error:  # Ray raises errors of the system, of gRPC and of its own
            reason = first_line(error)
            raise _unreachable(address, reason) from None

    def run(self, jobs: Sequence[BatchJob], ended: Callable[[BatchJob, Outcome], None]) -> None:
        """Do all jobs; ``ended`` is told of each. An interrupt cancels what runs and goes on upwards."""
        waiting = in_order(jobs)
        running: dict[Any, BatchJob] = {}
        attempts = dict.fromkeys((job.number for job in jobs), 0)
        remote = self.ray.remote(max_retries=0, num_cpus=self.threads)(_task)
        try:
            while waiting or running:
                preparing = {name for job in running.values() for name in job.prepares}
                ready = [job for job in waiting if not preparing & {*job.prepares}]
                room = len(ready) if self.workers is None else self.workers - len(running)
                # One that prepares what others wait for goes alone; the next round has the others.
                for job in ready[:1] if any(job.prepares for job in ready[:room]) else ready[: max(0, room)]:
                    waiting.remove(job)
                    attempts[job.number] += 1
                    self.tell(job, "given to the cluster")
                    task = remote.options(memory=job.memory).remote(job, os.getcwd(), self.threads)
                    running[task] = job
                done, _ = self.ray.wait(list(running), timeout=1.0)
                for task in done:
                    self._hear(task, running.pop(task), attempts, waiting, ended)
                self._hopeless(running, ended)
        except BaseException:
            for task in running:
                self.ray.cancel(task)
            self.ray.wait(list(running), num_returns=len(running), timeout=10.0) if running else None
            raise
        finally:
            self.ray.shutdown()

    def _hear(self, task: Any, job: BatchJob, attempts: dict[int, int], waiting: list[BatchJob], ended: Any) -> None:
        try:
            found = self.ray.get(task)
        except self.ray.exceptions.RayError as error:
            reason = first_line(error)
            if not isinstance(error, self.ray.exceptions.RayTaskError) and attempts[job.number] < ATTEMPTS:
                self.tell(job, "its process or node was lost; tried again")
                waiting.insert(0, job)
                return
            clear_leftovers(job.out)
            found = {"status": "failed", "error": f"lost {attempts[job.number]} times: {reason}"}
        ended(job, Outcome(**{**found, "number": job.number, "attempts": attempts[job.number]}))

    def _hopeless(self, running: dict[Any, BatchJob], ended: Any) -> None:
        """Fail what no node that lives is large enough for: Ray itself would wait for such a node for ever."""
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        for task, job in list(running.items()):
            if any(n.get("memory", 0) >= job.memory and n.get("CPU", 0) >= self.threads for n in nodes):
                continue
            self.ray.cancel(task)
            del running[task]
            error = f"no node has {self.threads} cores and {job.memory / 1e9:.1f} GB of memory"
            ended(job, Outcome(number=job.number, status="failed", error=error))


def _task(job: BatchJob, folder: str, threads: int) -> dict[str, Any]:
    """One job, in a process of some node."""
    import dataclasses

    from ..environment import silence_libraries

    silence_libraries()
    set_threads(threads)
    if not os.path.isdir(folder):
        return {"status": "failed", "error": f"node {socket.gethostname()} has no folder {folder}"}
    os.chdir(folder)  # relative paths mean the same as where the batch was started
    _KEPT.shrink(2 * sum(job.shared.values()))
    outcome = run_job(job, _KEPT)
    return {**dataclasses.asdict(outcome), "process": f"{socket.gethostname()}:{os.getpid()}"}


def reachable(address: str) -> str:
    """The address of a cluster that takes connections.

    Raises:
        InputError: none is named or found, or it does not answer in time.
    """
    found = address
    if address == "auto":
        found = os.environ.get("RAY_ADDRESS", "")
        if not found and CLUSTER_FILE.is_file():
            found = CLUSTER_FILE.read_text(encoding="utf-8").strip()
        if not found:
            raise _unreachable(address, "no cluster runs here")
    match = re.fullmatch(r"(?:ray://)?\[?([^\[\]/]+?)\]?:(\d+)", found)
    if match is None:
        raise input_error("ray", repr(address), "auto, local or HOST:PORT", "name one")
    try:
        with socket.create_connection((match[1], int(match[2])), timeout=TIMEOUT):
            return found
    except (OSError, OverflowError) as error:
        raise _unreachable(address, f"{found}: {error}") from None


def _unreachable(address: str, reason: str) -> InputError:
    return input_error(
        "ray", f"no cluster at {address!r} ({reason})", "one that answers", "start it, or leave --ray out to run here"
    )
