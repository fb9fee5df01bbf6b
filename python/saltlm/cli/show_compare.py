"""Progress line and result table of a comparison."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from ..comparison.chart import in_order
from ..comparison.config import ORIGINAL
from ..progress import StageProgress
from .markup import escape
from .show import Output

if TYPE_CHECKING:
    from ..comparison.run import Comparison

NOT_REACHED = "not reached"


@contextlib.contextmanager
def comparing(quiet: bool) -> Iterator[StageProgress]:
    """Show one progress line on stderr.

    Args:
        quiet: show nothing.

    Yields:
        The callback; see :data:`~saltlm.progress.StageProgress`.
    """
    if quiet:
        yield lambda stage, done, total: None
        return
    columns = (SpinnerColumn(finished_text=" "), TextColumn("{task.description}"), BarColumn(bar_width=20))
    with Progress(*columns, MofNCompleteColumn(), TimeElapsedColumn(), console=Console(stderr=True)) as bars:
        task = bars.add_task("", total=None)
        yield lambda stage, done, total: bars.update(
            task, description=escape(stage), completed=done, total=total or None
        )


def comparison(done: Comparison) -> None:
    """Print the methods from best to worst, their notes, and the rank correlations between measures."""
    console = Output()
    content = done.content
    console.print(_table(content))
    reached = f"{content['level']:.3f}"
    console.print(
        f"to level: steps until {reached} bits per byte, the level of the original model before training",
        highlight=False,
    )
    lengths, sizes = content["seq_lengths"], content["training_tokens_per_byte"]
    console.print(
        f"{ORIGINAL}: the source model with its own tokenizer, which needs"
        f" {sizes['original'] / sizes['new']:.2f} times the tokens; its blocks have {lengths['original']} tokens instead of"
        f" {lengths['new']}, so that a step trains on as many bytes",
        highlight=False,
    )
    for entry in content["methods"]:
        if entry["diverged"]:
            seeds = ", ".join(map(str, entry["diverged"]))
            console.print(
                f"[yellow]note[/yellow]: {escape(entry['method'])} diverged with seed {seeds}", highlight=False
            )
    for entry in content["methods"]:
        if entry["tuning"]:
            console.print(f"{escape(entry['method'])}: chose {escape(chosen(entry['tuning']))}", highlight=False)
    for note, labels in _notes(content["results"]).items():
        console.print(f"[yellow]note[/yellow]: {escape(', '.join(labels))}: {escape(note)}", highlight=False)
    correlations = [entry for entry in content["rank_correlations"] if entry["rho"] is not None]
    if correlations:
        words = ", ".join(
            f"{e['first']} and {e['second']} {e['rho']:+.2f} ({e['methods']} methods)" for e in correlations
        )
        console.print(f"rank correlations: {escape(words)}", highlight=False)
    if done.best is not None:
        others = [name for name in content["ties"] if name != done.best]
        tied = f"; it ties with {', '.join(others)}" if others else ""
        console.print(f"best: {escape(done.best + tied)}", highlight=False)
    console.print(f"written to {escape(str(done.out))}", highlight=False, soft_wrap=True)


def _notes(results: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Note of an evaluation -> the methods that have it; all methods but the original are written as the new tokenizer."""
    methods: dict[str, list[str]] = {}
    for run in results:
        for note in run["notes"]:
            if run["method"] not in methods.setdefault(note, []):
                methods[note].append(run["method"])
    transferred = len({run["method"] for run in results}) - 1
    return {
        note: ["the new tokenizer"] if len(names) == transferred and ORIGINAL not in names else names
        for note, names in methods.items()
    }


def _table(content: Mapping[str, Any]) -> Table:
    """Table with a row for each method."""
    seeds = len(content["seeds"])
    table = Table(
        title=f"held-out bits per byte, probe of {content['probe_steps']:,} steps on"
        f" {'every weight' if content['probe'] == 'all' else 'the embeddings'}, {seeds} seed{'s' if seeds > 1 else ''}"
    )
    checked = any(entry["self_check"] for entry in content["methods"])
    source = any(entry["source"] for entry in content["methods"])
    table.add_column("method", overflow="fold", min_width=12)
    headings = ["step 0", f"step {content['probe_steps']:,}", "less the best", "to level"]
    for heading in [*headings, *["source language"] * source, *["self-\ncheck"] * checked]:
        table.add_column(heading, justify="right")
    for entry in in_order(content["methods"]):
        level = "-" if entry["method"] == ORIGINAL else steps_words(entry["steps_to_original"])
        cells = [_mean(entry["start"]), _mean(entry["end"]), _difference(entry), level]
        if source:
            change = entry["source"]
            cells.append(f"{change['before']['mean']:.3f} ->\n{change['after']['mean']:.3f}" if change else "-")
        if checked:
            cells.append(f"{entry['self_check']['score']:.2f}" if entry["self_check"] else "-")
        table.add_row(escape(entry["method"]), *cells)
    return table


def chosen(tuning: Mapping[str, Any]) -> str:
    """The options that tuning chose, in the order of the trials."""
    changed = [f"{name.replace('_', '-')} {value}" for name, value in tuning.items() if value not in (None, False)]
    return ", ".join(changed) or "the defaults"


def steps_words(steps: float | None) -> str:
    """A number of steps, or :data:`NOT_REACHED` for ``None``."""
    return NOT_REACHED if steps is None else f"{steps:.0f}"


def _mean(figure: Mapping[str, Any] | None) -> str:
    """Mean and spread over the seeds."""
    if figure is None:
        return "diverged"
    return f"{figure['mean']:.3f}" + (f"\n±{figure['spread']:.3f}" if figure["spread"] is not None else "")


def _difference(entry: Mapping[str, Any]) -> str:
    """Difference to the best method, with its interval."""
    difference = entry["difference"]
    if difference is None:
        return "-" if entry["end"] is None else "best"
    ends = "" if difference["low"] is None else f"\n{difference['low']:+.3f} to {difference['high']:+.3f}"
    return f"{difference['estimate']:+.3f}{' tie' if difference['tie'] else ''}{ends}"
