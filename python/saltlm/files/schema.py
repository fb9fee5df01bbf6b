"""Check of JSON values against the typed dictionaries that describe a file."""

from __future__ import annotations

import types
import typing
from typing import Any


def faults(value: object, hint: Any, path: str = "", *, allow_unknown: bool = False) -> list[str]:
    """Where a JSON value is not of a type.

    Args:
        value: a JSON value.
        hint: a typed dictionary, or a type that one of its entries has.
        path: of the value in the file, for the sentences.
        allow_unknown: accept keys that a typed dictionary does not name.

    Returns:
        One sentence for each fault; none where the value is of the type.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)

    def inner(item: object, item_hint: Any, name: object) -> list[str]:
        return faults(item, item_hint, f"{path}/{name}", allow_unknown=allow_unknown)

    if typing.is_typeddict(hint):
        if not isinstance(value, dict):
            return [f"{path}: a {type(value).__name__}, not an object"]
        hints = typing.get_type_hints(hint)
        problems = [f"{path}: no {name}" for name in sorted(hint.__required_keys__ - value.keys())]
        if not allow_unknown:
            problems += [f"{path}: the unknown key {name}" for name in sorted(value.keys() - hints.keys())]
        return problems + [fault for name in hints if name in value for fault in inner(value[name], hints[name], name)]
    if origin in (typing.Union, types.UnionType):
        alternatives = [faults(value, option, path, allow_unknown=allow_unknown) for option in arguments]
        return [] if [] in alternatives else alternatives[0]
    if origin is list and isinstance(value, list):
        return [fault for index, item in enumerate(value) for fault in inner(item, arguments[0], index)]
    if origin is tuple and isinstance(value, list):  # JSON has no tuples
        if len(value) != len(arguments):
            return [f"{path}: {len(value)} entries, not {len(arguments)}"]
        pairs = zip(value, arguments, strict=True)
        return [fault for index, (item, part) in enumerate(pairs) for fault in inner(item, part, index)]
    if origin is dict and isinstance(value, dict):
        return [fault for name, item in value.items() for fault in inner(item, arguments[1], name)]
    accepted = (int, float) if hint is float else origin or hint
    same = hint is Any or (isinstance(value, accepted) and (hint is bool or not isinstance(value, bool)))
    return [] if same else [f"{path}: {value!r:.40}, not {getattr(hint, '__name__', hint)}"]
