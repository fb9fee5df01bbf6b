"""Output of the demo: the progress of its steps on stderr, the result on stdout."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from saltlm.cli.show import Output

# Key of each start that is adapted -> its name in the tables.
ADAPTED = {"auto": "default", "salt": "SALT"}
# Called as report(units done, total units, detail); the total is 0 where it is not known.
Report = Callable[..., None]


class Steps:
    """Shows one step after the other: a progress bar while it runs, a line with its seconds when it is done."""

    def __init__(self) -> None:
        """Write to stderr."""
        self.console = Console(stderr=True, highlight=False)

    @contextlib.contextmanager
    def step(self, title: str) -> Iterator[Report]:
        """Show a step; yields the function that reports its progress."""
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[detail]}"))
        start = time.perf_counter()
        quiet = not self.console.is_terminal  # a log file gets only the lines of finished steps
        with Progress(*columns, TimeElapsedColumn(), console=self.console, transient=True, disable=quiet) as bars:
            task = bars.add_task(escape(title), total=None, detail="")

            def report(done: int, total: int, detail: str = "") -> None:
                bars.update(task, completed=done, total=total or None, detail=escape(detail))

            yield report
        seconds = time.perf_counter() - start
        if seconds >= 1:
            self.console.print(f"  {escape(title)}: {seconds:.0f} s")

    @contextlib.contextmanager
    def fetch(self, name: str) -> Iterator[Callable[[int, int], None]]:
        """Show a step that fetches an input; yields its progress callback (bytes done, total bytes)."""
        with self.step(name) as report:
            yield lambda done, total: report(done, total, f"{done / 1e6:.0f} of {total / 1e6:.0f} MB")

    def note(self, text: str) -> None:
        """Print one line."""
        self.console.print(escape(text))


def show(figures: Mapping[str, Any], folder: Path, prompts: Sequence[str]) -> None:
    """Print the result: tables, continuations, and commands to try next.

    Args:
        figures: result of :func:`saltlm_demo.run.run`.
        folder: output folder of the demo.
        prompts: beginnings of the continuations.
    """
    console = Output(highlight=False)
    console.print()
    console.print(_starts(figures))
    console.print("Shared tokens keep their rows; the starts differ in the new ones. Lower is better. No training yet.")
    console.print()
    console.print(_outcomes(figures))
    support = figures["support"]
    if support:
        console.print(
            f"Neighbours of a solved token: smallest {support['min']:.0f}, median {support['median']:.0f}, 95 % up to"
            f" {support['p95']:.0f}, largest {support['max']:.0f} of {figures['anchors']:,} anchors"
        )
    for row in figures["rows"]:
        for note in row["notes"]:
            console.print(escape(f"note: {note}"))
    for warning in figures["warnings"]:
        console.print(escape(f"note: {warning}"))
    console.print()
    console.print(_continuations(figures, prompts))
    console.print()
    console.print(_adaptation(figures))
    for key, name in ADAPTED.items():
        step = _first_below(figures, key)
        console.print(
            f"Original model, own tokenizer, no training: {figures['rows'][0]['bits_per_byte']:.3f};"
            f" {name}: {'passed by step ' + str(step) if step else 'not passed'}."
        )
    console.print(f"The curve: [bold]{escape(_relative(str(folder / 'curve.png')))}[/bold]")
    python, command = _relative(sys.executable), Path(sys.executable).with_name("saltlm")
    saltlm = _relative(str(command)) if command.is_file() else f"{python} -m saltlm"
    model = _relative(str(folder / "model"))
    adapted = _relative(str(folder / "adapted"))
    console.print(
        f"\nThe models are in [bold]{escape(model)}[/bold] and [bold]{escape(adapted)}[/bold];"
        f" the texts are in [bold]{escape(_relative(str(folder)))}[/bold]. Next, for example:\n"
    )
    for line in (
        f"{saltlm} evaluate {model} {adapted} --text {_relative(str(folder / 'heldout.txt'))}",
        f"{saltlm} transfer --help",
        f"{python} -c \"from transformers import pipeline; print(pipeline('text-generation', '{adapted}')('Suomi on'))\"",
    ):
        console.print(f"  {escape(line)}", soft_wrap=True)


def _starts(figures: Mapping[str, Any]) -> Table:
    """Table of the starts with their bits per byte."""
    text = figures["text"]
    table = Table(title=f"Finnish, {text['bytes']:,} held-out bytes of {escape(text['origin'])}", title_justify="left")
    table.add_column("start", no_wrap=True)
    # Short names, so that the table fits into 80 columns.
    for name in ("bits per byte", "tokens per byte", "English bits per byte", "seconds to make", "seconds to score"):
        table.add_column(name, justify="right")
    for row in figures["rows"]:
        english, seconds = row["english_bits_per_byte"], row["transfer_seconds"]
        table.add_row(
            row["name"],
            f"{row['bits_per_byte']:.3f}",
            f"{row['tokens_per_byte']:.3f}",
            "-" if english is None else f"{english:.3f}",
            "-" if seconds is None else f"{seconds:.1f}",
            f"{row['evaluate_seconds']:.1f}",
        )
    return table


def _outcomes(figures: Mapping[str, Any]) -> Table:
    """Table of SALT's row origins and solver statuses."""
    table = Table(title="Where SALT's rows come from, and how the regressions went", title_justify="left")
    table.add_column("origin or status")
    table.add_column("rows", justify="right")
    for name, count in figures["counts"].items():
        if count:
            table.add_row(name, f"{count:,}")
    table.add_section()
    for entry in figures["statuses"]:
        if entry["count"] and entry["name"] != "not_solved":
            table.add_row(entry["name"], f"{entry['count']:,}")
    return table


def _continuations(figures: Mapping[str, Any], prompts: Sequence[str]) -> Table:
    """Table of the continuations of each start."""
    table = Table(title="Continuations before any training (drawn, one seed)", title_justify="left", show_lines=True)
    table.add_column("start", max_width=18)
    for prompt in prompts:
        table.add_column(escape(prompt), overflow="fold")
    for row in figures["rows"]:
        table.add_row(row["name"], *(escape(" ".join(text.split())) for text in row["continuations"]))
    return table


def _adaptation(figures: Mapping[str, Any]) -> Table:
    """Table of the bits per byte during the training: the best start, and SALT."""
    runs = {name: figures["adaptations"][key] for key, name in ADAPTED.items()}
    first = next(iter(runs.values()))
    minutes = ", ".join(f"{name} in {run['seconds'] / 60:.1f} minutes" for name, run in runs.items())
    title = f"Adapted, {first['phases']}, {first['bytes']:,} bytes of Finnish: {minutes}"
    table = Table(title=escape(title), title_justify="left")
    table.add_column("step", justify="right")
    for name in runs:
        table.add_column(f"{name}: bits per byte", justify="right")
        table.add_column("English", justify="right")
    for step in sorted({step for run in runs.values() for step, _ in run["heldout"]}):
        cells = []
        for run in runs.values():
            for values in (run["heldout"], run["source"]):
                value = dict(map(tuple, values)).get(step)
                cells.append("-" if value is None else f"{value:.3f}")
        table.add_row(f"{step}", *cells)
    return table


def _first_below(figures: Mapping[str, Any], key: str) -> int | None:
    """First evaluated step at which an adapted start has fewer bits per byte than the original; ``None`` for no step."""
    original = figures["rows"][0]["bits_per_byte"]
    return next((step for step, value in figures["adaptations"][key]["heldout"] if value < original), None)


def _relative(path: str) -> str:
    """The path relative to the working directory, unless it lies outside."""
    relative = os.path.relpath(path)
    return path if relative.startswith("..") else relative
