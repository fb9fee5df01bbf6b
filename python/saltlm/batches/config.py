"""Where and with what the jobs of a batch run."""

from __future__ import annotations

import dataclasses
import re

from ..errors import input_error

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


def memory_bytes(text: str) -> int:
    """Bytes that a size such as ``12G``, ``800M`` or ``16GiB`` stands for.

    Raises:
        InputError: it is no such size, or zero.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?I?)B?", text.strip(), re.IGNORECASE)
    size = int(float(match[1]) * _UNITS.get(match[2].upper(), 0)) if match else 0
    if size <= 0:
        raise input_error("memory", repr(text), "a size such as 12G, 800M or 16GiB", "give one of these")
    return size


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """Where and with what the jobs of a batch run.

    Attributes:
        workers: processes at once, in [1, 1024]; ``None``: as many as there are cores, jobs, and room in memory for.
        memory: most that all processes may take together, such as ``12G`` or ``800M``; ``None`` is 80 % of what is free. A job
            waits until its estimate fits; on a cluster, Ray sees to that for each node.
        ray: address of a Ray cluster instead of processes here: ``auto``, ``local`` or HOST:PORT; needs ``saltlm[ray]``.

    Raises:
        InputError: a value is out of its range.
    """

    workers: int | None = None
    memory: str | None = None
    ray: str | None = None

    def __post_init__(self) -> None:
        if self.workers is not None and not 1 <= self.workers <= 1024:
            raise input_error(
                "workers", repr(self.workers), "a whole number in [1, 1024]", "leave it out to have one chosen"
            )
        if self.memory is not None:
            memory_bytes(self.memory)
        if self.ray is not None and not self.ray:
            raise input_error("ray", "an empty address", "auto, local or HOST:PORT", "name one")
