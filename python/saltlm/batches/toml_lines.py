"""Line numbers of the tables and keys of a TOML file, which the parser of the standard library does not give."""

from __future__ import annotations

import re
import sys

KeyPath = tuple[str | int, ...]

# The four kinds of TOML strings; a backslash escapes the next character in the double-quoted ones.
_STRINGS = (
    re.compile(r'"""(?:[^\\]|\\.)*?"""+', re.DOTALL),
    re.compile(r"'''.*?'''+", re.DOTALL),
    re.compile(r'"(?:[^"\\\n]|\\.)*"'),
    re.compile(r"'[^'\n]*'"),
)
_KEY = re.compile(r"""\s*("(?:[^"\\\n]|\\.)*"|'[^'\n]*'|[A-Za-z0-9_-]+)\s*""")


def toml_lines(text: str) -> dict[KeyPath, int]:
    """Line, from 1, of each table header and of each key outside inline tables and arrays.

    Args:
        text: a valid TOML document.

    Returns:
        Key path -> line. A key path consists of names, and of the index of a table in an array of tables: the key ``out`` of
        the second ``[[job]]`` is ``("job", 1, "out")``. The contents of inline tables and arrays have no entries.
    """
    lines: dict[KeyPath, int] = {}
    counts: dict[KeyPath, int] = {}
    table: KeyPath = ()
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
            lines.setdefault(table, line)
            skip(_end_of_line(text, end))
        else:
            names, end = _dotted(text, at)
            path = table
            for name in names:
                path = (*path, name)
                lines.setdefault(path, line)
            skip(max(_end_of_value(text, end), at + 1))
    return lines


def _table(names: list[str], array: bool, counts: dict[KeyPath, int]) -> KeyPath:
    """Key path of a table header; the name of an array of tables stands for its last table."""
    path: KeyPath = ()
    for index, name in enumerate(names):
        path = (*path, name)
        if array and index == len(names) - 1:
            counts[path] = counts.get(path, -1) + 1
        if path in counts:
            path = (*path, counts[path])
    return path


def _dotted(text: str, at: int) -> tuple[list[str], int]:
    """The parts of a dotted key, and the offset of its end."""
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
    """One part of a key, without quotes and escapes."""
    if part.startswith("'"):
        return part[1:-1]
    if part.startswith('"'):
        return str(parse(f"key = {part}")["key"])  # the parser resolves the escapes
    return part


def _end_of_line(text: str, at: int) -> int:
    """Offset of the next line break, or of the end of the text."""
    end = text.find("\n", at)
    return len(text) if end < 0 else end


def _end_of_value(text: str, at: int) -> int:
    """Offset of the end of a value: the first line break outside strings and brackets."""
    depth = 0
    while at < len(text):
        character = text[at]
        if character in "\"'":
            match = next(match for pattern in _STRINGS if (match := pattern.match(text, at)))
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
