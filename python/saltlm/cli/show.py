"""Tables of results for the terminal, on stdout, and progress bars, on stderr."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from ..files.summary_file import Blend, ReloadReport, Summary
from ..progress import StageProgress
from .markup import escape

if TYPE_CHECKING:
    from ..evaluation.harness.tasks import TaskScore
    from ..evaluation.side_by_side import SideBySide
    from ..export.gguf_file import Export
    from ..inspection.verdict import Verdict
    from ..model.convert import Conversion
    from ..pipeline import Transfer

# Origin of a row -> its description.
ORIGIN_WORDS = {
    "copied": "shared with the source: an exact copy of the source's row",
    "role": "special token: the source's row of the token with the same role",
    "solved": "regression on its neighbours",
    "composed": "combined from source rows",
    "drawn": "random",
    "padding": "no token has this id",
}


class Output(Console):
    """Console on standard output that raises BrokenPipeError, which rich would turn into exit code 1."""

    def on_broken_pipe(self) -> None:
        """Raise the BrokenPipeError again; rich calls this while it handles the error."""
        raise


@contextlib.contextmanager
def progress(quiet: bool) -> Iterator[StageProgress]:
    """Show a progress bar for each stage on stderr.

    Args:
        quiet: show nothing.

    Yields:
        The callback; see :data:`~saltlm.progress.StageProgress`.
    """
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
    """Print what a transfer did, or what it would do with ``dry_run``."""
    console = Output()
    summary = done.summary
    rows = len(done.origin)
    console.print(_rows(summary, rows, dry_run))
    if summary["expansion"]:
        expansion = summary["expansion"]
        console.print(
            f"added to the source's tokenizer: {expansion['added']:,} tokens; left out: {expansion['left_out']:,} that"
            " this tokenizer can never produce"
        )
    if summary["support"]:
        support = summary["support"]
        total = f" of {summary['anchors']:,} anchors" if support["of"] == "anchors" else ""
        console.print(
            f"{support['of']} per built token: median {support['median']:.0f},"
            f" 95 % up to {support['p95']:.0f}, largest {support['max']}{total}"
        )
    if outcomes := [entry for entry in summary["statuses"] if entry["count"] and entry["name"] != "not_solved"]:
        console.print("outcomes: " + ", ".join(f"{entry['name']} {entry['count']:,}" for entry in outcomes))
    if summary["heldout"]:
        check = summary["heldout"]
        console.print(
            f"self-check on {check['tokens']} hidden shared tokens: score {check['score']:.2f}; relative error"
            f" {check['relative_error']:.2f}, cosine {check['cosine']:.2f}, rank of the true row {check['rank']} of"
            f" {check['candidates']:,} (medians)"
        )
    if summary["tuning"]:
        tuning = summary["tuning"]
        chosen = ", ".join(
            f"{name} {'default' if value is None else value}" for name, value in tuning["choice"].items()
        )
        criterion = (
            "by the self-check"
            if tuning["text"] is None
            else f"by bits per byte on {tuning['text']['bytes']:,} bytes of text"
        )
        console.print(f"tuned {criterion}: {chosen}, the best of {len(tuning['trials'])} trials")
    elif summary["method"] == "auto" and summary.get("blend") == (blend := _default_blend()):
        console.print(
            f"blend: weight {blend['weight']:g}, length {blend['length']:g}, the best on average; --tune-text FILE chooses"
            " for this language"
        )
    if checked := summary["reload_check"]:
        console.print(_reload_check(checked))
    if done.out is not None:
        # The path stays on one line, so that it can be copied.
        console.print(f"written to {escape(str(done.out))}", highlight=False, soft_wrap=True)
    verdict(console, done.verdict)


def verdict(console: Console, judgement: Verdict) -> None:
    """Print the three lines of a verdict and the next command.

    Args:
        console: where to print.
        judgement: the verdict.
    """
    console.print()
    style = {"good": "green", "fair": "yellow", "poor": "red", "unknown": "default"}[judgement.level]
    for line in judgement.lines:
        console.print(f"[{style}]|[/{style}] {escape(line)}", highlight=False)
    # The command stays on one line, so that it can be copied.
    console.print(f"next: {escape(judgement.command)}", highlight=False, soft_wrap=True)


def _reload_check(report: ReloadReport) -> str:
    """What was compared after writing."""
    if report["difference"] is None:
        return f"reload check: {report['reason']}"
    part = "whole model" if report["layers"] is None else f"{report['layers']} of its layers"
    size = f"within {report['difference']:.0e} of the largest" if report["difference"] else "exactly"
    return f"reload check: logits of shared tokens equal the source's {size} ({part}, {report['dtype']})"


def _default_blend() -> Blend:
    """Weight and length of the default blend."""
    from ..config import TransferConfig
    from ..rows.methods.blend import mix_of

    mix = mix_of(TransferConfig())
    return {"weight": mix.weight, "length": mix.length}


def _rows(summary: Summary, rows: int, dry_run: bool) -> Table:
    """Number of rows by origin; for a dry run, number of shared tokens by kind of match."""
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


def evaluations(result: SideBySide) -> None:
    """Print bits per byte of one or more models, their differences, task scores and continuations."""
    from .show_evaluation import evaluation_table

    console = Output()
    short = labels(list(result.models))
    texts = {short[name]: measured.text for name, measured in result.models.items()}
    retention = {short[name]: measured.retention for name, measured in result.models.items() if measured.retention}
    console.print(evaluation_table(texts, result.intervals.renamed(short), retention))
    for title, intervals in (("", result.intervals), ("source text: ", result.retention)):
        for pair in intervals.renamed(short).comparisons:
            d = pair.difference
            better = "a tie" if pair.tie else f"{pair.first if d.estimate < 0 else pair.second} is better"
            console.print(
                f"{title}{pair.first} less {pair.second}: {d.estimate:+.3f} bits per byte"
                f" ({d.low:+.3f} to {d.high:+.3f}): {better}",
                highlight=False,
                markup=False,
            )
    for name, evaluation in texts.items():
        if check := evaluation.heldout:
            console.print(
                f"{escape(name)}: held-out shared tokens: relative error {check['relative_error']:.2f}, cosine"
                f" {check['cosine']:.2f}, rank {check['rank']} of {check['candidates']:,} (medians of {check['tokens']})",
                highlight=False,
            )
    _tasks(console, {short[name]: measured.tasks for name, measured in result.models.items()})
    _samples(console, {short[name]: measured.samples for name, measured in result.models.items()})


def labels(names: list[str]) -> dict[str, str]:
    """Short labels of models.

    Args:
        names: folders or hub names.

    Returns:
        Name -> the shortest end of its path that distinguishes it from the other names; a single name is not shortened.
    """
    if len(names) == 1:
        return {names[0]: names[0]}
    parts = {name: Path(name).parts or (name,) for name in names}
    for length in range(1, max(map(len, parts.values()), default=0)):
        short = {name: "/".join(path[-length:]) for name, path in parts.items()}
        if len(set(short.values())) == len(names):
            return short
    return {name: name for name in names}


def _tasks(console: Console, scores: Mapping[str, Mapping[str, TaskScore]]) -> None:
    """Print a table of model -> task -> score."""
    tasks = list(next(iter(scores.values())))
    if not tasks:
        return
    table = Table()
    for heading in ("task", "metric", "model"):
        table.add_column(heading, overflow="fold")
    for heading in ("score", "± standard error", "items", "shots"):
        table.add_column(heading, justify="right")
    for task in tasks:
        for metric in next(iter(scores.values()))[task].metrics:
            for name, task_scores in scores.items():
                score = task_scores[task]
                value = score.metrics[metric]
                numbers = ("-" if value[key] is None else f"{value[key]:.3f}" for key in ("value", "stderr"))
                items = f"{score.items:,}" if score.items else "-"
                table.add_row(escape(task), escape(metric), escape(name), *numbers, items, str(score.shots))
    console.print(table)


def _samples(console: Console, continuations: Mapping[str, Sequence[tuple[str, str]]]) -> None:
    """Print the continuations, model -> (prompt, continuation) of each prompt."""
    for index, (prompt, _) in enumerate(next(iter(continuations.values()))):
        console.print(f"\n[bold]{escape(prompt)}[/bold]", highlight=False)
        for name, samples in continuations.items():
            label = f"{escape(name)}: " if len(continuations) > 1 else ""
            console.print(f"  {label}{escape(' '.join(samples[index][1].split()))}", highlight=False)


def conversion(done: Conversion) -> None:
    """Print what a conversion wrote."""
    written = [*done.weights, *(["tokenizer.json"] if done.tokenizer else [])]
    rows = f" ({done.added_rows:,} rows of zeros added for symbols that only merges use)" if done.added_rows else ""
    Output().print(f"written to {escape(str(done.out))}: {escape(', '.join(written))}{rows}")


def status(result: Mapping[str, Any]) -> None:
    """Print versions, devices, and which implementation of the operators runs and why."""
    console = Output()
    table = Table(title="saltlm status", show_header=False)
    table.add_column()
    table.add_column()
    for name, version in result["versions"].items():
        table.add_row(name, str(version or "not installed"))
    table.add_section()
    for device, entry in result["operators"].items():
        table.add_row(f"operators on {device}", escape(f"{entry['name']}: {entry['reason']}"))
    table.add_section()
    table.add_row("devices", escape(", ".join(result["devices"])))
    table.add_row("threads", str(result["threads"]))
    table.add_row("platform", result["platform"])
    console.print(table)


def methods(descriptions: Sequence[Mapping[str, Any]]) -> None:
    """Print every method: what the row of a new token is, what the method needs, its options and its source."""
    table = Table(title="saltlm methods", show_header=False, show_lines=True)
    table.add_column(no_wrap=True)
    table.add_column()
    for method in descriptions:
        lines = [method["summary"]]
        if method["needs"]:
            lines.append("Needs: " + ", ".join(method["needs"]) + ".")
        if method["options"]:
            lines.append("Options: " + " ".join("--" + name.replace("_", "-") for name in method["options"]))
        lines.append(f"Source: {method['source']}.")
        table.add_row(f"{method['name']}{' (default)' if method['default'] else ''}", escape("\n".join(lines)))
    Output().print(table)


def export(done: Export) -> None:
    """Print what an export wrote."""
    form, pre = done.tokenizer
    table = Table(show_header=False)
    table.add_row("file", escape(str(done.out)))
    table.add_row("size", f"{done.bytes / 1e9:.3f} GB")
    table.add_row("architecture", done.architecture)
    table.add_row("rows", f"{done.rows:,}")
    table.add_row("tokenizer", form if form != "gpt2" else f"{form}, pre-tokenizer {pre}")
    same = done.compared - done.different
    table.add_row("texts segmented alike", f"{same:,} of {done.compared:,}")
    Output().print(table)
