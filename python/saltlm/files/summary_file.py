"""saltlm.json, the summary of a model that saltlm wrote: file name and versions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SUMMARY = "saltlm.json"
# Version of the folder: which files it contains.
FORMAT = 1
# Version of saltlm.json: its keys and their meaning. It increases when a reader of an older version would misread the file.
SCHEMA_VERSION = 1


def schema_version_of(summary: Mapping[str, Any]) -> int:
    """Schema version of a ``saltlm.json``: 1 if it does not name one, because the first version did not.

    Args:
        summary: content of the file.
    """
    return summary.get("schema_version", 1)
