"""JSON files: read with checks, written whole."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import input_error
from .output_folder import sync_path
from .read import refuse_lfs_pointer


def read_json(path: Path) -> dict[str, object]:
    """A JSON object from a file.

    Raises:
        InputError: the file is missing, unreadable, or holds something else.
    """
    try:
        data = path.read_bytes()
        refuse_lfs_pointer(path, data[:64])
        content = json.loads(data)
    except FileNotFoundError:
        raise input_error(str(path), "no such file", "a model folder with one", "check the folder") from None
    except OSError as error:
        raise input_error(str(path), f"{error.strerror}", "a readable file", "check its permissions") from None
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise input_error(str(path), f"a broken file ({error})", "JSON", "fetch or save the model again") from None
    if not isinstance(content, dict):
        raise input_error(str(path), f"a {type(content).__name__}", "a JSON object", "fetch or save the model again")
    return content


def write_json_whole(path: Path, content: Mapping[str, Any]) -> None:
    """A JSON file, by a neighbour and a rename."""
    temporary = path.with_name(f".{path.name}.writing")
    temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    sync_path(temporary)
    temporary.replace(path)
