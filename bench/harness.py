"""Shared by all benchmarks: timing, memory, machine and versions, and the report that is added to RESULTS.md."""

import contextlib
import dataclasses
import datetime
import importlib.metadata
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

RESULTS = Path(__file__).with_name("RESULTS.md")
# Read before the benchmark itself causes load. A busy machine slows the two sides of a comparison by different factors: waiting
# for a thread that was not scheduled made a plain torch loop ten times as slow, and compiled operators a third slower.
LOAD = os.getloadavg()[0]


@dataclasses.dataclass(frozen=True)
class Timing:
    """Wall-clock seconds of repeated runs of one job in this process.

    Attributes:
        seconds: one time a run, in the order of the runs.
    """

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median of the times, in seconds."""
        return statistics.median(self.seconds)

    def __str__(self) -> str:
        return f"{figure(self.median)} s ({figure(min(self.seconds))}-{figure(max(self.seconds))}, {len(self.seconds)} runs)"


def timed(job: Callable[[], object], runs: int = 7, warm: int = 1) -> Timing:
    """Time ``job``.

    Args:
        job: what is timed; its result is discarded.
        runs: number of timed runs, at least 1.
        warm: number of runs before them that are not timed.
    """
    for _ in range(warm):
        job()
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        job()
        seconds.append(time.perf_counter() - start)
    return Timing(tuple(seconds))


def figure(value: float) -> str:
    """The value with three significant figures, or as a whole number from 1000 on."""
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def peak_megabytes() -> float:
    """Peak resident memory of this process since it started or since :func:`forget_peak`, in MB."""
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def forget_peak() -> float:
    """Reset the peak to the current resident memory, where the system supports it (Linux).

    Returns:
        The peak after the reset, in MB.
    """
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return peak_megabytes()


def machine() -> str:
    """Processor, number of usable cores, and memory of this machine."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        models = [
            line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        name = models[0] if models else name
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return f"{name}, {len(os.sched_getaffinity(0))} cores, {memory:.0f} GB"


def versions() -> str:
    """Versions of Python and of the packages that affect the figures."""
    parts = [f"Python {platform.python_version()}"]
    for name in ("torch", "numpy", "tokenizers", "transformers"):
        parts.append(f"{name} {importlib.metadata.version(name)}")
    return ", ".join(parts)


def commit() -> str:
    """Short id of the checked-out commit, with a mark if tracked files differ from it."""
    folder = Path(__file__).parent

    def git(*command: str) -> str:
        done = subprocess.run(["git", *command], cwd=folder, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    # RESULTS.md changes with every run, and does not affect the code.
    dirty = git("status", "--porcelain", "--untracked-files=no", "--", ":!RESULTS.md")
    return (git("rev-parse", "--short", "HEAD") or "unknown") + (" with changes" if dirty else "")


def record(
    title: str,
    rows: Sequence[Sequence[str]],
    command: str,
    notes: Sequence[str] = (),
    *,
    headings: Sequence[str] = ("what", "figure"),
    timed: bool = True,
) -> None:
    """Print the figures of a run as a section of Markdown, and append the section to RESULTS.md.

    Args:
        title: name of the benchmark; the date is added.
        rows: table cells; each row has one cell for each heading.
        command: the command line that reproduces the figures.
        notes: sentences below the table, such as bars, lost cases and what a figure excludes.
        headings: column headings of the table.
        timed: whether the figures are times, which are not valid on a busy machine.
    """
    lines = [
        "",
        f"## {title}, {datetime.date.today().isoformat()}",
        "",
        f"Commit {commit()}; {machine()}, load {LOAD:.1f} before; {versions()}; `{command}`.",
        "",
        f"| {' | '.join(headings)} |",
        "| --- " * len(headings) + "|",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]
    notes = list(notes)
    if timed and LOAD > len(os.sched_getaffinity(0)) / 2:
        notes.append("**The machine was busy: do not quote these figures.**")
    if notes:
        lines += ["", " ".join(notes)]
    text = "\n".join(lines) + "\n"
    sys.stdout.write(text)
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(text)


@contextlib.contextmanager
def fetching(what: str):
    """Show a progress bar while an input is downloaded; yields the callback (bytes done, bytes in all)."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(what, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)
