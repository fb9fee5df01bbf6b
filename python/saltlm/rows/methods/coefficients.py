"""Which anchors make a token, and with which coefficients: what a method finds before it looks at the source's rows.

Source models with one tokenizer have these in common for each target, so a batch keeps them from job to job.
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Callable, Iterator

import torch

from ...operators.ops import Support
from ..job import Job


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """Coefficients of M target tokens.

    Attributes:
        ids: int64 [M], target ids.
        support: of the M tokens among the anchors.
        coefficients: float64 [nnz].
        rank: int32 [M], ``None`` where nothing was solved; likewise ``residual`` float32 [M].
        status: uint8 [M], codes of :data:`~saltlm.operators.ops.STATUSES`; ``None`` where nothing was solved.
    """

    ids: torch.Tensor
    support: Support
    coefficients: torch.Tensor
    rank: torch.Tensor | None = None
    residual: torch.Tensor | None = None
    status: torch.Tensor | None = None

    def to(self, device: torch.device) -> Part:
        """On another device; ids stay."""
        support = dataclasses.replace(
            self.support, **{name: value.to(device) for name, value in vars(self.support).items()}
        )
        moved = {
            field.name: value.to(device) for field in dataclasses.fields(self)
            if field.name != "ids" and isinstance(value := getattr(self, field.name), torch.Tensor)
        }  # fmt: skip
        return dataclasses.replace(self, support=support, **moved)

    def split(self, most: int) -> Iterator[Part]:
        """The tokens in parts of so many at most."""
        if len(self.ids) <= most:
            yield self
            return
        support = self.support
        for begin in range(0, len(self.ids), most):
            rows = slice(begin, min(len(self.ids), begin + most))
            offsets = support.offsets[rows.start : rows.stop + 1]
            entries = slice(int(offsets[0]), int(offsets[-1]))
            solved = {
                name: None if (value := getattr(self, name)) is None else value[rows]
                for name in ("rank", "residual", "status")
            }
            yield Part(
                ids=self.ids[rows],
                support=Support(
                    offsets=offsets - offsets[0], ids=support.ids[entries], weights=support.weights[entries]
                ),
                coefficients=self.coefficients[entries],
                **solved,
            )

    @property
    def bytes(self) -> int:
        """What its tensors take."""
        tensors = [*vars(self).values(), *vars(self.support).values()]
        return sum(value.numel() * value.element_size() for value in tensors if isinstance(value, torch.Tensor))


def parts(job: Job, name: str, options: tuple[object, ...], make: Callable[[], Iterator[Part]]) -> Iterator[Part]:
    """The parts that ``make`` gives, or those that an earlier job of this process kept, bit for bit.

    Args:
        job: whose ``basis`` stands for the target's rows and vectors by their content.
        name: of the rule.
        options: of the rule.
        make: finds them anew, on the job's device.
    """
    shared = job.shared
    if shared is None or not shared.limit:
        yield from make()
        return
    ids = hashlib.blake2b(job.anchors.tobytes() + b"|" + job.new.tobytes(), digest_size=16).digest()
    key = ("coefficients", name, options, job.basis, len(job.anchors), ids, str(job.device))
    kept = shared.find(key)
    if kept is not None:
        for part in kept:
            yield part.to(job.device)
        return
    found: list[Part] | None = []
    size, seconds, source = 0, 0.0, make()
    while True:
        begun = time.perf_counter()
        part = next(source, None)
        seconds += time.perf_counter() - begun
        if part is None:
            break
        size += part.bytes
        if size > shared.limit:
            found = None
        if found is not None:
            shared.make_room(size)
            found.append(part.to(torch.device("cpu")))
        yield part
    if found is not None:
        shared.put(key, found, size, seconds)
