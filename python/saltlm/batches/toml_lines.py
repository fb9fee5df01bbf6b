"""On which line of a TOML file a table or a key stands: the parser of the standard library does not say."""

from __future__ import annotations

import re
import sys

Place = tuple[str | int, ...]

# Ends of the four kinds of strings; a backslash takes the next character along in the double-quoted ones.
_STRINGS = (
    re.compile(r'"""(?:[^\\]|\\.)*?"""+', re.DOTALL),
    re.compile(r"'''.*?'''+", re.DOTALL),
    re.compile(r'"(?:[^"\\\n]|\\.)*"'),
    re.compile(r"'[^'\n]*'"),
)
_KEY = re.compile(r"""\s*("(?:[^"\\\n]|\\.)*"|'[^'\n]*'|[A-Za-z0-9_-]+)\s*""")


def toml_lines(text: str) -> dict[Place, int]:
    """Line, counted from 1, of each table header and of each key outside inline tables and arrays.

    Args:
        text: a TOML document that the parser has accepted.

    Returns:
        Path -> line. A path is made of names, and of the place in it for a table of an array: the key ``out`` of the second
        ``[[job]]`` is ``("job", 1, "out")``. What stands inside an inline table or array has the line of no entry but that
        of the key it belongs to.
    """
    found: dict[Place, int] = {}
    counts: dict[Place, int] = {}
    table: Place = ()
    at, line = 0, 1

    def skip(to: int) -> None:
        nonlocal at, line
        line += text.count("\n", at, to)
        at = to

    while at < len(text):
        character = text[at]
        if character in " \t\r\n":
            skip(at + 1)
        elif character == "#":
            skip(_end_of_line(text, at))
        elif character == "[":
            array = text.startswith("[[", at)
            names, end = _dotted(text, at + 1 + array)
            table = _table(names, array, counts)
            found.setdefault(table, line)
            skip(_end_of_line(text, end))
        else:
            names, end = _dotted(text, at)
            place = table
            for name in names:
                place = (*place, name)
                found.setdefault(place, line)
            skip(max(_end_of_value(text, end), at + 1))
    return found


def _table(names: list[str], array: bool, counts: dict[Place, int]) -> Place:
    """The path a header stands for; names of arrays on the way mean the last table of theirs."""
    place: Place = ()
    for index, name in enumerate(names):
        place = (*place, name)
        if array and index == len(names) - 1:
            counts[place] = counts.get(place, -1) + 1
        if place in counts:
            place = (*place, counts[place])
    return place


def _dotted(text: str, at: int) -> tuple[list[str], int]:
    """The parts of a key, and where it ends."""
    names = []
    while match := _KEY.match(text, at):
        part = match[1]
        names.append(_plain(part))
        at = match.end()
        if at >= len(text) or text[at] != ".":
            break
        at += 1
    return names, at


def _plain(part: str) -> str:
    if part.startswith("'"):
        return part[1:-1]
    if part.startswith('"'):
        return str(parse(f"key = {part}")["key"])  # the parser knows the escapes
    return part


def _end_of_line(text: str, at: int) -> int:
    end = text.find("\n", at)
    return len(text) if end < 0 else end


def _end_of_value(text: str, at: int) -> int:
    """Where the value behind a key ends: at the end of a line outside strings and brackets."""
    depth = 0
    while at < len(text):
        character = text[at]
        if character in "\"'":
            match = next(match for kind in _STRINGS if (match := kind.match(text, at)))
            at = match.end()
            continue
        if character == "#":
            at = _end_of_line(text, at)
            continue
        if character == "\n" and not depth:
            return at
        depth += (character in "[{") - (character in "]}")
        at += 1
    return at


def parse(text: str) -> dict[str, object]:
    """The document as plain values; raises the parser's ValueError."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    return tomllib.loads(text)
