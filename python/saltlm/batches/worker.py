"""One job of a batch in the process that does it, here or on another machine, with what that process keeps for the next."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from ..environment import silence_libraries
from ..errors import SaltlmError
from ..files.output_lock import locked_output
from ..pipeline import run_transfer
from ..shared import Shared
from .jobs_file import BatchJob
from .memory import peak_bytes

Progress = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a job ended.

    Attributes:
        number: the job's.
        status: ``done``, ``skipped`` (its folder was finished before) or ``failed``.
        seconds: it took, attempts that were killed not counted.
        error: why it failed.
        attempts: how often it was started.
        peak: largest resident size of its process so far, in bytes.
        found: results of earlier jobs that it used.
        saved: seconds that making them had taken.
        rows: of the new model.
        process: what ran it.
    """

    number: int
    status: str
    seconds: float = 0.0
    error: str | None = None
    attempts: int = 0
    peak: int = 0
    found: int = 0
    saved: float = 0.0
    rows: int = 0
    process: str = ""


def run_job(job: BatchJob, shared: Shared, progress: Progress | None = None, *, locked: bool = True) -> Outcome:
    """Do one job; what goes wrong with it is in the outcome.

    Args:
        job: of the batch.
        shared: what this process has read so far.
        progress: told of the stages.
        locked: the caller holds the lock of the output.
    """
    start, hits, saved = time.perf_counter(), shared.hits, shared.saved
    rows, error = 0, None
    try:
        with contextlib.nullcontext() if locked else locked_output(job.out):
            done = run_transfer(
                job.source, job.target, job.auxiliary, job.out, job.config, progress=progress, shared=shared, locked=True
            )  # fmt: skip
        rows = len(done.origin)
    except SaltlmError as problem:
        error = str(problem)
    except MemoryError:
        error = "no memory left; give fewer --workers"
    except Exception as problem:  # other jobs go on, whatever this one met
        error = f"unforeseen: {type(problem).__name__}: {problem}"
    return Outcome(
        number=job.number,
        status="failed" if error else "done",
        seconds=round(time.perf_counter() - start, 3),
        error=error,
        attempts=1,
        peak=peak_bytes(),
        found=shared.hits - hits,
        saved=round(shared.saved - saved, 3),
        rows=rows,
        process=str(os.getpid()),
    )


def set_threads(threads: int) -> None:
    """Have every library of this process use at most so many."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"):
        os.environ[name] = str(threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if threads > 1 else "false"
    import torch

    torch.set_num_threads(threads)


def serve(connection: Connection, threads: int) -> None:
    """The life of a worker: jobs come in with the bytes it may keep for later ones, stages and outcomes go out.

    An interrupt from the terminal reaches the whole group; the parent, which started this process with interrupts blocked,
    acts on it and ends its workers.
    """
    signal.signal(signal.SIGTERM, _stop)
    silence_libraries()
    set_threads(threads)
    shared = Shared()
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError, KeyboardInterrupt):
        while (message := connection.recv()) is not None:
            job, keep = message
            shared.shrink(keep)
            connection.send(run_job(job, shared, _stages(connection)))


def _stages(connection: Connection) -> Progress:
    """Sends a stage's name once, not its every step."""
    last = ""

    def report(stage: str, done: int, total: int) -> None:
        nonlocal last
        if stage != last:
            last = stage
            connection.send(stage)

    return report


def _stop(number: int, frame: Any) -> None:
    raise KeyboardInterrupt  # unwinds the job, so that its half-written folder goes
