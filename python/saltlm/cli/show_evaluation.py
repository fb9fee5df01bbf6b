"""Evaluations side by side as a table for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from ..evaluation.evaluate import Evaluation
    from ..evaluation.intervals import Intervals


def evaluation_table(
    evaluations: Mapping[str, Evaluation],
    intervals: Intervals | None = None,
    retention: Mapping[str, Evaluation] | None = None,
) -> Table:
    """Several evaluations as a table for people, a row each, in the given order.

    Args:
        evaluations: label -> evaluation.
        intervals: of the same evaluations.
        retention: label -> evaluation on text of the source language; a column of its own.

    Returns:
        A :class:`rich.table.Table`; the best bits per byte, and those that tie with it, are marked when all rows are of the
        same bytes.
    """
    from rich.markup import escape
    from rich.table import Table

    known = dict(intervals.models) if intervals else {}
    sizes = {(e.bytes, e.documents) for e in evaluations.values()}
    least = min((e.bits_per_byte for e in evaluations.values()), default=None)
    best = intervals.best() if known else [name for name, e in evaluations.items() if e.bits_per_byte == least]
    # Columns that say nothing are left out, so that names have room.
    columns = {
        "bits per\nbyte": {name: _bits(e) for name, e in evaluations.items()},
        **{
            f"{100 * share:.4g} %\ninterval": {name: f"{i.low:.3f} to {i.high:.3f}" for name, i in known.items()}
            for share in {i.confidence for i in known.values()}
        },
        "source\ntext": {name: _bits(e) for name, e in (retention or {}).items()},
        "tokens\nper byte": {name: f"{e.tokens_per_byte:.3f}" for name, e in evaluations.items()},
        "bytes": {name: f"{e.bytes:,}" for name, e in evaluations.items() if len(sizes) > 1},
        "unknown": {name: f"{e.unknown_tokens:,}" for name, e in evaluations.items() if e.unknown_tokens},
        "tokens/s": {name: f"{e.tokens_per_second:,.0f}" for name, e in evaluations.items()},
    }
    columns = {heading: cells for heading, cells in columns.items() if cells}
    table = Table(caption="".join(f"{size:,} bytes in {count:,} documents" for size, count in sizes if len(sizes) == 1))
    table.add_column("model", overflow="fold")
    for heading in columns:
        table.add_column(heading, justify="right", no_wrap=True)
    for name in evaluations:
        style = "bold" if len(sizes) == 1 < len(evaluations) and name in best else ""
        table.add_row(escape(name), *(cells.get(name, "0") for cells in columns.values()), style=style)
    return table


def _bits(found: Evaluation) -> str:
    return f"{'≥ ' if found.unknown_tokens else ''}{found.bits_per_byte:.3f}"
