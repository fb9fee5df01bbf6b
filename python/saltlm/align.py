"""Two tokenizers -> a verdict for every target token, and covers of the unmatched ones (step 1)."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from . import _rust
from .config import OVERLAPS
from .errors import InputError, input_error
from .roles import match_roles, roles_in, roles_of

# A token's flags, as the native vocabulary reports them.
WORD_START, SPECIAL, BYTE_PIECE, HOLE, ADDED = 1, 2, 4, 8, 16


class MatchKind(enum.IntEnum):
    """Why a target token counts as shared.

    ``EXACT``: same bytes, same word start. ``WORD_START``: the word start differs. ``CASE``: case differs. ``ROLE``: special
    tokens of the same role or spelling. ``BYTE``: a byte-fallback piece and a token of that byte.
    """

    NONE = 0
    EXACT = 1
    WORD_START = 2
    CASE = 3
    ROLE = 4
    BYTE = 5


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


@dataclasses.dataclass(frozen=True)
class Alignment:
    """Where each of the ``T`` target tokens has its like among the ``S`` source tokens.

    Attributes:
        kind: uint8 [T], a :class:`MatchKind`.
        source_id: int32 [T], -1 for none.
        cover_offsets: int64 [T+1]; token ``t``'s cover is ``cover_ids[cover_offsets[t]:cover_offsets[t + 1]]``.
        cover_ids: int32, the source pieces whose bytes joined are the token's; empty for matched tokens and for those that
            the source cannot spell.
        source: the native source vocabulary.
        target: the native target vocabulary.
    """

    kind: np.ndarray
    source_id: np.ndarray
    cover_offsets: np.ndarray
    cover_ids: np.ndarray
    source: _rust.Vocabulary = dataclasses.field(repr=False)
    target: _rust.Vocabulary = dataclasses.field(repr=False)

    def __post_init__(self) -> None:
        size = self.target.size
        shapes = (self.kind.shape, self.source_id.shape, self.cover_offsets.shape, self.cover_ids.ndim)
        if shapes != ((size,), (size,), (size + 1,), 1):
            raise ValueError(f"an alignment of {size} target tokens cannot have shapes {shapes}")

    def __repr__(self) -> str:
        return f"Alignment(S={self.source.size}, T={self.target.size}, {self.counts()})"

    @property
    def shared(self) -> np.ndarray:
        """Bool [T]: the token has a source id."""
        return self.source_id >= 0

    def counts(self) -> dict[str, int]:
        """How many target tokens have each :class:`MatchKind`, by its lower-case name."""
        found = np.bincount(self.kind, minlength=len(MatchKind))
        return {kind.name.lower(): int(found[kind]) for kind in MatchKind}

    def cover(self, token: int) -> np.ndarray:
        """int32: the source pieces that spell target token ``token``."""
        return self.cover_ids[self.cover_offsets[token] : self.cover_offsets[token + 1]]


def align(
    source: Any,
    target: Any,
    *,
    overlap: str = "exact",
    special_overrides: Mapping[str, str] | None = None,
) -> Alignment:
    """Align a target tokenizer to a source tokenizer.

    Tokens are compared as the bytes they stand for plus a word start, never as decoded strings; special tokens by role.

    Args:
        source: a folder, a ``tokenizer.json`` or ``.tiktoken`` file, or a tokenizer object of transformers or tokenizers.
        target: likewise.
        overlap: the loosest match that counts, one of ``exact``, ``word-start``, ``case``.
        special_overrides: target special token -> source special token, by spelling.

    Returns:
        The verdict, source id and cover of every target token.

    Raises:
        InputError: a tokenizer is missing or broken, or an override names an unknown token.

    Example:
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> unigram = Tokenizer(models.Unigram([("\u2581ab", -1.0), ("a", -2.0), ("b", -2.0)]))
        >>> unigram.pre_tokenizer = pre_tokenizers.Metaspace()
        >>> align(unigram, unigram).source_id.tolist()
        [0, 1, 2]
    """
    if overlap not in OVERLAPS:
        raise input_error("overlap", repr(overlap), "one of " + ", ".join(OVERLAPS), "choose one of these")
    source, target = load_tokens(source, "source"), load_tokens(target, "target")
    overrides = {}
    for ours, theirs in (special_overrides or {}).items():
        overrides[_id(target, ours, "target")] = _id(source, theirs, "source")
    roles = match_roles(source.roles, target.roles, overrides)
    arrays = _rust.align(source.vocabulary, target.vocabulary, overlap, roles)
    return Alignment(*arrays, source=source.vocabulary, target=target.vocabulary)


def _id(tokens: Tokens, spelling: str, side: str) -> int:
    if spelling not in tokens.ids:
        raise input_error(
            f"special override {spelling!r}",
            f"no such special or added token in the {side} tokenizer",
            "one of " + ", ".join(list(tokens.ids)[:12]),
            "spell it as the tokenizer does",
        )
    return tokens.ids[spelling]


def load_tokens(tokenizer: Any, side: str = "tokenizer") -> Tokens:
    """Make a tokenizer ready for alignment; see :func:`align` for what is taken.

    Raises:
        InputError: it is missing, broken, or of a kind that is not known.
    """
    if isinstance(tokenizer, Tokens):
        return tokenizer
    if isinstance(tokenizer, (str, Path)):
        return _from_path(Path(tokenizer), side)
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if not hasattr(backend, "to_str"):
        raise input_error(
            f"{side} tokenizer",
            f"a {type(tokenizer).__name__}",
            "a folder, a tokenizer.json or .tiktoken file, or a fast tokenizer",
            "load it with AutoTokenizer.from_pretrained(..., use_fast=True)",
        )
    roles = roles_of(tokenizer) if hasattr(tokenizer, "convert_tokens_to_ids") else {}
    special = [int(i) for i in getattr(tokenizer, "all_special_ids", [])]
    return _from_json(backend.to_str().encode(), str(getattr(tokenizer, "name_or_path", "")) or side, special, roles)


def _from_json(data: bytes, name: str, special: list[int], roles: Mapping[str, int]) -> Tokens:
    try:
        vocabulary = _rust.Vocabulary.from_tokenizer_json(data, sorted({*special, *roles.values()}), name)
    except ValueError as error:
        raise InputError(str(error)) from None
    return Tokens(vocabulary, roles, dict(vocabulary.added()), name)


def _from_path(path: Path, side: str) -> Tokens:
    if path.is_dir():
        if (path / "tokenizer.json").is_file():
            return _from_folder(path)
        return load_tokens(_through_transformers(path, side), side)
    if not path.is_file():
        if not path.suffix and not path.is_absolute() and not str(path).startswith("."):
            return load_tokens(_through_transformers(path, side), side)
        raise input_error(f"{side} tokenizer", f"nothing at {path}", "a folder or file", "check the path")
    if path.suffix == ".tiktoken":
        try:
            return Tokens(_rust.Vocabulary.from_tiktoken(path.read_bytes(), [], str(path)), {}, {}, str(path))
        except ValueError as error:
            raise InputError(str(error)) from None
    return _from_json(path.read_bytes(), str(path), [], {})


def _from_folder(folder: Path) -> Tokens:
    path = folder / "tokenizer.json"
    data = path.read_bytes()
    plain = _from_json(data, str(path), [], {})
    roles = roles_in(folder, plain.ids)
    # A role's token is special even where the file does not say so; only then is a second reading needed.
    flags = plain.vocabulary.flags()
    if any(not flags[token] & SPECIAL for token in roles.values()):
        return _from_json(data, str(path), [], roles)
    return dataclasses.replace(plain, roles=roles)


def _through_transformers(name: Path, side: str) -> Any:
    """A SentencePiece model, a ``vocab.txt`` or a hub name: transformers converts it to a fast tokenizer."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(name))
    except (OSError, ValueError, ImportError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise input_error(
            f"{side} tokenizer {name}",
            f"nothing transformers can load ({reason})",
            "a folder with tokenizer.json, or a hub name that is cached or reachable",
            "check the name; offline, fetch it first",
        ) from error
