"""Load a tokenizer in any of its forms as a native vocabulary (tokens as bytes) with the roles of its special tokens."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .. import _rust
from ..errors import InputError, first_line, input_error
from ..files.json_files import parse_json
from ..files.open_file import FileKind, check_model_folder, read_file
from .roles import roles_by_spelling, roles_in, roles_of

# Flags of a token in the native vocabulary. HOLE: an id without a token.
WORD_START, SPECIAL, BYTE_PIECE, HOLE, ADDED = 1, 2, 4, 8, 16

ACCEPTED = "a folder, a tokenizer.json, .tiktoken or tekken.json file, or a fast tokenizer"
_RANKS = re.compile(rb"[A-Za-z0-9+/]+=*[ ]\d+\s")
_TEKKEN = re.compile(rb'"token_bytes"\s*:\s*"')
_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


@dataclasses.dataclass(frozen=True)
class Tokens:
    """A tokenizer as :func:`~saltlm.alignment.align.align` needs it.

    Attributes:
        vocabulary: the native vocabulary (canonical bytes, flags, segmentation).
        roles: special role -> id.
        ids: spelling of special and added tokens -> id.
        name: name of the tokenizer in messages.
    """

    vocabulary: _rust.Vocabulary
    roles: Mapping[str, int]
    ids: Mapping[str, int]
    name: str

    def find(self, spelling: str) -> int | None:
        """Id of the token with this spelling, special or not; ``None`` if there is none."""
        index = self.ids.get(spelling)
        return self.vocabulary.find(spelling) if index is None else index


def load_tokens(tokenizer: Any, side: str = "tokenizer") -> Tokens:
    """Load a tokenizer for alignment.

    Roles come from the object, or from the files in the folder of ``tokenizer.json``; if these name none, from the usual
    spellings of its special tokens (:data:`saltlm.alignment.roles.SPELLINGS`).

    Args:
        tokenizer: a folder, a hub name, a ``tokenizer.json``, tiktoken ranks or ``tekken.json`` file, or a tokenizer object
            of transformers or tokenizers.
        side: name of the tokenizer in messages, next to its path.

    Raises:
        InputError: the tokenizer is missing, broken, or of an unknown kind.
    """
    if isinstance(tokenizer, Tokens):
        return tokenizer
    if isinstance(tokenizer, (str, Path)):
        return _from_path(Path(tokenizer), side)
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if not hasattr(backend, "to_str"):
        found = f"a {type(tokenizer).__name__}"
        raise input_error(f"{side} tokenizer", found, ACCEPTED, "load it with AutoTokenizer.from_pretrained(...)")
    data = backend.to_str().encode()
    if not hasattr(tokenizer, "convert_tokens_to_ids"):
        return _from_json(data, side)
    roles = roles_of(tokenizer)
    special = [int(i) for i in getattr(tokenizer, "all_special_ids", [])]
    return _from_json(data, str(getattr(tokenizer, "name_or_path", "")) or side, roles, special)


def _from_json(
    data: bytes, name: str, roles: Mapping[str, int] | None = None, special: list[int] | None = None
) -> Tokens:
    """Tokens of the content of a ``tokenizer.json``; the ids in ``special`` and ``roles`` become special tokens."""
    special_ids = sorted({*(special or []), *(roles or {}).values()})
    vocabulary = _native(lambda: _rust.Vocabulary.from_tokenizer_json(data, special_ids, name))
    return _with_roles(vocabulary, name, roles)


def _with_roles(vocabulary: _rust.Vocabulary, name: str, roles: Mapping[str, int] | None) -> Tokens:
    """Tokens of a native vocabulary; without given roles, those of the usual spellings."""
    ids = dict(vocabulary.added())
    if not roles:
        flags = vocabulary.flags()
        roles = roles_by_spelling({spelling: index for spelling, index in ids.items() if flags[index] & SPECIAL})
    return Tokens(vocabulary, roles, ids, name)


def _native(read: Callable[[], _rust.Vocabulary]) -> _rust.Vocabulary:
    """Call the native reader and turn its errors into InputError."""
    try:
        return read()
    except ValueError as error:
        raise InputError(str(error)) from None


def _from_path(path: Path, side: str) -> Tokens:
    """Tokens of a folder, a file or a hub name."""
    if os.path.isdir(path):
        check_model_folder(path, f"{side} tokenizer")
        if (path / "tokenizer.json").is_file():
            return _from_folder(path)
        if (path / "tekken.json").is_file():
            return _from_path(path / "tekken.json", side)
        return load_tokens(_through_transformers(path, side), side)
    if not os.path.lexists(path):
        if _HUB_NAME.fullmatch(str(path)) and path.suffix not in (".json", ".tiktoken", ".model"):
            return load_tokens(_through_transformers(path, side), side)
        raise input_error(f"{side} tokenizer", f"nothing at {path}", ACCEPTED, "check the path")
    data = _read(path)
    if path.suffix == ".tiktoken" or _RANKS.match(data):
        return _with_roles(_native(lambda: _rust.Vocabulary.from_tiktoken(data, [], str(path))), str(path), None)
    if _TEKKEN.search(data, 0, 1 << 16):
        return _from_tekken(data, str(path))
    if path.suffix == ".model":
        raise input_error(
            f"{side} tokenizer {path}", "a SentencePiece model", ACCEPTED, "name its folder: transformers converts it"
        )
    return _from_json(data, str(path))


def _read(path: Path) -> bytes:
    try:
        return read_file(path, FileKind.TOKENIZER)
    except OSError as error:
        raise input_error(str(path), f"a file that cannot be read ({error.strerror})", ACCEPTED, "check it") from error


def _from_folder(folder: Path) -> Tokens:
    """Tokens of a folder with ``tokenizer.json``, with the roles that the folder's other files name."""
    path = folder / "tokenizer.json"
    data = _read(path)
    tokens = _from_json(data, str(path))
    roles = roles_in(folder, tokens.find)
    if not roles:
        return tokens
    # A token with a role is special. If tokenizer.json does not mark it so, the vocabulary is read again with its id.
    flags = tokens.vocabulary.flags()
    if any(not flags[token] & SPECIAL for token in roles.values()):
        return _from_json(data, str(path), roles)
    return dataclasses.replace(tokens, roles=roles)


def _from_tekken(data: bytes, name: str) -> Tokens:
    """Tokens of a ``tekken.json`` (Mistral): special tokens first, then as many ranks as fill ``default_vocab_size``."""
    try:
        content = parse_json(data)
        config = content["config"]
        special = int(config["default_num_special_tokens"])
        entries = content["vocab"][: int(config["default_vocab_size"]) - special]
        lines = [f"{token['token_bytes']} {int(token['rank']) + special}" for token in entries]
        named = [(str(token["token_str"]), int(token["rank"])) for token in content.get("special_tokens") or []]
    except (ValueError, KeyError, TypeError) as error:
        found = f"a broken file ({type(error).__name__}: {error})"
        raise input_error(name, found, "a tekken.json", "fetch the file again") from error
    # Files of the first version name no special tokens; mistral-common's list for these files begins with the following.
    named = named or [(spelling, index) for index, spelling in enumerate(("<unk>", "<s>", "</s>"))]
    ranks = "\n".join(lines).encode()
    return _with_roles(_native(lambda: _rust.Vocabulary.from_tiktoken(ranks, named, name)), name, None)


def _through_transformers(name: Path, side: str) -> Any:
    """Fast tokenizer of a folder or a hub name by transformers, which converts SentencePiece models and ``vocab.txt``."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(name), trust_remote_code=False)
    except Exception as error:  # converters raise bare Exceptions for broken files
        raise input_error(
            f"{side} tokenizer {name}",
            f"nothing transformers can load ({first_line(error)})",
            "a folder with tokenizer.json, or a hub name that is cached or reachable",
            "check the name; offline, fetch it first",
        ) from error
