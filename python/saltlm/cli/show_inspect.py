"""Output of ``saltlm inspect``: tables on stdout, and an HTML page that needs no network."""

from __future__ import annotations

import html
import importlib.resources
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from ..errors import input_error
from ..files.file_errors import output_errors
from ..inspection.overlap import ADVICE, VocabularyOverlap
from ..inspection.rows import Rows
from .markup import escape
from .show import ORIGIN_WORDS, Output

# (label of a table section, key of its rows in the overview).
EXTREMES = (
    ("worst residual", "worst_residuals"),
    ("largest norm", "largest_norms"),
    ("smallest norm", "smallest_norms"),
)
# Number of parts of a row on the page; with all parts, the page of a large vocabulary would be too large to open.
SHOWN = 8
# Rule that built a row -> its description.
RULE_WORDS = {
    "none": "not recorded",
    "copy": "an exact copy of a source row",
    "anchors": "weighted sum of the rows of shared tokens",
    "pieces": "weighted sum of the source pieces that spell it",
    "source tokens": "weighted sum of the rows of near source tokens",
    "map": "one linear map for all tokens, fitted on all anchors",
    "pieces and map": "blend of the pieces and the map of all anchors",
    "all anchors": "weighted sum of all anchors",
    "mean": "mean of the source rows",
    "zeros": "zeros",
    "random": "drawn at random",
    "pieces and anchors": "blend of the pieces and a weighted sum of the rows of shared tokens",
    "pieces and all anchors": "blend of the pieces and a weighted sum of all anchors",
    "map and anchors": "the map of all anchors, plus a weighted sum of its residuals on shared tokens",
    "pieces, map and anchors": "blend of the pieces and the map of all anchors, plus a weighted sum of its residuals",
}


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


def overview(content: Mapping[str, Any]) -> None:
    """Print counts, quantiles and extremes of the rows of a folder.

    Args:
        content: what :meth:`~saltlm.inspection.rows.Rows.overview` returned.
    """
    console = Output()
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


def write_page(rows: Rows, path: str | Path) -> None:
    """Write an HTML page with a table of all tokens, which can be searched and sorted.

    The page is written to a temporary file, which is renamed when it is complete.

    Args:
        rows: rows of a folder.
        path: file to write.

    Raises:
        InputError: the file cannot be written.
    """
    path = Path(path)
    if path.is_dir() or not path.name:
        raise input_error("html", f"the folder {path}", "a file to write", "name a file, such as rows.html")
    if not path.parent.is_dir():
        raise input_error(
            "html", f"no folder {path.parent}", "a file in a folder that exists", "create the folder first"
        )
    temporary = path.parent / f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}"
    with output_errors(path, 0, "choose another file"):
        try:
            with open(temporary, "x", encoding="utf-8", newline="\n") as file:
                file.writelines(page(rows))
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def page(rows: Rows) -> Iterator[str]:
    """The HTML page in parts, because the page of a large vocabulary has tens of megabytes.

    Args:
        rows: rows of a folder.

    Yields:
        Consecutive parts of the page.
    """
    content = rows.overview()
    # Style and script are inline, and the policy of the page forbids network access.
    template = importlib.resources.files("saltlm.inspection").joinpath("page.html").read_text(encoding="utf-8")
    before, rest = template.split("@FACTS@")
    middle, after = rest.split("@DATA@")
    title = f"{Path(os.path.abspath(rows.folder)).name}: where each row came from"
    yield before.replace("@TITLE@", html.escape(title)) + _facts(content) + middle
    names = {
        "origins": rows.summary["origins"],
        "rules": [RULE_WORDS.get(n, n) for n in rows.summary["rules"]],
        "statuses": [entry["name"] for entry in rows.summary["statuses"]],
    }
    yield '{"names":' + _json(names) + ',"rows":['
    source_ids = set()
    for row in range(len(rows.norms)):
        ids, weights = rows.parts(row)
        top = np.sort(np.argsort(-np.abs(weights), kind="stable")[:SHOWN])
        source_ids.update(ids[top].tolist())
        arrays = rows.arrays
        if arrays["source_id"][row] >= 0:
            source_ids.add(int(arrays["source_id"][row]))
        entry = [
            rows.texts[row],
            int(arrays["origin"][row]),
            int(arrays["rule"][row]),
            int(arrays["status"][row]),
            int(arrays["source_id"][row]),
            int(arrays["support_size"][row]),
            int(arrays["rank"][row]),
            _rounded(arrays["residual"][row]),
            _rounded(rows.norms[row]),
            _rounded(rows.map_weight(row)),
            ids[top].tolist(),
            [_rounded(weight) for weight in weights[top]],
            len(ids) - len(top),
        ]
        yield ("," if row else "") + _json(entry)
    yield '],"source":' + _json({str(source): rows.source_text(source) for source in sorted(source_ids)}) + "}" + after


def _facts(content: Mapping[str, Any]) -> str:
    """HTML of the counts and notes at the top of the page."""
    total = content["rows"]
    cards = "".join(
        f"<li><b>{count:,}</b> {html.escape(name)} <span>{count / total:.1%}</span></li>"
        for name, count in content["counts"].items()
        if count
    )
    notes = "".join(f"<p class=note>{html.escape(warning)}</p>" for warning in content["warnings"])
    return f"<p>{total:,} rows by <b>{html.escape(content['method'])}</b></p><ul class=cards>{cards}</ul>{notes}"


def _json(content: Any) -> str:
    """JSON without ``<``, so that no token can end the script element, as ``</script>`` and ``<!--`` would."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _rounded(value: float) -> float | None:
    """Four significant digits; ``None`` for NaN and infinity, which JSON does not have."""
    return float(f"{value:.4g}") if np.isfinite(value) else None


def _short(value: float | None) -> str:
    """Four significant digits; a dash for ``None``."""
    return "-" if value is None else f"{value:.4g}"
