"""Text from files and arguments, made safe for the terminal."""

from __future__ import annotations

from rich.markup import escape as escape_markup

from ..errors import printable


def escape(text: str) -> str:
    """The text as rich shows it unchanged: no markup, and escapes for the control characters of terminals."""
    return escape_markup(printable(text))
