"""The processor of a model that reads images, sound or video: its files, and the tokens that model and processor name."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..alignment.roles import ROLES, named_tokens
from ..files.copy import copy_file
from ..files.json_files import read_json, write_json
from ..protocols import Tokenizer
from .composite import parts_of, text_path, with_entry

PROCESSOR_FILES = ("*processor_config.json",)
# File of older processors with the chat template alone.
TEMPLATE_FILE, TEMPLATE_ENTRY = "chat_template.json", "chat_template"
# Config entries with ids of single tokens.
TOKEN_ENTRY = re.compile(r"_token_(id|ids|index)$")
ROLE_ENTRIES = frozenset(f"{role}_token_id" for role in ROLES)
# Fixed characters that an f-string must have to be taken for a family of tokens, such as ``<row_{i}_col_{j}>``.
MIN_FIXED = 4


def processor_files(folder: Path) -> list[Path]:
    """The files of a folder that configure the processor of the model."""
    return sorted({path for pattern in PROCESSOR_FILES for path in folder.glob(pattern) if path.is_file()})


def processor_template(folder: Path) -> str | None:
    """The chat template that the files of an older processor hold; ``None`` if they hold none.

    Newer processors have that of the tokenizer, ``chat_template.jinja``.
    """
    paths = [folder / TEMPLATE_FILE, *processor_files(folder)]
    templates = (read_json(path).get(TEMPLATE_ENTRY) for path in paths if path.is_file())
    return next((template for template in templates if isinstance(template, str)), None)


def copy_processor(source: Path, folder: Path) -> None:
    """Copy the processor's files of a model folder, without a chat template: the new tokenizer's counts."""
    for path in processor_files(source):
        content = read_json(path)
        if TEMPLATE_ENTRY in content:
            write_json(folder / path.name, {key: value for key, value in content.items() if key != TEMPLATE_ENTRY})
        else:
            copy_file(path, folder / path.name)


def marker_tokens(config: Any, folder: Path, tokenizer: Tokenizer) -> tuple[str, ...]:
    """The tokens without which the model or its processor cannot mark images, sound and video in a text.

    They are the tokens whose ids the config names, the tokens that the tokenizer names besides the common roles, and the added
    tokens that the processor's files or the code of its class spell.

    Args:
        config: a transformers config.
        folder: the model folder.
        tokenizer: of the model.

    Returns:
        Spellings, by ascending id.
    """
    spelling = {index: token for token, index in tokenizer.get_vocab().items()}
    added = tokenizer.get_added_vocab()
    markers = {spelling[index] for index in named_ids(config) if index in spelling}
    markers |= {token for token in named_tokens(tokenizer).values() if token in added}
    files = [read_json(path) for path in processor_files(folder)]
    markers |= {text for content in files for text in _texts(content) if text in added}
    fixed, families = _spelled(_processor_code(config, files))
    markers |= {token for token in added if token in fixed or any(family.fullmatch(token) for family in families)}
    ids = tokenizer.get_vocab()
    return tuple(sorted(markers, key=lambda token: ids[token]))


def named_ids(config: Any) -> set[int]:
    """The token ids that a config and its parts name, without those of the common roles (bos, eos, pad, ...)."""
    entries = [entry for _, part in parts_of(config) for entry in _id_entries(part).items()]
    return {index for key, ids in entries if key not in ROLE_ENTRIES for index in ids}


def _id_entries(part: Any) -> dict[str, list[int]]:
    """Name -> token ids of the entries of a config that name some, without those of the parts nested in it."""
    found = {}
    for key, value in vars(part).items():
        ids = value if isinstance(value, list | tuple) else [value]
        if TOKEN_ENTRY.search(key) and not key.startswith("_") and all(type(index) is int for index in ids):
            found[key] = list(ids)
    return found


def with_defaults(raw: Mapping[str, Any], config: Any, sizes: Iterable[tuple[str, ...]]) -> dict[str, Any]:
    """The content of config.json with the vocabulary sizes and token ids that it leaves to the defaults of its class.

    Defaults are those of the published models: with another vocabulary they would name other tokens.

    Args:
        raw: content of config.json.
        config: the config that transformers reads from it.
        sizes: paths of the entries that hold the vocabulary size.
    """
    text = text_path(config)
    completed = dict(raw)
    for path in sizes:
        completed = with_entry(completed, path, _value(config, (*text, path[-1])))
    for path, part in parts_of(config):
        node: Any = completed
        for name in path:
            node = node.get(name) if isinstance(node, Mapping) else None
        for key in _id_entries(part) if isinstance(node, Mapping) else ():
            names = {key, *(alias for alias, name in part.attribute_map.items() if name == key)}
            if not names & node.keys() and (path in ((), text) or key not in ROLE_ENTRIES):
                completed = with_entry(completed, (*path, key), getattr(part, key))
    return completed


def _value(config: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        config = getattr(config, name)
    return config


def _texts(content: object) -> Iterator[str]:
    """All texts in a JSON value; names of entries do not count."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, Mapping):
        yield from (text for value in content.values() for text in _texts(value))
    elif isinstance(content, list):
        yield from (text for value in content for text in _texts(value))


def _processor_code(config: Any, files: Iterable[Mapping[str, Any]]) -> list[str]:
    """Source code of the processor class of a model, and of the processors in the config's own package of transformers.

    The code is read without being imported: many processors need libraries for images, and a transfer does not.
    """
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

    own = Path(inspect.getfile(type(config))).parent
    names = {str(content["processor_class"]) for content in files if isinstance(content.get("processor_class"), str)}
    names.add(str(PROCESSOR_MAPPING_NAMES.get(config.model_type)))
    packages = {kind.replace("-", "_") for kind, name in PROCESSOR_MAPPING_NAMES.items() if name in names}
    folders = [own, *(own.parent / package for package in sorted(packages))]
    paths = {path for folder in folders for path in folder.glob("processing_*.py")}
    return [path.read_text(encoding="utf-8") for path in sorted(paths)]


def _spelled(codes: Iterable[str]) -> tuple[set[str], list[re.Pattern[str]]]:
    """The texts that Python code spells: constants, and patterns of the texts that f-strings with fixed parts give."""
    fixed: set[str] = set()
    families = []
    for code in codes:
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                fixed.add(node.value)
            elif isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else None for part in node.values]
                if sum(len(str(part)) for part in parts if part is not None) >= MIN_FIXED:
                    pattern = "".join(r"\S+?" if part is None else re.escape(str(part)) for part in parts)
                    families.append(re.compile(pattern))
    return fixed, families
