"""Progress line and result table of an adaptation."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Table

from ..adaptation.metrics import AdaptProgress
from ..adaptation.run import Adaptation
from .markup import escape
from .show import Output


@contextlib.contextmanager
def adapting(quiet: bool) -> Iterator[Callable[[AdaptProgress], None]]:
    """Show one line on stderr with loss, bits per byte, tokens per second and remaining time.

    Args:
        quiet: show nothing.

    Yields:
        The progress callback.
    """
    if quiet:
        yield lambda report: None
        return
    columns = (
        SpinnerColumn(finished_text=" "),
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[state]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task("reading model and text", total=None, state="")

        def report(state: AdaptProgress) -> None:
            text = escape(progress_words(state))
            bars.update(task, description=state.phase, completed=state.step, total=state.steps, state=text)

        yield report


def progress_words(state: AdaptProgress) -> str:
    """Text of a progress line: step, loss, bits per byte, tokens per second and remaining time."""
    parts = [f"{state.step:,} / {state.steps:,}"]
    if state.loss is not None:
        parts.append(f"loss {state.loss:.3f}")
    if state.bits_per_byte is not None:
        parts.append(f"{state.bits_per_byte:.3f} bits/byte")
    for name, value in (("held-out", state.heldout), ("source", state.source)):
        if value is not None:
            parts.append(f"{name} {value:.3f}")
    if state.tokens_per_second is not None:
        parts.append(f"{state.tokens_per_second:,.0f} tokens/s")
    if state.seconds_left is not None:
        minutes, seconds = divmod(round(state.seconds_left), 60)
        parts.append(f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d} left")
    return "  ".join(parts)


def adaptation(done: Adaptation) -> None:
    """Print the held-out bits per byte of each evaluated step, and the amount of training text."""
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
        console.print(f"the weights are those of step {done.kept_step:,}, the best step", highlight=False)
    console.print(f"written to {escape(str(done.out))}", highlight=False)
