"""The source's own tokenizer with the target's new tokens added, so that old text is tokenized as before.

A BPE source gets new vocabulary entries and, after its own merges, one merge for each way to part a new token in two known
ones, the longest tokens' first. Merges apply by rank, so the source's are all done before a new one is looked at: text that
spells no new token comes out as before. Where each of the source's own tokens is what it encodes to, whole words are looked
up before any merge (``ignore_merges``), which changes nothing for them and reaches new words that no merge can. A Unigram
source gets new pieces; the best path over a text that spells none of them does not change.

A token that would not come out of its own text is left out and counted: it could never be used. Tokens added beside the model
(``add_tokens``) would be cut out of the text before it is parted into words: ``ai`` out of every ``said``, and so they are not.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ..errors import input_error
from .align import ADDED, BYTE_PIECE, HOLE, SPECIAL, Alignment

BYTE_LEVEL, UNIGRAM = "byte_level_bpe", "sentencepiece_unigram"
KINDS = (BYTE_LEVEL, "sentencepiece_bpe", UNIGRAM)
# How far above the best way to spell it by other pieces a Unigram piece lies at least; float32 rounding is far below.
MARGIN = 0.05
UNKNOWN = 10.0  # how far below the worst piece SentencePiece puts a character that no piece has


@dataclasses.dataclass(frozen=True)
class Expansion:
    """An expanded tokenizer.

    Attributes:
        tokenizer: the source's with new tokens; a new object.
        added: int64 [n], target ids of the new tokens, ascending; in the new tokenizer they have ids from ``first`` on.
        first: id of the first one: no smaller than the source's matrix, so that all of its rows keep their place.
        counts: ``added``; of these, ``whole_words`` reached as a word alone; ``left_out``; ``merges`` added; ``fillers``, ids
            that have a row of the source but no token, filled so that the tokenizer is as long as the matrix.
    """

    tokenizer: Any
    added: np.ndarray
    first: int
    counts: dict[str, int]


@dataclasses.dataclass(frozen=True)
class _New:
    """A token to add: its target id, how the source's model spells it, its text (``None`` where its bytes are none)."""

    target: int
    spelling: str
    text: str | None
    starts: bool


def expand(source: Any, alignment: Alignment, rows: int) -> Expansion:
    """Add the target's unmatched text tokens to the source's tokenizer.

    Args:
        source: fast tokenizer of the source model; it is not changed.
        alignment: of it and the target's.
        rows: of the source's matrix.

    Raises:
        InputError: the source's tokenizer is of a kind that cannot be added to.
    """
    content = json.loads(source.backend_tokenizer.to_str())
    model = content["model"]
    kind = _kind(alignment, model)
    first = max(rows, alignment.source.size)
    every = list(_new_tokens(alignment, kind))
    names = {token["content"]: token["id"] for token in content.get("added_tokens", ())}
    new = [token for token in every if token.spelling not in names]
    if kind == UNIGRAM:
        built, new, counts = _unigram(content, names, new, first)
    else:
        built, new, counts = _bpe(content, model, names, new, first)
    expanded = copy.deepcopy(source)
    expanded._tokenizer = built
    new = sorted(new, key=lambda token: token.target)
    fillers = first - alignment.source.size
    return Expansion(
        tokenizer=expanded,
        added=np.array([token.target for token in new], dtype=np.int64),
        first=first,
        counts={"added": len(new), "left_out": len(every) - len(new), "fillers": fillers, **counts},
    )


def _kind(alignment: Alignment, model: dict[str, Any]) -> str:
    found = alignment.source.kind
    # Marks at both ends of a piece, as CLIP has them, and dropped merges make the same token come out of other spellings.
    odd = [name for name in ("continuing_subword_prefix", "end_of_word_suffix", "dropout") if model.get(name)]
    if found not in KINDS or odd:
        raise input_error(
            "keep_source_vocabulary",
            f"a source tokenizer of kind {found}" + "".join(f" with {name}" for name in odd),
            "byte-level BPE, SentencePiece BPE or SentencePiece Unigram",
            "leave it out to replace the tokenizer",
        )
    return found


def _new_tokens(alignment: Alignment, kind: str) -> Iterator[_New]:
    data, offsets = alignment.target.token_bytes()
    joined, bounds = data.tobytes(), offsets.tolist()
    unmatched = (alignment.source_id < 0) & (alignment.target.flags() & (SPECIAL | BYTE_PIECE | HOLE | ADDED) == 0)
    for token in np.flatnonzero(unmatched).tolist():
        own = joined[bounds[token] : bounds[token + 1]]
        try:
            text = own.decode()
        except UnicodeDecodeError:
            text = None
        if own and (kind == BYTE_LEVEL or text is not None):
            spelling = "".join(map(_alphabet().__getitem__, own)) if kind == BYTE_LEVEL else text.replace(" ", "▁")
            yield _New(token, spelling, text, own.startswith(b" "))


@functools.cache
def _alphabet() -> list[str]:
    """Byte -> the character that stands for it in byte-level BPE (GPT-2's table)."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    table = {byte: chr(byte) for byte in shown} | {byte: chr(256 + place) for place, byte in enumerate(hidden)}
    return [table[byte] for byte in range(256)]


def _filler(index: int) -> str:
    """A spelling that no text has: in every kind a space is spelled otherwise."""
    return f"<no token {index}>"


def _bpe(
    content: dict[str, Any], model: dict[str, Any], names: dict[str, int], new: list[_New], first: int
) -> tuple[Any, list[_New], dict[str, int]]:
    # Added tokens get their id from the vocabulary, else from its length, which is about to change.
    own = {**model["vocab"], **names}
    taken = set(own.values())
    own |= {_filler(index): index for index in range(first) if index not in taken}
    words = bool(model.get("ignore_merges")) or _self_encoding(content)
    new = [token for token in new if token.spelling not in own]
    while True:
        vocabulary = own | {token.spelling: first + place for place, token in enumerate(sorted(new, key=_target))}
        merges = _merges(vocabulary, new, set(names))
        built = {**model, "vocab": vocabulary, "merges": [*model["merges"], *merges]}
        merging = _tokenizer({**content, "model": {**built, "ignore_merges": False}})
        merged = _reached(merging, new, vocabulary)
        result = _tokenizer({**content, "model": {**built, "ignore_merges": words}}) if words else merging
        # Inside a longer word only merges count, so a token that continues one is of no use without them.
        rest = [token for token in new if token.target not in merged and token.starts and words]
        alone = _reached(result, rest, vocabulary)
        kept = [token for token in new if token.target in merged or token.target in alone]
        if words:
            through = _reached(result, kept, vocabulary)
            kept = [token for token in kept if token.target in through]
        if len(kept) == len(new):
            return result, new, {"whole_words": len(new) - len(merged), "merges": len(merges)}
        new = kept


def _target(token: _New) -> int:
    return token.target


def _merges(vocabulary: dict[str, int], new: Sequence[_New], apart: set[str]) -> list[list[str]]:
    """Every way to part a new token in two known ones; the longest tokens first."""
    found = []
    for token in sorted(new, key=lambda token: (-len(token.spelling), token.target)):
        spelling = token.spelling
        for at in range(1, len(spelling)):
            left, right = spelling[:at], spelling[at:]
            if left in vocabulary and right in vocabulary and left not in apart and right not in apart:
                found.append([left, right])
    return found


def _self_encoding(content: dict[str, Any]) -> bool:
    """Whether merges make each of the source's tokens out of its spelling, so that looking it up whole changes nothing."""
    model = _tokenizer(content).model
    special = {token["content"] for token in content.get("added_tokens", ())}
    for spelling, index in content["model"]["vocab"].items():
        if spelling not in special:
            tokens = model.tokenize(spelling)
            if len(tokens) != 1 or tokens[0].id != index:
                return False
    return True


def _unigram(
    content: dict[str, Any], names: dict[str, int], new: list[_New], first: int
) -> tuple[Any, list[_New], dict[str, int]]:
    own = [[piece, score] for piece, score in content["model"]["vocab"]]
    by_id = {index: spelling for spelling, index in names.items()}
    worst = min((score for _, score in own), default=0.0)
    own += [[by_id.get(index, _filler(index)), worst] for index in range(len(own), first)]
    known = {piece for piece, _ in own}
    new = [token for token in new if token.spelling not in known]
    typical = float(np.median([score for _, score in own]))
    while True:
        scores = {piece: score for piece, score in own if piece not in names}
        for token in sorted(new, key=lambda token: len(token.spelling)):
            best = _best(token.spelling, scores, worst - UNKNOWN)
            scores[token.spelling] = max(typical, best + MARGIN)
        ordered = sorted(new, key=_target)
        vocabulary = [*own, *([token.spelling, scores[token.spelling]] for token in ordered)]
        built = _tokenizer({**content, "model": {**content["model"], "vocab": vocabulary}})
        reached = _reached(built, new, {token.spelling: first + place for place, token in enumerate(ordered)})
        kept = [token for token in new if token.target in reached]
        if len(kept) == len(new):
            return built, new, {"whole_words": 0, "merges": 0}
        new = kept


def _best(spelling: str, scores: dict[str, float], unknown: float) -> float:
    """Score of the best way to spell it (Viterbi)."""
    best = [0.0] + [-np.inf] * len(spelling)
    for end in range(1, len(best)):
        best[end] = max(
            best[begin] + scores.get(spelling[begin:end], unknown if end - begin == 1 else -np.inf)
            for begin in range(end)
        )
    return float(best[-1])


def _tokenizer(content: dict[str, Any]) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_str(json.dumps(content))


def _reached(tokenizer: Any, new: Sequence[_New], ids: dict[str, int]) -> set[int]:
    """Target ids of the tokens that come out of their own text.

    As a text of its own; a word start also without its space, which some tokenizers put before every text; what continues a
    word, where that is so, out of the model alone, if its text is not parted on the way there.
    """
    found = set()
    for text_of in (lambda token: token.text, lambda token: token.text and token.text.removeprefix(" ")):
        left = [token for token in new if token.target not in found and text_of(token)]
        encoded = tokenizer.encode_batch([text_of(token) for token in left], add_special_tokens=False)
        found |= {t.target for t, out in zip(left, encoded, strict=True) if out.ids == [ids[t.spelling]]}
    for token in new:
        if token.target not in found and not token.starts and _whole(tokenizer, token):
            out = tokenizer.model.tokenize(token.spelling)
            if len(out) == 1 and out[0].id == ids[token.spelling]:
                found.add(token.target)
    return found


def _whole(tokenizer: Any, token: _New) -> bool:
    """Whether its text reaches the model in one part, but for a mark before it. Bytes that are no text have no say."""
    if token.text is None:
        return True
    text = tokenizer.normalizer.normalize_str(token.text) if tokenizer.normalizer else token.text
    parts = [part for part, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)] if tokenizer.pre_tokenizer else [text]
    return len(parts) == 1 and parts[0].lstrip("▁Ġ") == token.spelling
