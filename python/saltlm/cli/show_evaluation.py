"""Table of evaluations for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich.table import Table

from .markup import escape

if TYPE_CHECKING:
    from ..evaluation.evaluate import Evaluation
    from ..evaluation.intervals import Intervals


def evaluation_table(
    evaluations: Mapping[str, Evaluation],
    intervals: Intervals | None = None,
    retention: Mapping[str, Evaluation] | None = None,
) -> Table:
    """Build a table with a row for each evaluation, in the given order.

    Args:
        evaluations: label -> evaluation.
        intervals: confidence intervals of the same evaluations.
        retention: label -> evaluation on text of the source language, shown in an extra column.

    Returns:
        The table. If all evaluations are of the same text, the best rows (least bits per byte, and ties) are bold.
    """
    interval_of = dict(intervals.models) if intervals else {}
    sizes = {(e.bytes, e.documents) for e in evaluations.values()}
    least = min((e.bits_per_byte for e in evaluations.values()), default=None)
    best = (
        intervals.best()
        if intervals is not None and interval_of
        else [name for name, e in evaluations.items() if e.bits_per_byte == least]
    )
    # Columns without values are left out, to leave room for the names.
    columns = {
        "bits per\nbyte": {name: _bits(e) for name, e in evaluations.items()},
        **{
            f"{100 * confidence:.4g} %\ninterval": {
                name: f"{i.low:.3f} to {i.high:.3f}" for name, i in interval_of.items()
            }
            for confidence in {i.confidence for i in interval_of.values()}
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


def _bits(evaluation: Evaluation) -> str:
    """Bits per byte; a lower bound where the text has unknown tokens."""
    return f"{'≥ ' if evaluation.unknown_tokens else ''}{evaluation.bits_per_byte:.3f}"
