"""What a transfer's self-check has left beside its model, read back."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import input_error

# What it says, at least.
HELDOUT = ("tokens", "candidates", "relative_error", "cosine", "rank")


def read_heldout(model: str | Path | tuple[Any, Any]) -> Mapping[str, Any] | None:
    """The held-out check that a transfer has written beside its model.

    Args:
        model: a folder or hub name; a pair that is loaded has none.

    Returns:
        What its ``saltlm.json`` holds, or ``None``.

    Raises:
        InputError: the report is broken.
    """
    from ..files.json_files import read_json

    report = None if isinstance(model, tuple | list) else Path(model) / "saltlm.json"
    if report is None or not os.path.isfile(report):
        return None
    found = read_json(report).get("heldout")
    if found is not None and not (isinstance(found, dict) and all(_number(found.get(name)) for name in HELDOUT)):
        expected = "null or numbers named " + ", ".join(HELDOUT)
        raise input_error(f"{report}, heldout", repr(found)[:80], expected, "transfer again, or remove the file")
    return found


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
