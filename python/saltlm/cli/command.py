"""The parser of one command: its help, its headings, and one option for each field of a configuration class."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from ..adaptation.config import DISTILLATION, EVALUATION, MEMORY, OPTIMIZER, STEPS, TEXT
from ..comparison.config import PROBING
from ..config import INPUTS, METHOD, OUTPUT, RUN, TOKENS, TUNING
from ..evaluation.config import WINDOWS
from ..evaluation.side_by_side import CONTINUATIONS, STATISTICS, TASKS
from ..options import Option, options_of

# Headings of the help, in the order in which the help shows them.
HEADINGS = (
    INPUTS,
    PROBING,
    METHOD,
    TUNING,
    TOKENS,
    TEXT,
    STEPS,
    OPTIMIZER,
    DISTILLATION,
    EVALUATION,
    WINDOWS,
    CONTINUATIONS,
    TASKS,
    STATISTICS,
    MEMORY,
    OUTPUT,
    RUN,
)


class HelpFormatter(argparse.HelpFormatter):
    """Breaks lines only at blanks, so that option names such as ``--max-support`` stay whole."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return self._fill_text(text, width, "").splitlines()

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return textwrap.fill(
            " ".join(text.split()),
            width,
            initial_indent=indent,
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
        )


class Command:
    """The parser of one command; its options stand under the headings of :data:`HEADINGS`."""

    def __init__(self, commands: Any, name: str, summary: str, usage: str) -> None:
        """Add a command to the command line.

        Args:
            commands: what ``add_subparsers`` returned.
            name: name of the command.
            summary: a sentence that says what the command does.
            usage: arguments and required options of the command.
        """
        self.parser: argparse.ArgumentParser = commands.add_parser(
            name,
            help=summary,
            description=summary,
            usage=f"saltlm {name} {usage}".strip(),
            formatter_class=HelpFormatter,
        )
        # argparse leaves headings without options out of the help.
        self._groups = {heading: self.parser.add_argument_group(heading) for heading in HEADINGS}

    def add(self, group: str, *names: str, **settings: Any) -> None:
        """Add an option or argument under a heading; ``settings`` are passed to ``ArgumentParser.add_argument``."""
        settings["help"] = settings["help"].replace("%", "%%")
        self._groups[group].add_argument(*names, **settings)

    def add_files(self, group: str, name: str, text: str, **settings: Any) -> None:
        """Add an option that takes one or more files."""
        self.add(group, name, nargs="+", metavar="FILE", help=text, **settings)

    def add_flag(self, group: str, name: str, text: str) -> None:
        """Add an option without a value."""
        self.add(group, name, action="store_true", help=text)

    def add_config(self, config: type, leave_out: Sequence[str] = ()) -> None:
        """Add one option for each field of a configuration class, with the text, default and heading of the field.

        Args:
            config: the class.
            leave_out: names of fields that get no option.
        """
        for entry in options_of(config):
            if entry.name not in leave_out:
                self.add(entry.group, entry.flag, **_settings(entry))


def _settings(entry: Option) -> dict[str, Any]:
    """The arguments of ``add_argument`` for an option. The configuration class checks the values; its messages are clearer."""
    if entry.types == (bool,):
        return {"action": "store_true", "help": entry.help}
    if entry.types == (Mapping,):
        return {"action": "append", "default": [], "metavar": entry.metavar, "help": f"{entry.help} May be repeated."}
    if float in entry.types and str in entry.types:
        read: Any = number_or_rule
    else:
        read = entry.types[0]
    names = choices_metavar(entry.choices) if entry.choices else {int: "INT", float: "FLOAT"}.get(read, "NAME")
    return {"type": read, "default": entry.default, "metavar": entry.metavar or names, "help": entry.help}


def choices_metavar(choices: Sequence[str]) -> str:
    """The placeholder of a value that is one of some names."""
    return "{" + ",".join(choices) + "}"


def number_or_rule(text: str) -> float | str:
    """Convert a number; other texts are names of rules, which the configuration class checks."""
    try:
        return float(text)
    except ValueError:
        return text
