"""A tokenizer in any of its forms -> tokens as bytes, with their special roles, ready for alignment."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import _rust
from ..errors import InputError, first_line, input_error
from .roles import roles_by_spelling, roles_in, roles_of

# A token's flags, as the native vocabulary reports them.
WORD_START, SPECIAL, BYTE_PIECE, HOLE, ADDED = 1, 2, 4, 8, 16

TAKEN = "a folder, a tokenizer.json, .tiktoken or tekken.json file, or a fast tokenizer"
_RANKS = re.compile(rb"[A-Za-z0-9+/]+=*[ ]\d+\s")
_TEKKEN = re.compile(rb'"token_bytes"\s*:\s*"')
_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


@dataclasses.dataclass(frozen=True)
class Tokens:
    """A tokenizer made ready for alignment.

    Attributes:
        vocabulary: the native vocabulary (canonical bytes, flags, segmentation).
        roles: special role -> id.
        ids: spelling of special and added tokens -> id.
        name: what to call it in messages.
    """

    vocabulary: _rust.Vocabulary
    roles: Mapping[str, int]
    ids: Mapping[str, int]
    name: str

    def find(self, spelling: str) -> int | None:
        """The id of the token that the tokenizer spells so, special or not; ``None`` where there is none."""
        known = self.ids.get(spelling)
        return self.vocabulary.find(spelling) if known is None else known


def load_tokens(tokenizer: Any, side: str = "tokenizer") -> Tokens:
    """Make a tokenizer ready for alignment.

    Roles come from the object or from the files beside ``tokenizer.json``; where nothing names any, from the usual
    spellings of its special tokens (:data:`saltlm.alignment.roles.SPELLINGS`).

    Args:
        tokenizer: a folder, a hub name, a ``tokenizer.json``, tiktoken ranks or ``tekken.json`` file, or a tokenizer object
            of transformers or tokenizers.
        side: what to call it in messages, beside its path.

    Raises:
        InputError: it is missing, broken, or of a kind that is not known.
    """
    if isinstance(tokenizer, Tokens):
        return tokenizer
    if isinstance(tokenizer, (str, Path)):
        return _from_path(Path(tokenizer), side)
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if not hasattr(backend, "to_str"):
        found = f"a {type(tokenizer).__name__}"
        raise input_error(f"{side} tokenizer", found, TAKEN, "load it with AutoTokenizer.from_pretrained(...)")
    data = backend.to_str().encode()
    if not hasattr(tokenizer, "convert_tokens_to_ids"):
        return _from_json(data, side)
    roles = roles_of(tokenizer)
    special = [int(i) for i in getattr(tokenizer, "all_special_ids", [])]
    return _from_json(data, str(getattr(tokenizer, "name_or_path", "")) or side, roles, special)


def _from_json(
    data: bytes, name: str, roles: Mapping[str, int] | None = None, special: list[int] | None = None
) -> Tokens:
    marked = sorted({*(special or []), *(roles or {}).values()})
    vocabulary = _native(lambda: _rust.Vocabulary.from_tokenizer_json(data, marked, name))
    return _named(vocabulary, name, roles)


def _named(vocabulary: _rust.Vocabulary, name: str, roles: Mapping[str, int] | None) -> Tokens:
    ids = dict(vocabulary.added())
    if not roles:
        flags = vocabulary.flags()
        roles = roles_by_spelling({spelling: index for spelling, index in ids.items() if flags[index] & SPECIAL})
    return Tokens(vocabulary, roles, ids, name)


def _native(read: Any) -> _rust.Vocabulary:
    try:
        return read()
    except ValueError as error:
        raise InputError(str(error)) from None


def _from_path(path: Path, side: str) -> Tokens:
    if os.path.isdir(path):
        if (path / "tokenizer.json").is_file():
            return _from_folder(path)
        if (path / "tekken.json").is_file():
            return _from_path(path / "tekken.json", side)
        return load_tokens(_through_transformers(path, side), side)
    if not os.path.isfile(path):
        if _HUB_NAME.fullmatch(str(path)) and path.suffix not in (".json", ".tiktoken", ".model"):
            return load_tokens(_through_transformers(path, side), side)
        raise input_error(f"{side} tokenizer", f"nothing at {path}", TAKEN, "check the path")
    data = _read(path)
    if path.suffix == ".tiktoken" or _RANKS.match(data):
        return _named(_native(lambda: _rust.Vocabulary.from_tiktoken(data, [], str(path))), str(path), None)
    if _TEKKEN.search(data, 0, 1 << 16):
        return _from_tekken(data, str(path))
    if path.suffix == ".model":
        raise input_error(
            f"{side} tokenizer {path}", "a SentencePiece model", TAKEN, "name its folder: transformers converts it"
        )
    return _from_json(data, str(path))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise input_error(str(path), f"a file that cannot be read ({error.strerror})", TAKEN, "check it") from error


def _from_folder(folder: Path) -> Tokens:
    path = folder / "tokenizer.json"
    data = _read(path)
    plain = _from_json(data, str(path))
    roles = roles_in(folder, plain.find)
    if not roles:
        return plain
    # A role's token is special even where the file does not say so; only then is a second reading needed.
    flags = plain.vocabulary.flags()
    if any(not flags[token] & SPECIAL for token in roles.values()):
        return _from_json(data, str(path), roles)
    return dataclasses.replace(plain, roles=roles)


def _from_tekken(data: bytes, name: str) -> Tokens:
    """Mistral's own format: ranks in JSON, of which the first so many are used, after the special tokens."""
    try:
        content = json.loads(data)
        config = content["config"]
        special = int(config["default_num_special_tokens"])
        own = content["vocab"][: int(config["default_vocab_size"]) - special]
        lines = [f"{token['token_bytes']} {int(token['rank']) + special}" for token in own]
        named = [(str(token["token_str"]), int(token["rank"])) for token in content.get("special_tokens") or []]
    except (ValueError, KeyError, TypeError) as error:
        found = f"a broken file ({type(error).__name__}: {error})"
        raise input_error(name, found, "a tekken.json", "fetch the file again") from error
    # Files of the first version name no special tokens; mistral-common's own list for them begins so.
    named = named or [(spelling, index) for index, spelling in enumerate(("<unk>", "<s>", "</s>"))]
    read = "\n".join(lines).encode()
    return _named(_native(lambda: _rust.Vocabulary.from_tiktoken(read, named, name)), name, None)


def _through_transformers(name: Path, side: str) -> Any:
    """A SentencePiece model, a ``vocab.txt`` or a hub name: transformers converts it to a fast tokenizer."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(name), trust_remote_code=False)
    except Exception as error:  # converters raise bare Exceptions for broken files
        reason = first_line(error)
        raise input_error(
            f"{side} tokenizer {name}",
            f"nothing transformers can load ({reason})",
            "a folder with tokenizer.json, or a hub name that is cached or reachable",
            "check the name; offline, fetch it first",
        ) from error
