"""Memory, time and disk that a transfer will need, estimated from sizes before any row is built."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import torch

from ..config import TransferConfig
from ..model.checkpoint import Donor, Source
from ..rows.assembly import Assembly
from ..rows.job import Job

# Memory of Python with torch and transformers and both tokenizers, in bytes.
PROCESS = 700 * 2**20
# Bytes a second of reading and writing weight files on a plain disk.
DISK_SPEED = 300e6
# Above this size of the weights, the reload check loads one layer only.
WHOLE_CHECK = 2 * 2**30
# Share of the speed of a large matrix product that the methods reach, with gathers and memory traffic.
EFFICIENCY = 0.3


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Estimated cost of a transfer. Each figure may be wrong by a factor of two or three.

    Attributes:
        memory: largest resident size of the process, in bytes.
        seconds: time from start to end.
        disk: size of the written folder, in bytes.
    """

    memory: int
    seconds: float
    disk: int

    def __str__(self) -> str:
        return f"About {_size(self.memory)} of memory, {_time(self.seconds)}, {_size(self.disk)} of disk; nothing was written."

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dataclasses.asdict(self)


def estimate(
    model: Source, donor: Donor, assembly: Assembly, job: Job, config: TransferConfig, elapsed: float
) -> Estimate:
    """Estimate the cost of a transfer that has been planned.

    Args:
        model: the source.
        donor: the target PLM.
        assembly: the new matrices before any row is built.
        job: what the method would work from.
        config: the options.
        elapsed: seconds that loading and alignment took.

    Returns:
        The estimate.
    """
    matrices = 1 + (model.output_rows is not None)
    width, rows = model.input_rows.shape[1], len(assembly.input_rows)
    item = assembly.input_rows.element_size()
    old = matrices * len(model.input_rows) * width * model.input_rows.element_size()
    new = matrices * rows * width * item
    weights = sum(file.stat().st_size for file in {model.folder / name for name in model.shards.values()})
    anchors, tokens = len(job.anchors), len(job.new)
    plm_width = donor.input_rows.shape[1] if donor.input_rows.ndim == 2 else 0
    vectors = 0 if job.auxiliary is None else job.auxiliary.vectors.shape[1]
    check = weights if weights <= WHOLE_CHECK and config.reload_check != "off" else 0
    work = 4 * anchors * (matrices * width + plm_width + vectors) + 4 * 8192 * max(anchors, width)
    products = (
        2.0 * (anchors + tokens) * max(plm_width, 1) * (plm_width + matrices * width)
        + 2.0 * tokens * anchors * vectors
        + 2.0 * 8192 * width * width
    )
    trials = 1 if not (config.tune or config.tune_text) else 20
    seconds = elapsed + trials * products / (EFFICIENCY * _speed())
    seconds += 2 * (weights + new) / DISK_SPEED + 3 * check / DISK_SPEED
    return Estimate(
        memory=round(PROCESS + 2 * new + max(work, 2 * check)),
        seconds=seconds,
        disk=max(0, weights - old) + new,
    )


def _speed() -> float:
    """Operations a second of a matrix product on this machine in float32, measured in some milliseconds."""
    size = 512
    a = torch.ones(size, size)
    a @ a
    started = time.perf_counter()
    for _ in range(3):
        a @ a
    return 3 * 2 * size**3 / max(time.perf_counter() - started, 1e-9)


def _size(count: float) -> str:
    """A number of bytes with two significant digits."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if count >= 10 or unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _time(seconds: float) -> str:
    """A time, rounded as coarsely as the estimate deserves."""
    if seconds < 1.5:
        return "1 second"
    if seconds < 90:
        return f"{round(seconds)} seconds"
    return f"{round(seconds / 60)} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
