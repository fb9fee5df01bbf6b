"""JSON files: read with checks, written with one format."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import InputError, input_error
from .file_errors import refuse_lfs_pointer
from .open_file import FileKind, file_kind, read_file
from .output_folder import sync_path


def parse_json(data: str | bytes) -> Any:
    """The value of a JSON text from a file.

    Raises:
        ValueError: the text is not JSON, not UTF-8, nested too deeply, or has an integer of more digits than Python converts.
    """
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_json(path: Path, *, inside: Path | None = None) -> dict[str, Any]:
    """Read a file that holds one JSON object. Its name tells its kind, and so its largest size.

    Args:
        path: the file.
        inside: an input folder, which links may not lead out of; see :func:`~saltlm.files.open_file.open_file`.

    Raises:
        InputError: the file is missing, unreadable, no regular file, too large, or holds something else.
    """
    kind = file_kind(path.name)
    try:
        data = read_file(path, FileKind.SETTINGS if kind is None or kind.limit is None else kind, inside=inside)
        refuse_lfs_pointer(path, data[:64])
        content = parse_json(data)
    except FileNotFoundError:
        raise input_error(str(path), "no such file", "a model folder with one", "check the folder") from None
    except OSError as error:
        raise input_error(str(path), f"{error.strerror}", "a readable file", "check its permissions") from None
    except InputError:
        raise
    except ValueError as error:
        raise input_error(str(path), f"a broken file ({error})", "JSON", "fetch or save the model again") from None
    if not isinstance(content, dict):
        raise input_error(str(path), f"a {type(content).__name__}", "a JSON object", "fetch or save the model again")
    return content


def merged(content: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a JSON object with some entries changed.

    Args:
        content: the object.
        changes: key -> new value. Where both values are objects, the changes apply inside the object.

    Example:
        >>> merged({"a": 1, "part": {"b": 2, "c": 3}}, {"part": {"c": 4}})
        {'a': 1, 'part': {'b': 2, 'c': 4}}
    """
    result = dict(content)
    for key, value in changes.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


def json_bytes(content: Mapping[str, Any], *, indent: int = 2, allow_nan: bool = True) -> bytes:
    """Content of a JSON file: UTF-8, indented, with a line end.

    Args:
        content: the JSON object.
        indent: spaces per level, in [0, inf).
        allow_nan: write NaN and infinity, as some models' config.json have them; ``False`` refuses them.

    Raises:
        ValueError: a number is NaN or infinite and ``allow_nan`` is ``False``.
    """
    return (json.dumps(content, indent=indent, ensure_ascii=False, allow_nan=allow_nan) + "\n").encode()


def write_json(path: Path, content: Mapping[str, Any], *, indent: int = 2) -> None:
    """Write a JSON file into a folder that is not visible under its final name yet.

    Args:
        path: the file.
        content: the JSON object.
        indent: spaces per level, in [0, inf).

    Raises:
        OSError: writing failed.
    """
    path.write_bytes(json_bytes(content, indent=indent))


def write_json_whole(path: Path, content: Mapping[str, Any]) -> None:
    """Replace a JSON file atomically: write a temporary file in the same folder, sync it, then rename it.

    Args:
        path: the file; it may exist.
        content: the JSON object.

    Raises:
        OSError: writing failed.
    """
    temporary = path.with_name(f".{path.name}.writing")
    temporary.unlink(missing_ok=True)
    with temporary.open("xb") as file:  # not through a link that stands at this name
        file.write(json_bytes(content))
    sync_path(temporary)
    temporary.replace(path)
