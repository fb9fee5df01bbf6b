"""Results as HTML for notebooks, made of the pieces of the page."""

from __future__ import annotations

import importlib.resources
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .charts import Chart, table, visible
from .figures import comparison_curves, training_curves
from .page import read_metrics, verdict_html
from .verdict import Verdict

# Element around each result. The rules of page.css hold inside it only.
CLASS = "saltlm"


def transfer_html(summary: Mapping[str, Any], verdict: Verdict) -> str:
    """The verdict on a transfer, and its rows by origin or, before the transfer, the shared tokens by kind of match."""
    is_planned = not any(summary["counts"].get(name) for name in ("solved", "composed", "drawn"))
    counts = summary["overlap"] if is_planned else summary["counts"]
    total = max(1, sum(counts.values()))
    numbers = [(name, count, f"{count / total:.1%}") for name, count in counts.items() if count]
    return _framed(verdict_html(verdict) + table(("match" if is_planned else "origin", "rows", "share"), numbers))


def evaluation_html(figures: Mapping[str, Any]) -> str:
    """The figures of an evaluation as a table.

    Args:
        figures: what :meth:`~saltlm.evaluation.evaluate.Evaluation.to_json` returned.
    """
    names = ("bits_per_byte", "tokens_per_byte", "bytes", "tokens", "documents", "unknown_tokens", "tokens_per_second")
    notes = "".join(f'<p class="note">{visible(note)}</p>' for note in figures["notes"])
    head = f"<p><b>{visible(figures['model'])}</b>: {figures['bits_per_byte']:.3f} bits per byte; fewer are better.</p>"
    return _framed(head + notes + table(("", ""), [(name.replace("_", " "), figures[name]) for name in names]))


def comparison_html(content: Mapping[str, Any]) -> str:
    """The best method of a comparison, the methods as a table, and their curves.

    Args:
        content: content of compare.json.
    """
    ties = ", ".join(map(str, content["ties"]))
    best = "All methods diverged." if content["best"] is None else f"Best method: {content['best']}."
    head = f"<p><b>{visible(best)}</b>{visible(f' It ties with {ties}.') if ties else ''}</p>"
    headings = ("method", "bits per byte, step 0", "at the end", "tokens per byte")
    numbers = [
        (entry["method"], entry["start"]["mean"], entry["end"] and entry["end"]["mean"], entry["tokens_per_byte"])
        for entry in content["methods"]
    ]
    return _framed(head + table(headings, numbers) + _figures(comparison_curves(content)))


def adaptation_html(values: Mapping[str, Any]) -> str:
    """What a training reached, and its curves where its folder has them.

    Args:
        values: what :meth:`~saltlm.adaptation.run.Adaptation.to_json` returned.
    """
    heldout = values["heldout"]
    reached = f" Held-out bits per byte: {heldout[0][1]:.3f} to {heldout[-1][1]:.3f}." if heldout else ""
    kept = "" if values["kept_step"] == values["steps"] else f" The weights are those of step {values['kept_step']:,}."
    head = f"{values['steps']:,} steps, {values['tokens']:,} tokens, {values['bytes']:,} bytes of text.{reached}{kept}"
    headings = ("step", "bits per byte") + (("source language",) if values["source"] else ())
    source = {step: value for step, value in values["source"]}
    numbers = [(step, value, source[step]) if step in source else (step, value) for step, value in heldout]
    chart = training_curves(read_metrics(Path(values["out"])))
    body = f"<p><b>{visible(head)}</b></p>" + (table(headings, numbers) if numbers else "")
    return _framed(
        body + _figures([chart] if chart else []) + f"<p>Written to <code>{visible(values['out'])}</code></p>"
    )


def _figures(charts: list[Chart]) -> str:
    drawings = "".join(chart.html() for chart in charts)
    return f'<div class="charts">{drawings}</div>' if drawings else ""


def _framed(body: str) -> str:
    """An element with the style of the page that leaves the rest of the notebook alone."""
    style = (importlib.resources.files("saltlm.inspection") / "page.css").read_text(encoding="utf-8")
    # Nested rules hold inside the element only; the page's own rules for :root and body become rules of the element.
    nested = style.replace(":root", "&").replace("\nbody {", "\n& {").replace("\n  body {", "\n  & {")
    return f'<div class="{CLASS}"><style>.{CLASS} {{\n{nested}}}</style>{body}</div>'
