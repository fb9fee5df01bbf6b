"""The anchors that build each token and their coefficients: the part of a method that does not read the source's rows.

Source models with one tokenizer have the same coefficients for a target, so a batch keeps them from job to job.
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

from ...operators.ops import Solution, Support
from ..job import Job

Tensors = TypeVar("Tensors", Support, Solution)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenCoefficients:
    """Coefficients of M target tokens.

    Attributes:
        ids: int64 [M], target ids.
        support: of the M tokens among the anchors.
        solution: least squares on the supports; ``None`` where the weights of the support are the coefficients.
    """

    ids: torch.Tensor
    support: Support
    solution: Solution | None = None

    @property
    def values(self) -> torch.Tensor:
        """Float64 [nnz], the coefficients, in the order of the support's ids."""
        return self.support.weights if self.solution is None else self.solution.coefficients

    def to(self, device: torch.device) -> TokenCoefficients:
        """The same on another device; the ids stay on the CPU."""
        solution = None if self.solution is None else _to_device(self.solution, device)
        return dataclasses.replace(self, support=_to_device(self.support, device), solution=solution)

    def split(self, max_rows: int) -> Iterator[TokenCoefficients]:
        """The tokens in parts of at most ``max_rows``."""
        if len(self.ids) <= max_rows:
            yield self
            return
        for begin in range(0, len(self.ids), max_rows):
            rows = slice(begin, min(len(self.ids), begin + max_rows))
            offsets = self.support.offsets[rows.start : rows.stop + 1]
            entries = slice(int(offsets[0]), int(offsets[-1]))
            solution = self.solution
            if solution is not None:
                solution = Solution(
                    coefficients=solution.coefficients[entries],
                    rank=solution.rank[rows],
                    residual=solution.residual[rows],
                    status=solution.status[rows],
                )
            support = Support(
                offsets=offsets - offsets[0], ids=self.support.ids[entries], weights=self.support.weights[entries]
            )
            yield TokenCoefficients(ids=self.ids[rows], support=support, solution=solution)

    @property
    def bytes(self) -> int:
        """Memory of the tensors."""
        tensors = [self.ids, *vars(self.support).values()]
        if self.solution is not None:
            tensors += vars(self.solution).values()
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _to_device(tensors: Tensors, device: torch.device) -> Tensors:
    return dataclasses.replace(tensors, **{name: value.to(device) for name, value in vars(tensors).items()})


def cached(
    job: Job, rule: str, options: tuple[object, ...], compute: Callable[[], Iterator[TokenCoefficients]]
) -> Iterator[TokenCoefficients]:
    """The coefficients that an earlier job of this process has kept; without such a job they are computed, and kept.

    Kept coefficients are bit for bit those that would be computed.

    Args:
        job: its ``basis`` identifies the content of the target's rows and vectors.
        rule: name of the rule.
        options: of the rule.
        compute: yields the coefficients on the job's device.
    """
    shared = job.shared
    if shared is None or not shared.limit:
        yield from compute()
        return
    ids = hashlib.blake2b(job.anchors.tobytes() + b"|" + job.new.tobytes(), digest_size=16).digest()
    key = ("coefficients", rule, options, job.basis, len(job.anchors), ids, str(job.device))
    stored = shared.find(key)
    if stored is not None:
        for part in stored:
            yield part.to(job.device)
        return
    kept: list[TokenCoefficients] | None = []  # None once they are too large
    size, seconds, parts = 0, 0.0, compute()
    while True:
        begin = time.perf_counter()
        part = next(parts, None)
        seconds += time.perf_counter() - begin
        if part is None:
            break
        size += part.bytes
        if size > shared.limit:
            kept = None
        if kept is not None:
            shared.make_room(size)
            kept.append(part.to(torch.device("cpu")))
        yield part
    if kept is not None:
        shared.put(key, kept, size, seconds)
