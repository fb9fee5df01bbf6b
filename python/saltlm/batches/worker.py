"""Runs the jobs of a batch in a worker process, which keeps shared results in memory for later jobs."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import time
from multiprocessing.connection import Connection
from typing import Any

from ..environment import silence_libraries
from ..errors import SaltlmError
from ..files.output_lock import locked_output
from ..pipeline import run_transfer
from ..progress import StageProgress
from ..shared import Shared
from .jobs_file import BatchJob
from .memory import peak_bytes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a job ended.

    Attributes:
        number: number of the job.
        status: ``done``, ``failed``, ``skipped`` (its folder was finished before) or ``waiting`` (not run yet).
        seconds: wall-clock time of the job, without attempts whose process was killed.
        error: why the job failed; ``None`` if it did not.
        attempts: number of times that the job was started.
        peak: peak resident size of its process so far, in bytes.
        found: number of results of earlier jobs that were used again.
        saved: seconds that the computation of these results took.
        rows: number of vocabulary rows of the new model.
        process: id of the process, on a cluster HOST:ID.
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


def run_job(job: BatchJob, shared: Shared, progress: StageProgress | None = None, *, locked: bool = True) -> Outcome:
    """Run one job. An error of the job is returned in the outcome, not raised.

    Args:
        job: the job.
        shared: results of earlier jobs of this process.
        progress: called with (stage, units done, total units).
        locked: whether the caller holds the lock of the output folder.
    """
    start, hits, saved = time.perf_counter(), shared.hits, shared.saved
    rows, error = 0, None
    try:
        with contextlib.nullcontext() if locked else locked_output(job.out):
            done = run_transfer(
                job.source,
                job.target,
                job.auxiliary,
                job.out,
                job.config,
                progress=progress,
                shared=shared,
                locked=True,
            )
        rows = len(done.origin)
    except SaltlmError as exception:
        error = str(exception)
    except MemoryError:
        error = "out of memory; give fewer --workers"
    except Exception as exception:  # the other jobs must run after any error
        error = f"unexpected error: {type(exception).__name__}: {exception}"
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
    """Limit the number of threads that the libraries of this process use."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"):
        os.environ[name] = str(threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if threads > 1 else "false"
    import torch

    torch.set_num_threads(threads)


def serve(connection: Connection, threads: int) -> None:
    """Worker main loop. Receives (job, cache limit in bytes), or ``None`` to exit; sends stages and outcomes.

    The parent starts this process with SIGINT blocked. An interrupt from the terminal reaches all processes of the group; the
    parent handles it and sends SIGTERM to its workers.

    Args:
        connection: this process's end of the pipe to the parent.
        threads: number of threads.
    """
    signal.signal(signal.SIGTERM, _raise_interrupt)
    silence_libraries()
    set_threads(threads)
    shared = Shared()
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError, KeyboardInterrupt):
        while (message := connection.recv()) is not None:
            job, cache_limit = message
            shared.shrink(cache_limit)
            connection.send(run_job(job, shared, _stages(connection)))


def _stages(connection: Connection) -> StageProgress:
    """A progress callback that sends the name of each stage once."""
    last = ""

    def report(stage: str, done: int, total: int) -> None:
        nonlocal last
        if stage != last:
            last = stage
            connection.send(stage)

    return report


def _raise_interrupt(number: int, frame: Any) -> None:
    """Signal handler: the exception unwinds the job, which removes its unfinished folder."""
    raise KeyboardInterrupt
