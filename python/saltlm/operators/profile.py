"""Processor time of the compiled CPU operators by stage."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from ..errors import BackendError
from .loading import backend

# In the order of the enum Stage in cuda_ext/csrc/cpu/kernels.h.
STAGES = (
    "directions made ready",
    "approximate product",
    "filter",
    "exact cosines of the survivors",
    "sort and weigh",
    "gather of the support's rows",
    "Gram matrix",
    "factorisation",
    "solve and refine",
    "residual",
    "apply",
)


@contextlib.contextmanager
def stage_times() -> Iterator[dict[str, float]]:
    """Profile the CPU operators that run in the body, on all threads.

    Yields:
        a dictionary that is filled when the body ends: seconds of processor time of each of :data:`STAGES`.

    Raises:
        BackendError: the compiled operators do not run on the CPU.
    """
    chosen = backend("cpu")
    if chosen.name != "compiled":
        raise BackendError(f"only compiled operators have a profile: {chosen.reason}")
    seconds: dict[str, float] = {}
    torch.ops.saltlm.cpu_stages(True)
    try:
        yield seconds
    finally:
        seconds.update(zip(STAGES, torch.ops.saltlm.cpu_stages(False), strict=True))
