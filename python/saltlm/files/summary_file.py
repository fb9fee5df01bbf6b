"""saltlm.json, the summary beside a model: its name and versions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SUMMARY = "saltlm.json"
# Version of the folder: which files it holds.
FORMAT = 1
# Version of saltlm.json: its keys and their meaning. It is raised when a reader of an older version would be wrong.
SCHEMA_VERSION = 1


def schema_version_of(summary: Mapping[str, Any]) -> int:
    """The schema version of a ``saltlm.json``; a file without the entry is of version 1, which was written without it.

    Args:
        summary: what the file holds.
    """
    return summary.get("schema_version", 1)
