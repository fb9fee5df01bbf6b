"""The page of a transferred folder: one HTML file that needs no network."""

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

from ..errors import input_error
from ..files.file_errors import output_errors
from .charts import Chart, can_draw, table, visible
from .columns import SHOWN, block
from .figures import comparison_curves, figures_of, training_curves
from .rows import BUILT, Rows
from .verdict import Verdict, transfer_command

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
# What the score of the self-check means.
SCORE_WORDS = (
    "The self-check hides shared tokens, builds their rows by the same method and compares them with the true ones. The best"
    " methods reach scores of 0.1 to 0.2 before any training; a score below 0 means that one mean row for all tokens would be"
    " a better start."
)
LEVEL_WORDS = {"good": "Good start", "fair": "Fair start", "poor": "Weak start", "unknown": "Not checked"}
# Rows in each list of the worst and the best.
EXTREMES = 8
# Parts of a row in these lists.
PARTS = 4


def write_page(rows: Rows, path: str | Path) -> None:
    """Write the page of a folder.

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
    """The HTML page in parts.

    Args:
        rows: rows of a folder.

    Yields:
        Consecutive parts of the page.
    """
    files = importlib.resources.files("saltlm.inspection")
    template, style, script = ((files / f"page.{end}").read_text(encoding="utf-8") for end in ("html", "css", "js"))
    names = {
        "origins": list(rows.summary["origins"]),
        "rules": [RULE_WORDS.get(name, name) for name in rows.summary["rules"]],
        "statuses": [entry["name"] for entry in rows.summary["statuses"]],
    }
    data, shown = block(rows, names)
    charts, remarks = _charts(rows)
    if shown < SHOWN:
        remarks.append(
            f"The page holds the {shown} largest weights of each row, so that it stays small; saltlm inspect DIR '#ID' shows"
            " all of them."
        )
    if rows.summary.get("heldout"):
        remarks.insert(0, SCORE_WORDS)
    parts = {
        "TITLE": visible(f"{Path(os.path.abspath(rows.folder)).name}: where each row came from"),
        "STYLE": style,
        "VERDICT": verdict_html(rows.verdict) + "".join(f'<p class="muted">{visible(text)}</p>' for text in remarks),
        "CHARTS": "".join(chart.html() for chart in charts),
        "EXTREMES": _extremes(rows),
        "INPUTS": _inputs(rows),
        "DATA": data,
        "SCRIPT": script,
    }
    # Split, not replaced: a mark inside an inserted text stays text.
    for index, piece in enumerate(template.split("@@")):
        yield parts[piece] if index % 2 else piece


def verdict_html(verdict: Verdict) -> str:
    """The verdict as HTML, for the page and for notebooks."""
    warnings = "".join(f"<li>{visible(text)}</li>" for text in verdict.warnings)
    missing = "; ".join(verdict.missing)
    return (
        f'<section class="verdict {verdict.level}"><p class="level">{LEVEL_WORDS[verdict.level]}</p>'
        + "".join(f"<p>{visible(line)}</p>" for line in verdict.lines)
        + f"<p>Next: <code>{visible(verdict.command)}</code></p></section>"
        + (f'<ul class="note">{warnings}</ul>' if warnings else "")
        + (f'<p class="note">The record is of an older version and lacks: {visible(missing)}.</p>' if missing else "")
    )


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl in a folder; a line that was cut by a kill is left out."""
    path = folder / "metrics.jsonl"
    if not path.is_file():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict):
            lines.append(line)
    return lines


def _charts(rows: Rows) -> tuple[list[Chart], list[str]]:
    """All charts, and remarks on those that are left out."""
    charts, remarks = figures_of(rows), []
    if (chart := training_curves(read_metrics(rows.folder))) is not None:
        charts.append(chart)
    for folder in (rows.folder, Path(os.path.abspath(rows.folder)).parent):
        if (folder / "compare.json").is_file():
            try:
                charts += comparison_curves(json.loads((folder / "compare.json").read_bytes()))
            except (ValueError, KeyError, TypeError, AttributeError):
                remarks.append(f"{folder / 'compare.json'} cannot be read; its curves are left out.")
            break
    if not can_draw():
        remarks.append('matplotlib is not installed: numbers stand in place of pictures; pip install "saltlm[adapt]".')
    return charts, remarks


def _extremes(rows: Rows) -> str:
    """HTML of the worst and the best rows, with their largest weights."""
    arrays = rows.arrays
    built = np.flatnonzero(np.isin(np.array(rows.summary["origins"], dtype=object)[arrays["origin"]], BUILT))
    solved = built[arrays["rank"][built] > 0]
    by_residual = solved[np.argsort(arrays["residual"][solved], kind="stable")]
    by_norm = built[np.argsort(rows.norms[built], kind="stable")]
    lists = {
        "Largest residuals: the neighbours explain these tokens worst": by_residual[::-1][:EXTREMES],
        "Smallest residuals": by_residual[:EXTREMES],
        "Largest norms": by_norm[::-1][:EXTREMES],
        "Smallest norms": by_norm[:EXTREMES],
    }
    return "".join(
        f"<details{' open' if number == 0 else ''}><summary>{html.escape(title)}</summary>{_row_list(rows, chosen)}</details>"
        for number, (title, chosen) in enumerate((title, chosen) for title, chosen in lists.items() if len(chosen))
    )


def _row_list(rows: Rows, chosen: np.ndarray) -> str:
    """An HTML table of rows with origin, residual, norm and the largest weights."""
    lines = []
    for row in chosen.tolist():
        ids, weights = rows.parts(row)
        largest = np.argsort(-np.abs(weights), kind="stable")[:PARTS]
        recipe = ", ".join(f"<bdi>{visible(rows.source_text(int(ids[i])))}</bdi> {weights[i]:+.3f}" for i in largest)
        rest = f" and {len(ids) - len(largest)} more" if len(ids) > len(largest) else ""
        residual = f"{rows.arrays['residual'][row]:.3f}" if rows.arrays["rank"][row] else "-"
        lines.append(
            f'<tr><td class="n">{row}</td><td class="t"><button type="button" data-row="{row}">'
            f"{visible(rows.texts[row]) or '(no token)'}</button></td><td>{visible(rows.origin(row))}</td>"
            f'<td class="n">{residual}</td><td class="n">{rows.norms[row]:.4g}</td>'
            f'<td class="t">{recipe}{rest}</td></tr>'
        )
    head = "".join(f"<th scope=col>{name}</th>" for name in ("id", "token", "origin", "residual", "norm", "weights"))
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def _inputs(rows: Rows) -> str:
    """HTML of what was read, the versions, and the command that makes the folder again."""
    summary: Mapping[str, Any] = rows.summary
    parts = [f"<p>Make it again:</p><pre><code>{visible(transfer_command(summary, str(rows.folder)))}</code></pre>"]
    if adapted := summary.get("adapted"):
        texts = ", ".join(str(entry.get("path")) for entry in adapted.get("text", []))
        facts = [
            ("model", adapted.get("model")),
            ("text", texts),
            ("phases", adapted.get("phases")),
            ("steps", str(adapted.get("steps"))),
            ("kept step", str(adapted.get("kept_step"))),
            ("bytes of text", str(adapted.get("bytes"))),
        ]
        parts.append("<h3>Training after the transfer</h3>" + table(("", ""), facts))
    for side, entry in summary.get("inputs", {}).items():
        facts = [
            (name.replace("_", " "), f"{value:,}" if isinstance(value, int) else value)
            for name, value in entry.items()
            if not isinstance(value, Mapping) and value is not None
        ]
        digests = (
            [(file, digest) for file, digest in (entry.get("sha256") or {}).items()]
            if (isinstance(entry.get("sha256"), Mapping))
            else []
        )
        more = (
            f"<details><summary>Digests of {len(digests)} files</summary>{table(('file', 'sha256'), digests)}</details>"
        )
        parts.append(f"<h3>{visible(side.replace('_', ' '))}</h3>{table(('', ''), facts)}{more if digests else ''}")
    versions = [(name, version) for name, version in summary.get("environment", {}).items()]
    if versions:
        parts.append("<h3>Versions</h3>" + table(("", ""), versions))
    return "".join(parts)
