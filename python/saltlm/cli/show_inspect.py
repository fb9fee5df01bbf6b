"""Output of ``saltlm inspect`` on stdout: the verdict, and tables of 80 columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from ..inspection.overlap import ADVICE, VocabularyOverlap
from ..inspection.page import RULE_WORDS
from ..inspection.verdict import Verdict
from .markup import escape
from .show import ORIGIN_WORDS, Output, verdict

# (label of a table section, key of its rows in the overview).
EXTREMES = (
    ("worst residual", "worst_residuals"),
    ("largest norm", "largest_norms"),
    ("smallest norm", "smallest_norms"),
)


def overlap(result: VocabularyOverlap) -> None:
    """Print what two vocabularies have in common, and what speculative decoding may expect."""
    console = Output()
    table = Table(title="two vocabularies")
    table.add_column("")
    for heading in ("source", "target"):
        table.add_column(heading, justify="right")
    shares = (result.shared / max(1, result.source_tokens), result.shared / max(1, result.target_tokens))
    rows = (f"{count:,}" if count is not None else "-" for count in (result.source_rows, result.target_rows))
    table.add_row("tokens", f"{result.source_tokens:,}", f"{result.target_tokens:,}")
    table.add_row("rows by config.json", *rows)
    table.add_row("shared tokens", f"{result.shared:,} ({shares[0]:.1%})", f"{result.shared:,} ({shares[1]:.1%})")
    table.add_row("same token at the same id", f"{result.same_id:,}", f"{result.same_id:,}")
    console.print(table)
    matches = ", ".join(f"{name} {count:,}" for name, count in result.matches.items() if count)
    console.print(f"target tokens by match: {escape(matches)}", highlight=False)
    console.print(escape(ADVICE[result.drafting]), highlight=False)


def overview(content: Mapping[str, Any], judgement: Verdict) -> None:
    """Print the verdict, then counts, quantiles and extremes of the rows of a folder.

    Args:
        content: what :meth:`~saltlm.inspection.rows.Rows.overview` returned.
        judgement: the verdict on the folder.
    """
    console = Output()
    verdict(console, judgement)
    if judgement.missing:
        lacking = "; ".join(judgement.missing)
        console.print(
            f"[yellow]note[/yellow]: the record is of an older version and lacks: {escape(lacking)}", highlight=False
        )
    total = content["rows"]
    table = Table(title=escape(f"{total:,} rows by {content['method']}"))
    table.add_column("origin")
    for heading in ("rows", "share", "median norm"):
        table.add_column(heading, justify="right")
    table.add_column("what it is")
    for name, count in content["counts"].items():
        if count:
            norm = content["norms"][name]["median"]
            table.add_row(
                escape(name), f"{count:,}", f"{count / total:.1%}", _short(norm), escape(ORIGIN_WORDS.get(name, ""))
            )
    console.print(table)
    rules = [f"{RULE_WORDS.get(name, name)} {count:,}" for name, count in content["rules"].items() if count]
    console.print("built by: " + escape("; ".join(rules)), highlight=False)
    outcomes = [f"{name} {count:,}" for name, count in content["statuses"].items() if count and name != "not_solved"]
    if outcomes:
        console.print("outcomes: " + escape(", ".join(outcomes)), highlight=False)
    console.print(_quantiles(content))
    if any(content[key] for _, key in EXTREMES):
        console.print(_extremes(content))
    for warning in content["warnings"]:
        console.print(f"[yellow]note[/yellow]: {escape(warning)}", highlight=False)


def _quantiles(content: Mapping[str, Any]) -> Table:
    """Table of the quantiles of support sizes, residuals and norms."""
    quantiles = Table()
    columns = ("min", "p25", "median", "p75", "p95", "max")
    quantiles.add_column("")
    for heading in columns:
        quantiles.add_column(heading, justify="right")
    for label, key in (("neighbours or pieces", "support"), ("residual of solved rows", "residual")):
        if content[key]:
            quantiles.add_row(label, *(_short(content[key][column]) for column in columns))
    for name, values in content["norms"].items():
        quantiles.add_row(escape(f"norm, {name}"), *(_short(values[column]) for column in columns))
    return quantiles


def _extremes(content: Mapping[str, Any]) -> Table:
    """Table of the rows with the largest residuals, the largest norms and the smallest norms."""
    extremes = Table()
    for heading in ("", "id", "token", "origin", "status"):
        extremes.add_column(heading, justify="right" if heading == "id" else "left", overflow="fold")
    for heading in ("residual", "norm"):
        extremes.add_column(heading, justify="right")
    for label, key in EXTREMES:
        for index, row in enumerate(content[key]):
            numbers = (_short(row["residual"]), _short(row["norm"]))
            texts = (str(row["id"]), escape(row["token"]), escape(row["origin"]), escape(row["status"]))
            extremes.add_row("" if index else label, *texts, *numbers)
        extremes.add_section()
    return extremes


def detail(content: Mapping[str, Any]) -> None:
    """Print one row.

    Args:
        content: what :meth:`~saltlm.inspection.rows.Rows.detail` returned.
    """
    console = Output()
    head = f"[bold]{escape(content['token'] or '(no token)')}[/bold]  #{content['id']}  {escape(content['origin'])}"
    console.print(f"{head}: {escape(RULE_WORDS.get(content['rule'], content['rule']))}", highlight=False)
    facts = [f"norm {_short(content['norm'])}"]
    if content["source_id"] >= 0:
        facts.append(f"source token {content['source_token']} #{content['source_id']}")
    if content["support_size"]:
        facts.append(f"sum of {content['support_size']:,}")
    if content["status"] != "not_solved":
        facts.append(f"{content['status']}, rank {content['rank']}, residual {content['residual']:.3f}")
    if content["map_weight"]:
        facts.append(f"weight of the map {content['map_weight']:.3f}")
    if content["mean_weight"]:
        facts.append(f"weight of the mean anchor row {content['mean_weight']:.3f}")
    if content["weight_kept"] < 1:
        facts.append(f"only the largest weights are recorded, {content['weight_kept']:.1%} of their sum")
    console.print("  " + escape(", ".join(facts)), highlight=False)
    if content["parts"]:
        table = Table()
        table.add_column("weight", justify="right")
        table.add_column("source token", overflow="fold")
        table.add_column("source id", justify="right")
        for part in content["parts"]:
            table.add_row(f"{part['weight']:+.4f}", escape(part["source_token"]), str(part["source_id"]))
        console.print(table)


def _short(value: float | None) -> str:
    """Four significant digits; a dash for ``None``."""
    return "-" if value is None else f"{value:.4g}"
