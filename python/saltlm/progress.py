"""Progress callbacks and the time of each stage."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

# Called with (units done, units in all); the second is 0 where it is not known.
Progress = Callable[[int, int], None]
# Called with (stage, units done, units in all).
StageProgress = Callable[[str, int, int], None]
# Called with the number of units that were done since the last call.
Increment = Callable[[int], None]


class Clock:
    """Seconds by stage; tells the progress callback when a stage starts."""

    def __init__(self, progress: StageProgress | None) -> None:
        self.seconds: dict[str, float] = {}
        self.progress: StageProgress = progress or (lambda stage, done, total: None)

    @contextlib.contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Time what happens inside."""
        self.progress(stage, 0, 0)
        start = time.perf_counter()
        yield
        self.seconds[stage] = round(time.perf_counter() - start, 3)
