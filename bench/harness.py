"""What every bench shares: timing, the machine and versions, and keeping the figures in RESULTS.md."""

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
# Before the bench itself makes load. A busy machine slows the two sides of a comparison unequally: waiting for a thread that
# is not scheduled cost a plain torch loop ten times its time, compiled operators a third.
LOAD = os.getloadavg()[0]


@dataclasses.dataclass(frozen=True)
class Timing:
    """Wall-clock seconds of repeated runs of one job in this process."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle one."""
        return statistics.median(self.seconds)

    def __str__(self) -> str:
        return f"{figure(self.median)} s ({figure(min(self.seconds))}-{figure(max(self.seconds))}, {len(self.seconds)} runs)"


def timed(job: Callable[[], object], runs: int = 7, warm: int = 1) -> Timing:
    """Time ``job``: ``warm`` runs that do not count, then ``runs`` that do."""
    for _ in range(warm):
        job()
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        job()
        seconds.append(time.perf_counter() - start)
    return Timing(tuple(seconds))


def figure(value: float) -> str:
    """Three significant figures."""
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def peak_megabytes() -> float:
    """Largest resident size this process has had since it started or since :func:`forget_peak`, in MB."""
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def forget_peak() -> float:
    """Set the peak back to the present resident size where the system can (Linux); returns the peak from here on, in MB."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return peak_megabytes()


def machine() -> str:
    """Processor, cores that may be used, memory."""
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
    """Interpreter and the packages that matter to the figures."""
    found = [f"Python {platform.python_version()}"]
    for name in ("torch", "numpy", "tokenizers", "transformers"):
        found.append(f"{name} {importlib.metadata.version(name)}")
    return ", ".join(found)


def commit() -> str:
    """Short commit of this checkout, marked where files differ from it."""
    here = Path(__file__).parent

    def git(*command: str) -> str:
        done = subprocess.run(["git", *command], cwd=here, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    # RESULTS.md changes with every run and says nothing of the code.
    dirty = git("status", "--porcelain", "--untracked-files=no", "--", ":!RESULTS.md")
    return (git("rev-parse", "--short", "HEAD") or "unknown") + (" with changes" if dirty else "")


def record(
    title: str, rows: Sequence[Sequence[str]], command: str, notes: Sequence[str] = (), *,
    headings: Sequence[str] = ("what", "figure"), timed: bool = True,
) -> None:  # fmt: skip
    """Print a run's figures and append them to RESULTS.md.

    Args:
        title: name of the bench.
        rows: cells of the table: what was measured, and the figure or figures.
        command: what makes the figures again.
        notes: sentences below the table: bars, cases lost, what a figure leaves out.
        headings: of the table's columns.
        timed: whether figures are times, which a busy machine spoils.
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
    """A bar for the bytes of an input; yields the callback (done bytes, all bytes)."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(what, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)
