"""What ``saltlm inspect`` shows: tables on stdout, or one page that holds everything and asks nothing of the network."""

from __future__ import annotations

import html
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from ..errors import input_error
from ..files.file_errors import output_errors
from ..inspection.page import PAGE
from ..inspection.rows import Rows
from .show import ORIGIN_WORDS, Output

EXTREMES = (
    ("worst residual", "worst_residuals"), ("largest norm", "largest_norms"), ("smallest norm", "smallest_norms"),
)  # fmt: skip
SHOWN = 8  # parts of a row that the page holds: all of a large vocabulary's would make it too heavy to open
RULE_WORDS = {
    "none": "not recorded", "copy": "a source row, as it is", "anchors": "weighted sum of shared tokens' rows",
    "pieces": "weighted sum of the source pieces that spell it", "source tokens": "weighted sum of near source tokens' rows",
    "map": "one map for all tokens, learnt from all anchors", "pieces and map": "pieces beside the map of all anchors",
    "all anchors": "weighted sum of all anchors", "mean": "mean of the source's rows", "zeros": "zeros",
    "random": "drawn at random", "pieces and anchors": "pieces beside a weighted sum of shared tokens' rows",
    "pieces and all anchors": "pieces beside a weighted sum of all anchors",
    "map and anchors": "the map of all anchors, and a weighted sum of what it misses of shared tokens' rows",
    "pieces, map and anchors": "pieces beside the map of all anchors and a weighted sum of what it misses",
}  # fmt: skip


def overview(found: Mapping[str, Any]) -> None:
    """Counts, quantiles and extremes of a folder's rows."""
    console = Output()
    total = found["rows"]
    table = Table(title=escape(f"{total:,} rows by {found['method']}"))
    for heading, side in (("origin", "left"), ("rows", "right"), ("share", "right"), ("median norm", "right")):
        table.add_column(heading, justify=side)
    table.add_column("what it is")
    for name, count in found["counts"].items():
        if count:
            norm = found["norms"][name]["median"]
            table.add_row(
                escape(name), f"{count:,}", f"{count / total:.1%}", _short(norm), escape(ORIGIN_WORDS.get(name, ""))
            )
    console.print(table)
    rules = [f"{RULE_WORDS.get(name, name)} {count:,}" for name, count in found["rules"].items() if count]
    console.print("made by: " + escape("; ".join(rules)), highlight=False)
    outcomes = [f"{name} {count:,}" for name, count in found["statuses"].items() if count and name != "not_solved"]
    if outcomes:
        console.print("outcomes: " + escape(", ".join(outcomes)), highlight=False)
    console.print(_quantiles(found))
    if any(found[key] for _, key in EXTREMES):
        console.print(_extremes(found))
    for warning in found["warnings"]:
        console.print(f"[yellow]note[/yellow]: {escape(warning)}", highlight=False)


def _quantiles(found: Mapping[str, Any]) -> Table:
    quantiles = Table()
    columns = ("min", "p25", "median", "p75", "p95", "max")
    quantiles.add_column("")
    for heading in columns:
        quantiles.add_column(heading, justify="right")
    for label, key in (("neighbours or pieces", "support"), ("residual of solved rows", "residual")):
        if found[key]:
            quantiles.add_row(label, *(_short(found[key][column]) for column in columns))
    for name, values in found["norms"].items():
        quantiles.add_row(escape(f"norm, {name}"), *(_short(values[column]) for column in columns))
    return quantiles


def _extremes(found: Mapping[str, Any]) -> Table:
    extremes = Table()
    for heading in ("", "id", "token", "origin", "status"):
        extremes.add_column(heading, justify="right" if heading == "id" else "left", overflow="fold")
    for heading in ("residual", "norm"):
        extremes.add_column(heading, justify="right")
    for label, key in EXTREMES:
        for index, row in enumerate(found[key]):
            numbers = (_short(row["residual"]), _short(row["norm"]))
            named = (str(row["id"]), escape(row["token"]), escape(row["origin"]), escape(row["status"]))
            extremes.add_row("" if index else label, *named, *numbers)
        extremes.add_section()
    return extremes


def detail(found: Mapping[str, Any]) -> None:
    """One row."""
    console = Output()
    head = f"[bold]{escape(found['token'] or '(no token)')}[/bold]  #{found['id']}  {escape(found['origin'])}"
    console.print(f"{head}: {escape(RULE_WORDS.get(found['rule'], found['rule']))}", highlight=False)
    facts = [f"norm {_short(found['norm'])}"]
    if found["source_id"] >= 0:
        facts.append(f"source token {found['source_token']} #{found['source_id']}")
    if found["support_size"]:
        facts.append(f"made from {found['support_size']:,}")
    if found["status"] != "not_solved":
        facts.append(f"{found['status']}, rank {found['rank']}, residual {found['residual']:.3f}")
    if found["map_weight"]:
        facts.append(f"weight of the map {found['map_weight']:.3f}")
    if found["mean_weight"]:
        facts.append(f"weight of the mean anchor row {found['mean_weight']:.3f}")
    if found["weight_kept"] < 1:
        facts.append(f"the largest weights only, {found['weight_kept']:.1%} of their sum")
    console.print("  " + escape(", ".join(facts)), highlight=False)
    if found["parts"]:
        table = Table()
        table.add_column("weight", justify="right")
        table.add_column("source token", overflow="fold")
        table.add_column("source id", justify="right")
        for part in found["parts"]:
            table.add_row(f"{part['weight']:+.4f}", escape(part["source_token"]), str(part["source_id"]))
        console.print(table)


def write_page(rows: Rows, path: str | Path) -> None:
    """Write the page for a browser: a table of all tokens to search, sort and open; whole or not at all.

    Raises:
        InputError: the place cannot be written.
    """
    path = Path(path)
    if path.is_dir() or not path.name:
        raise input_error("html", f"the folder {path}", "a file to write", "name a file, such as rows.html")
    if not path.parent.is_dir():
        raise input_error("html", f"no folder {path.parent}", "a file in a folder that exists", "make it first")
    temporary = path.parent / f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}"
    with output_errors(path, 0, "choose another place"):
        try:
            with open(temporary, "x", encoding="utf-8", newline="\n") as file:
                file.writelines(page(rows))
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def page(rows: Rows) -> Iterator[str]:
    """The page, piece by piece: a large vocabulary's is tens of megabytes."""
    found = rows.overview()
    before, rest = PAGE.split("@FACTS@")
    middle, after = rest.split("@DATA@")
    title = f"{Path(os.path.abspath(rows.folder)).name}: where each row came from"
    yield before.replace("@TITLE@", html.escape(title)) + _facts(found) + middle
    names = {
        "origins": rows.summary["origins"], "rules": [RULE_WORDS.get(n, n) for n in rows.summary["rules"]],
        "statuses": [entry["name"] for entry in rows.summary["statuses"]],
    }  # fmt: skip
    yield '{"names":' + _json(names) + ',"rows":['
    used = set()
    for row in range(len(rows.norms)):
        ids, weights = rows.parts(row)
        top = np.sort(np.argsort(-np.abs(weights), kind="stable")[:SHOWN])
        used.update(ids[top].tolist())
        arrays = rows.arrays
        if arrays["source_id"][row] >= 0:
            used.add(int(arrays["source_id"][row]))
        entry = [
            rows.texts[row], int(arrays["origin"][row]), int(arrays["rule"][row]), int(arrays["status"][row]),
            int(arrays["source_id"][row]), int(arrays["support_size"][row]), int(arrays["rank"][row]),
            _rounded(arrays["residual"][row]), _rounded(rows.norms[row]), _rounded(rows.map_weight(row)),
            ids[top].tolist(), [_rounded(weight) for weight in weights[top]], len(ids) - len(top),
        ]  # fmt: skip
        yield ("," if row else "") + _json(entry)
    yield '],"source":' + _json({str(source): rows.source_text(source) for source in sorted(used)}) + "}" + after


def _facts(found: Mapping[str, Any]) -> str:
    total = found["rows"]
    cards = "".join(
        f"<li><b>{count:,}</b> {html.escape(name)} <span>{count / total:.1%}</span></li>"
        for name, count in found["counts"].items()
        if count
    )
    notes = "".join(f"<p class=note>{html.escape(warning)}</p>" for warning in found["warnings"])
    return f"<p>{total:,} rows by <b>{html.escape(found['method'])}</b></p><ul class=cards>{cards}</ul>{notes}"


def _json(content: Any) -> str:
    """JSON that no token can end the script with: ``</script>`` and ``<!--`` need a ``<``."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _rounded(value: float) -> float | None:
    return float(f"{value:.4g}") if np.isfinite(value) else None


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
