"""Results as a person reads them: tables on stdout, progress on stderr."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

if TYPE_CHECKING:
    from .evaluate import Evaluation
    from .transfer import Transfer

Report = Callable[[str, int, int], None]
ORIGIN_WORDS = {
    "copied": "shared with the source: its row, bit for bit",
    "role": "special token: the source's row of the same role",
    "solved": "regression on its neighbours",
    "composed": "made from source rows",
    "drawn": "random",
    "padding": "no token has this id",
}


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
    console = Console()
    summary = done.summary
    rows = len(done.origin)
    if dry_run:
        console.print(
            f"{rows:,} rows: {summary['new_tokens']:,} new tokens to build from {summary['anchors']:,} anchors;"
            " nothing was written"
        )
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
    console.print(table)
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
            f"self-check on {held['tokens']} hidden shared tokens: relative error {held['relative_error']:.2f},"
            f" cosine {held['cosine']:.2f}, true row at place {held['rank']} of {held['candidates']:,} (medians)"
        )
    for warning in summary["warnings"]:
        console.print(f"[yellow]note[/yellow]: {escape(warning)}", highlight=False)
    if done.out is not None:
        console.print(f"written to {escape(str(done.out))}", highlight=False)


def evaluations(results: Mapping[str, Evaluation]) -> None:
    """Bits per byte of one model or several."""
    from .evaluate import evaluation_table

    console = Console()
    console.print(evaluation_table(dict(results)))
    for name, result in results.items():
        if held := getattr(result, "heldout", None):
            console.print(
                f"{escape(name)}: held-out shared tokens: relative error {held['relative_error']:.2f}, cosine"
                f" {held['cosine']:.2f}, rank {held['rank']} of {held['candidates']:,} (medians of {held['tokens']})",
                highlight=False,
            )


def status(found: Mapping[str, Any]) -> None:
    """What runs here and why."""
    console = Console()
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
