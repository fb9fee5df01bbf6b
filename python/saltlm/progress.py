"""Types of the progress callbacks, and a clock that measures the seconds of each stage."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

# Called with (units done, total units); the total is 0 where it is not known.
Progress = Callable[[int, int], None]
# Called with (stage, units done, total units).
StageProgress = Callable[[str, int, int], None]
# Called with the number of units that were done since the last call.
Increment = Callable[[int], None]


class Clock:
    """Measures the seconds of each stage, and calls the progress callback when a stage starts."""

    def __init__(self, progress: StageProgress | None) -> None:
        """Create a clock without measurements.

        Args:
            progress: called with (stage, 0, 0) at the start of each stage; ``None`` for no callback.
        """
        self.seconds: dict[str, float] = {}
        self.progress: StageProgress = progress or (lambda stage, done, total: None)

    @contextlib.contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Measure the seconds of the ``with`` block and store them under ``stage``, rounded to milliseconds."""
        self.progress(stage, 0, 0)
        start = time.perf_counter()
        yield
        self.seconds[stage] = round(time.perf_counter() - start, 3)
