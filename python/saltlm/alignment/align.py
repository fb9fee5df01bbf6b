"""Align a target tokenizer to a source tokenizer (step 1).

Each target token gets a match kind and a source id. An unmatched token gets a cover: source tokens whose bytes joined are
the token's bytes.
"""

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
from .roles import match_ends, match_roles
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
    """How a target token matches its source token.

    ``NONE``: no source token. ``EXACT``: same bytes and word start. ``WORD_START``: the word start differs. ``CASE``: upper
    and lower case differ. ``ROLE``: special tokens of the same role or spelling. ``BYTE``: a byte-fallback piece and a token
    of that byte.
    """

    NONE = 0
    EXACT = 1
    WORD_START = 2
    CASE = 3
    ROLE = 4
    BYTE = 5


@dataclasses.dataclass(frozen=True)
class Alignment:
    """The match or the cover of each of the ``T`` target tokens among the ``S`` source tokens.

    Attributes:
        kind: uint8 [T], a :class:`MatchKind`.
        source_id: int32 [T], the matching source token; -1 for none.
        cover_offsets: int64 [T+1]; the cover of token ``t`` is ``cover_ids[cover_offsets[t]:cover_offsets[t + 1]]``.
        cover_ids: int32, the source tokens whose bytes joined are the token's bytes; none for matched tokens and for tokens
            that the source cannot spell.
        source: the native source vocabulary.
        target: the native target vocabulary.
        ends: target token -> source token of its output row, for tokens that begin and end a text and so have another source
            token as an input (:mod:`saltlm.alignment.roles`).
    """

    kind: np.ndarray
    source_id: np.ndarray
    cover_offsets: np.ndarray
    cover_ids: np.ndarray
    source: _rust.Vocabulary = dataclasses.field(repr=False)
    target: _rust.Vocabulary = dataclasses.field(repr=False)
    ends: Mapping[int, int] = dataclasses.field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        size = self.target.size
        shapes = (self.kind.shape, self.source_id.shape, self.cover_offsets.shape, self.cover_ids.ndim)
        if shapes != ((size,), (size,), (size + 1,), 1):
            raise ValueError(f"an alignment of {size} target tokens cannot have shapes {shapes}")

    def __repr__(self) -> str:
        return f"Alignment(S={self.source.size}, T={self.target.size}, {self.counts()})"

    @property
    def shared(self) -> np.ndarray:
        """Bool [T]: whether the token has a source id."""
        return self.source_id >= 0

    def counts(self) -> dict[str, int]:
        """Number of target tokens of each :class:`MatchKind`, by its lower-case name."""
        counts = np.bincount(self.kind, minlength=len(MatchKind))
        return {kind.name.lower(): int(counts[kind]) for kind in MatchKind}

    def cover(self, token: int) -> np.ndarray:
        """int32: the cover of target token ``token``."""
        return self.cover_ids[self.cover_offsets[token] : self.cover_offsets[token + 1]]

    def covers_without(self, tokens: np.ndarray, forbidden: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Covers of tokens, shared or not, by a source tokenizer without certain tokens.

        Merges that use a forbidden id are removed, too; scores and ranks stay.

        Args:
            tokens: int [n], target ids.
            forbidden: for each token the source ids that its cover may not use, in any order.

        Returns:
            Offsets int64 [n+1] and source ids int32: the cover of ``tokens[i]`` is ``ids[offsets[i]:offsets[i + 1]]``, empty
            if the remaining source tokens cannot spell it.

        Raises:
            ValueError: an id lies outside its vocabulary, or ``forbidden`` has another length than ``tokens``.

        Example:
            >>> from tokenizers import Tokenizer, models, pre_tokenizers
            >>> unigram = Tokenizer(models.Unigram([("\u2581ab", -1.0), ("\u2581a", -2.0), ("b", -2.0)]))
            >>> unigram.pre_tokenizer = pre_tokenizers.Metaspace()
            >>> alignment = align(unigram, unigram)
            >>> [array.tolist() for array in alignment.covers_without(np.array([0]), [np.array([0])])]
            [[0, 2], [1, 2]]
        """
        offsets = np.cumsum([0, *map(len, forbidden)], dtype=np.int64)
        flat = np.concatenate([np.zeros(0, dtype=np.int64), *forbidden]).astype(np.int64)
        return _rust.covers_without(self.source, self.target, np.asarray(tokens, dtype=np.int64), offsets, flat)

    def with_covers(self, tokens: np.ndarray, offsets: np.ndarray, ids: np.ndarray) -> Alignment:
        """A copy of the alignment in which tokens without a cover get one.

        Args:
            tokens: int [n], target ids without a cover, ascending.
            offsets: int64 [n+1], as :meth:`covers_without` gives them.
            ids: int32, source ids.

        Raises:
            ValueError: a token has a cover already.
        """
        sizes = np.diff(offsets)
        if (self.cover_offsets[tokens + 1] != self.cover_offsets[tokens]).any():
            raise ValueError("a token that is to get a cover has one")
        grown = np.diff(self.cover_offsets)
        grown[tokens] = sizes
        positions = np.repeat(self.cover_offsets[tokens], sizes)
        return dataclasses.replace(
            self, cover_offsets=np.cumsum([0, *grown]), cover_ids=np.insert(self.cover_ids, positions, ids)
        )


def align(
    source: Any,
    target: Any,
    *,
    overlap: str = "exact",
    special_overrides: Mapping[str, str] | None = None,
) -> Alignment:
    """Align a target tokenizer to a source tokenizer.

    Tokens are compared by the bytes that they stand for and by word start, never as decoded strings; special tokens by role.

    Args:
        source: a folder, a hub name, a ``tokenizer.json``, tiktoken ranks or ``tekken.json`` file, or a tokenizer object of
            transformers or tokenizers.
        target: the same.
        overlap: the least strict match that counts: ``exact``, ``word-start`` or ``case``.
        special_overrides: target token -> source token, by spelling; they take precedence over roles.

    Returns:
        Match kind, source id and cover of every target token.

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
    for target_spelling, source_spelling in (special_overrides or {}).items():
        overrides[_id(target, target_spelling, "target")] = _id(source, source_spelling, "source")
    roles = match_roles(source.roles, target.roles, overrides)
    arrays = _rust.align(source.vocabulary, target.vocabulary, overlap, roles)
    ends = match_ends(source.roles, target.roles, overrides)
    return Alignment(*arrays, source=source.vocabulary, target=target.vocabulary, ends=ends)


def _load_both(source: Any, target: Any) -> tuple[Tokens, Tokens]:
    """Load both tokenizers in two threads: loading releases the interpreter lock, and each takes about half of the time."""
    if isinstance(source, Tokens) or isinstance(target, Tokens):
        return load_tokens(source, "source"), load_tokens(target, "target")
    with ThreadPoolExecutor(max_workers=1) as pool:
        target_future = pool.submit(load_tokens, target, "target")
        loaded = load_tokens(source, "source")
        loaded.vocabulary.prepare()
        return loaded, target_future.result()


def _id(tokens: Tokens, spelling: str, side: str) -> int:
    """Id of a token by its spelling."""
    token = tokens.find(spelling)
    if token is None:
        raise input_error(
            f"special override {spelling!r}",
            f"no such token in the {side} tokenizer",
            "a token as the tokenizer spells it, such as " + ", ".join(list(tokens.ids)[:12]),
            "correct the spelling",
        )
    return token
