"""Configuration of a batch: the number of workers, the memory limit and the Ray cluster."""

from __future__ import annotations

import dataclasses
import re

from ..config import RUN
from ..errors import input_error
from ..options import documented, is_whole_number, option

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


def memory_bytes(text: str) -> int:
    """Convert a size such as ``12G``, ``800M`` or ``16GiB`` to bytes.

    Raises:
        InputError: the text is not such a size, or the size is zero.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?I?)B?", text.strip(), re.IGNORECASE)
    size = int(float(match[1]) * _UNITS.get(match[2].upper(), 0)) if match else 0
    if size <= 0:
        raise input_error("memory", repr(text), "a size such as 12G, 800M or 16GiB", "give one of these")
    return size


@documented
@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """Where the jobs of a batch run, and how much of the machine they use.

    Raises:
        InputError: a value is out of its range.
    """

    workers: int | None = option(
        None,
        "Number of jobs that run at once, each in its own process, an integer in [1, 1024]. Default: the number of "
        "cores, or fewer if there are fewer jobs or too little memory.",
        group=RUN,
    )
    memory: str | None = option(
        None,
        "Memory limit of all processes together, such as 12G, 800M or 16GiB. A job starts when its estimated memory fits; on "
        "a Ray cluster, Ray checks the memory of each node instead. Default: 80 % of the free memory.",
        group=RUN,
        metavar="SIZE",
    )
    ray: str | None = option(
        None,
        "Address of the Ray cluster that runs the jobs: auto, local or HOST:PORT. Needs saltlm[ray]. "
        "Default: processes on this machine.",
        group=RUN,
        metavar="ADDRESS",
    )

    def __post_init__(self) -> None:
        if self.workers is not None and not is_whole_number(self.workers, 1, 1024):
            raise input_error(
                "workers", repr(self.workers), "a whole number in [1, 1024]", "leave it out to have one chosen"
            )
        if self.memory is not None:
            memory_bytes(self.memory)
        if self.ray is not None and not self.ray:
            raise input_error("ray", "an empty address", "auto, local or HOST:PORT", "name one")
