"""Results as a person reads them: tables on stdout, progress on stderr."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

if TYPE_CHECKING:
    from ..evaluation.harness.tasks import TaskScore
    from ..evaluation.side_by_side import SideBySide
    from ..pipeline import Transfer

Report = Callable[[str, int, int], None]
ORIGIN_WORDS = {
    "copied": "shared with the source: its row, bit for bit",
    "role": "special token: the source's row of the same role",
    "solved": "regression on its neighbours",
    "composed": "made from source rows",
    "drawn": "random",
    "padding": "no token has this id",
}


class Output(Console):
    """Standard output; a reader that leaves early is the command line's to handle, not rich's, which would exit with 1."""

    def on_broken_pipe(self) -> None:
        """Called while the error is handled."""
        raise


@contextlib.contextmanager
def progress(quiet: bool) -> Iterator[Report]:
    """A bar a stage on stderr; yields a callback (stage, done, total), total 0 where it is not known."""
    if quiet:
        yield lambda stage, done, total: None
        return
    columns = (
        SpinnerColumn(finished_text=" "),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[count]}"),
    )
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as bars:
        tasks: dict[str, TaskID] = {}

        def report(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                for task in bars.tasks:
                    bars.update(task.id, total=task.total or 1, completed=task.total or 1)
                tasks[stage] = bars.add_task(escape(stage), total=None, count="")
            count = f"{done:,} / {total:,}" if total else ""
            bars.update(tasks[stage], completed=done, total=total or None, count=count)

        yield report
        for task in bars.tasks:
            bars.update(task.id, total=task.total or 1, completed=task.total or 1)


def transfer(done: Transfer, *, dry_run: bool) -> None:
    """What a transfer did, or would do."""
    console = Output()
    summary = done.summary
    rows = len(done.origin)
    if dry_run:
        console.print(
            f"{rows:,} rows: {summary['new_tokens']:,} new tokens to build from {summary['anchors']:,} anchors;"
            " nothing was written"
        )
    console.print(_rows(summary, rows, dry_run))
    if summary["expansion"]:
        grown = summary["expansion"]
        console.print(
            f"added to the source's tokenizer: {grown['added']:,} tokens; {grown['left_out']:,} left out, which it could"
            " never put into a text"
        )
    if summary["support"]:
        support = summary["support"]
        whole = f" of {summary['anchors']:,} anchors" if support["of"] == "anchors" else ""
        console.print(
            f"{support['of']} that a built token is made from: median {support['median']:.0f},"
            f" 95 % up to {support['p95']:.0f}, largest {support['max']}{whole}"
        )
    if outcomes := [e for e in summary["statuses"] if e["count"] and e["name"] != "not_solved"]:
        console.print("outcomes: " + ", ".join(f"{entry['name']} {entry['count']:,}" for entry in outcomes))
    if summary["heldout"]:
        held = summary["heldout"]
        console.print(
            f"self-check on {held['tokens']} hidden shared tokens: score {held['score']:.2f}; relative error"
            f" {held['relative_error']:.2f}, cosine {held['cosine']:.2f}, true row at place {held['rank']} of"
            f" {held['candidates']:,} (medians)"
        )
    if summary["tuning"]:
        tuning = summary["tuning"]
        chosen = ", ".join(
            f"{name} {'default' if value is None else value}" for name, value in tuning["choice"].items()
        )
        by = "on them" if tuning["text"] is None else f"by bits per byte on {tuning['text']['bytes']:,} bytes of text"
        console.print(f"tuned {by}: {chosen}, the best of {len(tuning['trials'])} trials")
    elif summary["method"] == "auto" and summary.get("blend") == _usual_blend():
        weight, length = summary["blend"].values()
        console.print(
            f"blend: weight {weight:g}, length {length:g}, the best on average; --tune-text FILE chooses for this language"
        )
    if done.out is not None:
        # One line, however long: it is there to be copied.
        console.print(f"written to {escape(str(done.out))}", highlight=False, soft_wrap=True)


def _usual_blend() -> dict[str, object]:
    """Weight and length of the default that nobody and nothing has chosen."""
    from ..config import TransferConfig
    from ..rows.methods.blend import as_blend

    usual = as_blend(TransferConfig())
    return {"weight": usual.blend_weight, "length": usual.blend_length}


def _rows(summary: Mapping[str, Any], rows: int, dry_run: bool) -> Table:
    """Where the rows come from, or before they are built what is shared."""
    table = Table(title=f"{rows:,} rows by {summary['method']}" if not dry_run else "shared tokens")
    if dry_run:
        table.add_column("match")
        table.add_column("tokens", justify="right")
        for name, count in summary["overlap"].items():
            table.add_row(name, f"{count:,}")
    else:
        table.add_column("origin")
        table.add_column("rows", justify="right")
        table.add_column("share", justify="right")
        table.add_column("what it is")
        for name, count in summary["counts"].items():
            if count:
                table.add_row(name, f"{count:,}", f"{count / rows:.1%}", ORIGIN_WORDS[name])
    return table


def evaluations(found: SideBySide) -> None:
    """Bits per byte of one model or several, who is better, continuations and tasks."""
    from .show_evaluation import evaluation_table

    console = Output()
    short = labels(list(found.models))
    texts = {short[name]: measured.text for name, measured in found.models.items()}
    kept = {short[name]: measured.retention for name, measured in found.models.items() if measured.retention}
    console.print(evaluation_table(texts, found.intervals.renamed(short), kept))
    for title, intervals in (("", found.intervals), ("source text: ", found.retention)):
        for pair in intervals.renamed(short).comparisons:
            d = pair.difference
            better = "a tie" if pair.tie else f"{pair.first if d.estimate < 0 else pair.second} is better"
            console.print(
                f"{title}{pair.first} less {pair.second}: {d.estimate:+.3f} bits per byte"
                f" ({d.low:+.3f} to {d.high:+.3f}): {better}",
                highlight=False,
                markup=False,
            )
    for name, result in texts.items():
        if held := result.heldout:
            console.print(
                f"{escape(name)}: held-out shared tokens: relative error {held['relative_error']:.2f}, cosine"
                f" {held['cosine']:.2f}, rank {held['rank']} of {held['candidates']:,} (medians of {held['tokens']})",
                highlight=False,
            )
    _tasks(console, {short[name]: measured.tasks for name, measured in found.models.items()})
    _samples(console, {short[name]: measured.samples for name, measured in found.models.items()})


def labels(names: list[str]) -> dict[str, str]:
    """Name -> the shortest end of its path that no other name shares; a name alone stays as it is."""
    if len(names) == 1:
        return {names[0]: names[0]}
    parts = {name: Path(name).parts or (name,) for name in names}
    for length in range(1, max(map(len, parts.values()), default=0)):
        short = {name: "/".join(own[-length:]) for name, own in parts.items()}
        if len(set(short.values())) == len(names):
            return short
    return {name: name for name in names}


def _tasks(console: Console, found: Mapping[str, Mapping[str, TaskScore]]) -> None:
    tasks = list(next(iter(found.values())))
    if not tasks:
        return
    table = Table()
    for heading in ("task", "metric", "model"):
        table.add_column(heading, overflow="fold")
    for heading in ("score", "± standard error", "items", "shots"):
        table.add_column(heading, justify="right")
    for task in tasks:
        for metric in next(iter(found.values()))[task].metrics:
            for name, scores in found.items():
                score = scores[task]
                value = score.metrics[metric]
                numbers = ("-" if value[key] is None else f"{value[key]:.3f}" for key in ("value", "stderr"))
                items = f"{score.items:,}" if score.items else "-"
                table.add_row(escape(task), escape(metric), escape(name), *numbers, items, str(score.shots))
    console.print(table)


def _samples(console: Console, found: Mapping[str, Sequence[tuple[str, str]]]) -> None:
    for index, (prompt, _) in enumerate(next(iter(found.values()))):
        console.print(f"\n[bold]{escape(prompt)}[/bold]", highlight=False)
        for name, samples in found.items():
            label = f"{escape(name)}: " if len(found) > 1 else ""
            console.print(f"  {label}{escape(' '.join(samples[index][1].split()))}", highlight=False)


def status(found: Mapping[str, Any]) -> None:
    """What runs here and why."""
    console = Output()
    table = Table(title="saltlm status", show_header=False)
    table.add_column()
    table.add_column()
    for name, version in found["versions"].items():
        table.add_row(name, str(version or "not installed"))
    table.add_section()
    for device, entry in found["operators"].items():
        table.add_row(f"operators on {device}", escape(f"{entry['name']}: {entry['reason']}"))
    table.add_section()
    table.add_row("devices", escape(", ".join(found["devices"])))
    table.add_row("threads", str(found["threads"]))
    table.add_row("platform", found["platform"])
    console.print(table)


def methods(described: Sequence[Mapping[str, Any]]) -> None:
    """Every method: what the row of a new token is, what the method needs, its options and its source."""
    table = Table(title="saltlm methods", show_header=False, show_lines=True)
    table.add_column(no_wrap=True)
    table.add_column()
    for method in described:
        lines = [method["summary"]]
        if method["needs"]:
            lines.append("Needs: " + ", ".join(method["needs"]) + ".")
        if method["options"]:
            lines.append("Options: " + " ".join("--" + name.replace("_", "-") for name in method["options"]))
        lines.append(f"Source: {method['source']}.")
        table.add_row(f"{method['name']}{' (default)' if method['default'] else ''}", escape("\n".join(lines)))
    Output().print(table)
