"""Hooks of mkdocs: the reference of the command line and of the options is generated from the code.

A page may contain ``<!-- saltlm COMMAND -->``, which becomes the help text of the command, ``<!-- options NAME -->``, which
becomes a table of the options of that configuration class, and ``<!-- methods -->``, which becomes a table of all methods.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import Any

import saltlm
from saltlm.options import options_of

MARK = re.compile(r"^<!-- (saltlm|options|methods) ?([\w-]*) ?-->$", re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the marks of a page."""
    return MARK.sub(lambda mark: WRITERS[mark[1]](mark[2]), markdown)


def _help(command: str) -> str:
    environment = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"}
    words = [sys.executable, "-m", "saltlm", *([command] if command else []), "--help"]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, check=True)
    return f"```text\n{done.stdout.rstrip()}\n```"


def _options(name: str) -> str:
    lines = ["| option | default | meaning |", "| --- | --- | --- |"]
    for entry in options_of(getattr(saltlm, name)):
        text = entry.help.replace("|", "\\|")
        lines.append(f"| `{entry.name}` | `{entry.default!r}` | {text} |")
    return "\n".join(lines)


def _methods(_: str) -> str:
    from saltlm.rows.methods import describe_methods

    lines = ["| method | row of a new token | needs | options | source |", "| --- | --- | --- | --- | --- |"]
    for entry in describe_methods():
        options = " ".join(f"`--{option.removeprefix('--').replace('_', '-')}`" for option in entry["options"])
        cells = (f"`{entry['name']}`", entry["summary"], ", ".join(entry["needs"]), options, entry["source"])
        lines.append(f"| {' | '.join(cell or '-' for cell in cells)} |")
    return "\n".join(lines)


WRITERS = {"saltlm": _help, "options": _options, "methods": _methods}
