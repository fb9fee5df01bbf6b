"""Output of ``saltlm verify``: a table of the checks, and the rows that differ."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from ..verification.results import FAILED, Check, Verification
from .show import Output

ROWS = 10  # rows that the table of a failed check shows; --json lists all
COLOURS = {"passed": "green", "failed": "red", "not checked": "yellow"}


def verification(result: Verification) -> None:
    """Print the checks of a folder, and the first rows that differ."""
    console = Output()
    table = Table()
    table.add_column("check", no_wrap=True)
    table.add_column("result", no_wrap=True)
    table.add_column("detail", overflow="fold")
    for check in result.checks:
        colour = COLOURS[check.result]
        table.add_row(check.name, f"[{colour}]{check.result}[/{colour}]", escape(_plain(check.detail)))
    console.print(table)
    for check in result.checks:
        if check.result == FAILED and check.rows:
            console.print(_differences(check))
            if len(check.rows) > ROWS:
                console.print(f"{len(check.rows) - ROWS:,} more; --json lists all", highlight=False)


def _differences(check: Check) -> Table:
    table = Table(title=f"{check.name}: rows that differ")
    table.add_column("id", justify="right", no_wrap=True)
    for heading in ("token", "tensor"):
        table.add_column(heading, overflow="fold")
    table.add_column("largest difference", justify="right")
    for row in check.rows[:ROWS]:
        difference = "-" if row.difference is None else f"{row.difference:.3g}"
        table.add_row(str(row.id), escape(row.token), escape(_plain(row.tensor)), difference)
    return table


def _plain(text: str) -> str:
    """A text from a file without characters that a terminal would act on."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
