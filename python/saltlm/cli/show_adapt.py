"""An adaptation as a person sees it: one line while it runs, a table when it is done."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Table

from ..adaptation.metrics import AdaptProgress
from ..adaptation.run import Adaptation
from .show import Output


@contextlib.contextmanager
def adapting(quiet: bool) -> Iterator[Callable[[AdaptProgress], None]]:
    """One line on stderr with loss, bits per byte, tokens a second and the time left; yields the callback."""
    if quiet:
        yield lambda report: None
        return
    columns = (
        SpinnerColumn(finished_text=" "), TextColumn("{task.description}"), BarColumn(bar_width=20),
        TextColumn("{task.fields[state]}"),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task("reading model and text", total=None, state="")

        def report(found: AdaptProgress) -> None:
            words = escape(progress_words(found))
            bars.update(task, description=found.phase, completed=found.step, total=found.steps, state=words)

        yield report


def progress_words(found: AdaptProgress) -> str:
    """The line's text behind the bar."""
    parts = [f"{found.step:,} / {found.steps:,}"]
    if found.loss is not None:
        parts.append(f"loss {found.loss:.3f}")
    if found.bits_per_byte is not None:
        parts.append(f"{found.bits_per_byte:.3f} bits/byte")
    for name, value in (("held-out", found.heldout), ("source", found.source)):
        if value is not None:
            parts.append(f"{name} {value:.3f}")
    if found.tokens_per_second is not None:
        parts.append(f"{found.tokens_per_second:,.0f} tokens/s")
    if found.seconds_left is not None:
        minutes, seconds = divmod(round(found.seconds_left), 60)
        parts.append(f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d} left")
    return "  ".join(parts)


def adaptation(done: Adaptation) -> None:
    """Held-out bits per byte by step, and what was trained on."""
    console = Output()
    table = Table(title=f"{done.steps:,} steps, {done.tokens:,} tokens, {done.bytes:,} bytes of text")
    table.add_column("step", justify="right")
    table.add_column("held-out bits per byte", justify="right")
    source = dict(done.source)
    if source:
        table.add_column("source language", justify="right")
    for step, value in done.heldout:
        table.add_row(f"{step:,}", f"{value:.3f}", *([f"{source[step]:.3f}"] if step in source else []))
    console.print(table)
    if done.kept_step != done.steps:
        console.print(f"the weights are those of step {done.kept_step:,}, the best", highlight=False)
    console.print(f"written to {escape(str(done.out))}", highlight=False)
