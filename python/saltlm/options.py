"""Options of the configuration classes: each is declared, typed and documented in one place, the field of its class.

The class docstring, the command line and the reader of jobs files all take their texts, types and choices from there. Texts
live in the metadata of the fields, not in docstrings, because ``python -OO`` drops docstrings.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import math
import re
import textwrap
import types
import typing
from typing import Any, TypeVar

from .errors import input_error

Config = TypeVar("Config")
DOC_WIDTH = 100  # columns of a generated docstring


@dataclasses.dataclass(frozen=True, kw_only=True)
class Option:
    """One option, read from a field of a configuration class.

    Attributes:
        name: of the field, such as ``max_support``.
        default: value of the field in a new configuration.
        text: what the option does, with unit and range, and the default where a plain value would not explain it.
        group: heading under which the command line lists the option.
        metavar: placeholder of the value on the command line, where the type does not give a better one.
        types: accepted types, in the order of the annotation; ``str`` stands for a ``Literal``, and ``None`` is left out.
        choices: accepted names, where the annotation holds a ``Literal``.
        optional: whether ``None`` is accepted.
    """

    name: str
    default: Any
    text: str
    group: str
    metavar: str | None
    types: tuple[type, ...]
    choices: tuple[str, ...]
    optional: bool

    @property
    def flag(self) -> str:
        """Spelling on the command line, such as ``--max-support``."""
        return "--" + self.name.replace("_", "-")

    @property
    def help(self) -> str:
        """The text with the choices and the default filled in."""
        text = self.text.replace("{choices}", ", ".join(self.choices))
        if "Default:" in text or isinstance(self.default, bool):
            return text
        return (
            f"{text} Default: {self.default:g}."
            if isinstance(self.default, float)
            else f"{text} Default: {self.default}."
        )


def option(default: Any, help: str, *, group: str, metavar: str | None = None) -> Any:
    """Declare a field of a configuration class.

    Args:
        default: value of the field; a dictionary is copied for each object.
        help: what the option does: verb, object, unit and range. Other options are spelled as on the command line
            (``--max-support``), and ``{choices}`` stands for the names of the field's ``Literal``. The default is added to
            the text unless the text states it after the word ``Default:``, as it must where the default is ``None``.
        group: heading under which the command line lists the option.
        metavar: placeholder of the value on the command line; by default the choices, or else the name of the type.

    Returns:
        A dataclass field.
    """
    metadata = {"text": help, "group": group, "metavar": metavar}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=default.copy, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@functools.cache
def options_of(config: type) -> tuple[Option, ...]:
    """The options of a configuration class, in the order of its fields.

    Args:
        config: a dataclass whose fields are all declared by :func:`option`.
    """
    hints = typing.get_type_hints(config)
    return tuple(_read_option(field, hints[field.name]) for field in dataclasses.fields(config))


def documented(config: type[Config]) -> type[Config]:
    """Class decorator: list the options of a configuration class in the ``Attributes`` section of its docstring."""
    doc = inspect.cleandoc(config.__doc__ or "")
    if doc.startswith(
        f"{config.__name__}("
    ):  # without a docstring (python -OO), dataclass puts the whole signature there
        doc = config.__name__
    head, raises, tail = doc.partition("\n\nRaises:")
    config.__doc__ = f"{head}\n\n{_attributes(config)}{raises}{tail}"
    return config


def check_choice(name: str, value: object, known: tuple[str, ...]) -> None:
    """Refuse a value that is not one of the known names.

    Args:
        name: of the option.
        value: as given.
        known: the accepted names.

    Raises:
        InputError: it is none of them; the message names the nearest one.
    """
    if value not in known:
        near = difflib.get_close_matches(str(value), known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "choose one of these"
        raise input_error(name, repr(value), "one of " + ", ".join(known), hint)


def check_choices(config: Any) -> None:
    """Apply :func:`check_choice` to every option of a configuration that takes nothing but names.

    Args:
        config: an object of a configuration class.

    Raises:
        InputError: a value is none of the option's names.
    """
    config_class: Any = type(config)
    for entry in options_of(config_class):
        value = getattr(config, entry.name)
        if entry.choices and entry.types == (str,) and not (value is None and entry.optional):
            check_choice(entry.name, value, entry.choices)


def is_whole_number(value: object, least: float, most: float = math.inf) -> bool:
    """Whether a value is an integer in [least, most]; ``True`` and ``False`` are none."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def is_number(value: object) -> typing.TypeGuard[float]:
    """Whether a value is a finite integer or float; ``True`` and ``False`` are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _read_option(field: dataclasses.Field[Any], annotation: Any) -> Option:
    default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    accepted: list[type] = []
    choices: list[str] = []
    optional = False
    for part in _alternatives(annotation):
        if part is type(None):
            optional = True
        elif typing.get_origin(part) is typing.Literal:
            choices += typing.get_args(part)
            accepted.append(str)
        else:
            accepted.append(typing.get_origin(part) or part)
    return Option(
        name=field.name,
        default=default,
        types=tuple(accepted),
        choices=tuple(choices),
        optional=optional,
        **field.metadata,
    )


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    """The members of a union; anything else is its only member."""
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return typing.get_args(annotation) if is_union else (annotation,)


def _attributes(config: type) -> str:
    """The ``Attributes`` section: the texts with Python names of options, all choices, and the defaults of switches."""
    lines = ["Attributes:"]
    for entry in options_of(config):
        text = re.sub(r"--([a-z][a-z0-9-]*)", lambda flag: f"``{flag[1].replace('-', '_')}``", entry.help)
        if not all(choice in text for choice in entry.choices):
            text += f" One of: {', '.join(entry.choices)}."
        if isinstance(entry.default, bool):
            text += f" Default: {'on' if entry.default else 'off'}."
        elif entry.optional and entry.default is not None:
            text += " ``None`` turns it off."
        lines += textwrap.wrap(
            f"{entry.name}: {text}",
            DOC_WIDTH,
            initial_indent="    ",
            subsequent_indent="        ",
            break_long_words=False,
            break_on_hyphens=False,
        )
    return "\n".join(lines)
