"""The processor of a model that reads images, sound or video: its files, and the tokens that model and processor name."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..alignment.roles import ROLES, named_tokens
from ..files.json_files import read_json
from ..protocols import Tokenizer
from .composite import parts_of

PROCESSOR_FILES = ("*processor_config.json",)
# File of older processors with the chat template alone.
TEMPLATE_FILE = "chat_template.json"
# Config entries with ids of single tokens.
TOKEN_ENTRY = re.compile(r"_token_(id|ids|index)$")
ROLE_ENTRIES = frozenset(f"{role}_token_id" for role in ROLES)
# Fixed characters that an f-string must have to be taken for a family of tokens, such as ``<row_{i}_col_{j}>``.
MIN_FIXED = 4


def processor_files(folder: Path) -> list[Path]:
    """The files of a folder that configure the processor of the model, without its chat template."""
    return sorted({path for pattern in PROCESSOR_FILES for path in folder.glob(pattern) if path.is_file()})


def processor_template(folder: Path) -> str | None:
    """The chat template of an older processor, which has a file of its own; ``None`` if there is no such file."""
    path = folder / TEMPLATE_FILE
    template = read_json(path).get("chat_template") if path.is_file() else None
    return template if isinstance(template, str) else None


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
    ids: set[int] = set()
    for _, part in parts_of(config):
        for key, value in vars(part).items():
            if TOKEN_ENTRY.search(key) and key not in ROLE_ENTRIES:
                values = value if isinstance(value, list | tuple) else [value]
                ids |= {index for index in values if isinstance(index, int) and not isinstance(index, bool)}
    return ids


def _texts(content: object) -> Iterator[str]:
    """All texts among the values of a JSON value."""
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
