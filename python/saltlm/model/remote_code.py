"""Python code in a model folder: what a written folder keeps of it.

Entries ``auto_map`` of the configuration files name classes in such code. Code and entries are taken over only where the user
lets transformers run the code of the model (``trust_remote_code``).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files.json_files import read_json, write_json
from ..files.open_file import FileKind, read_file
from .portable import PLAIN, PLAIN_FILE, PLAIN_MAP

# Files of a model folder whose entry ``auto_map`` transformers follows.
MAPPED = ("config.json", "tokenizer_config.json", "*processor_config.json")


def is_plain(path: Path) -> bool:
    """Whether a file is the code that saltlm writes beside a tokenizer."""
    return path.name == PLAIN_FILE and path.is_file() and read_file(path, FileKind.TERMS) == PLAIN.encode()


def without_auto_map(content: Mapping[str, Any], *, plain: bool = False) -> dict[str, Any]:
    """A configuration without the entry that names classes in the model's code.

    Args:
        content: of the configuration file.
        plain: keep the entry that names :data:`PLAIN`, because the folder has that file.
    """
    kept = dict(content)
    if not (plain and kept.get("auto_map") == PLAIN_MAP):
        kept.pop("auto_map", None)
    return kept


def drop_auto_maps(folder: Path) -> None:
    """Remove ``auto_map`` from the configuration files of a folder, except an entry that names :data:`PLAIN`."""
    plain = is_plain(folder / PLAIN_FILE)
    for path in sorted({path for pattern in MAPPED for path in folder.glob(pattern) if path.is_file()}):
        try:
            content = read_json(path)
        except InputError:  # not a configuration that transformers could follow
            continue
        changed = without_auto_map(content, plain=plain)
        if changed != content:
            write_json(path, changed)
