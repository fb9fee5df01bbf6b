"""Two tokenizers -> a verdict for every target token, and covers of the unmatched ones (step 1)."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from .. import _rust
from ..config import OVERLAPS
from ..errors import input_error
from .roles import match_roles
from .tokens import ADDED, BYTE_PIECE, HOLE, SPECIAL, WORD_START, Tokens, load_tokens

__all__ = [
    "ADDED",
    "BYTE_PIECE",
    "HOLE",
    "SPECIAL",
    "WORD_START",
    "Alignment",
    "MatchKind",
    "Tokens",
    "align",
    "load_tokens",
]


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

    def covers_without(self, tokens: np.ndarray, forbidden: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Cover tokens, shared or not, as if the source had not the ids forbidden to each.

        Merges that name a forbidden id are gone with it; scores and ranks stay.

        Args:
            tokens: int [n], target ids.
            forbidden: for each of them the source ids it must do without, in any order.

        Returns:
            Offsets int64 [n+1] and source ids int32: the cover of ``tokens[i]`` is ``ids[offsets[i]:offsets[i + 1]]``, empty
            where what is left of the source cannot spell it.

        Raises:
            ValueError: an id lies outside its vocabulary, or there is not one array of forbidden ids for each token.

        Example:
            >>> from tokenizers import Tokenizer, models, pre_tokenizers
            >>> unigram = Tokenizer(models.Unigram([("\u2581ab", -1.0), ("\u2581a", -2.0), ("b", -2.0)]))
            >>> unigram.pre_tokenizer = pre_tokenizers.Metaspace()
            >>> found = align(unigram, unigram)
            >>> [array.tolist() for array in found.covers_without(np.array([0]), [np.array([0])])]
            [[0, 2], [1, 2]]
        """
        offsets = np.cumsum([0, *map(len, forbidden)], dtype=np.int64)
        flat = np.concatenate([np.zeros(0, dtype=np.int64), *forbidden]).astype(np.int64)
        return _rust.covers_without(self.source, self.target, np.asarray(tokens, dtype=np.int64), offsets, flat)

    def with_covers(self, tokens: np.ndarray, offsets: np.ndarray, ids: np.ndarray) -> Alignment:
        """The same alignment with covers of tokens that had none.

        Args:
            tokens: int [n], target ids without a cover, ascending.
            offsets: int64 [n+1], as :meth:`covers_without` gives them.
            ids: int32, source ids.
        """
        sizes = np.diff(offsets)
        if (self.cover_offsets[tokens + 1] != self.cover_offsets[tokens]).any():
            raise ValueError("a token that is to get a cover has one")
        grown = np.diff(self.cover_offsets)
        grown[tokens] = sizes
        places = np.repeat(self.cover_offsets[tokens], sizes)
        return dataclasses.replace(
            self, cover_offsets=np.cumsum([0, *grown]), cover_ids=np.insert(self.cover_ids, places, ids)
        )


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
        source: a folder, a hub name, a ``tokenizer.json``, tiktoken ranks or ``tekken.json`` file, or a tokenizer object of
            transformers or tokenizers.
        target: likewise.
        overlap: the loosest match that counts, one of ``exact``, ``word-start``, ``case``.
        special_overrides: target token -> source token whose row it takes, by spelling; before any role.

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
    source, target = _load_both(source, target)
    overrides = {}
    for ours, theirs in (special_overrides or {}).items():
        overrides[_id(target, ours, "target")] = _id(source, theirs, "source")
    roles = match_roles(source.roles, target.roles, overrides)
    arrays = _rust.align(source.vocabulary, target.vocabulary, overlap, roles)
    return Alignment(*arrays, source=source.vocabulary, target=target.vocabulary)


def _load_both(source: Any, target: Any) -> tuple[Tokens, Tokens]:
    """Both tokenizers at once: reading releases the interpreter lock, and each takes about half of an alignment's time."""
    if isinstance(source, Tokens) or isinstance(target, Tokens):
        return load_tokens(source, "source"), load_tokens(target, "target")
    with ThreadPoolExecutor(max_workers=1) as pool:
        later = pool.submit(load_tokens, target, "target")
        loaded = load_tokens(source, "source")
        loaded.vocabulary.prepare()
        return loaded, later.result()


def _id(tokens: Tokens, spelling: str, side: str) -> int:
    found = tokens.find(spelling)
    if found is None:
        raise input_error(
            f"special override {spelling!r}",
            f"no such token in the {side} tokenizer",
            "a token as the tokenizer spells it, such as " + ", ".join(list(tokens.ids)[:12]),
            "correct the spelling",
        )
    return found
