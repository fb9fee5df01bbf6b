"""The source's tokenizer with the target's new tokens added; text that contains no new token is tokenized as before.

A BPE source gets new vocabulary entries and, after its own merges, merges for each split of a new token into two known
tokens, the longest tokens first. BPE applies merges by rank, so the source's merges come before any new one: text that spells
no new token is tokenized as before. If the source's merges turn each of its tokens' spelling into that token, whole words are
looked up before any merge (``ignore_merges``): this changes nothing for the source's tokens, and finds new words that no merge
builds. A Unigram source gets new pieces; the best segmentation of a text that spells none of them does not change.

A token that its own text does not produce could never be used: it is left out and counted. Tokens are not added by
``add_tokens``, because such tokens are cut out of the text before it is split into words: ``ai`` out of every ``said``.
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
from ..files.summary_file import ExpansionCounts, MergeCounts
from ..protocols import Tokenizer
from .align import ADDED, BYTE_PIECE, HOLE, SPECIAL, Alignment

BYTE_LEVEL, UNIGRAM = "byte_level_bpe", "sentencepiece_unigram"
KINDS = (BYTE_LEVEL, "sentencepiece_bpe", UNIGRAM)
# The score of a new Unigram piece exceeds the best score of its other segmentations by at least this much (log probability);
# float32 rounding is far smaller.
MARGIN = 0.05
# SentencePiece scores a character without a piece this far below its worst piece (log probability).
UNKNOWN = 10.0


@dataclasses.dataclass(frozen=True)
class Expansion:
    """An expanded tokenizer.

    Attributes:
        tokenizer: a copy of the source's with the new tokens.
        added: int64 [n], target ids of the new tokens, ascending; their ids in ``tokenizer`` are ``first``, ``first + 1``, ...
        first: id of the first new token; at least the number of the source's rows, so that all rows keep their ids.
        counts: ``added``: new tokens; ``whole_words``: those of them that only whole-word look-up finds; ``left_out``: tokens
            that were not added; ``merges``: new merges; ``fillers``: ids with a row of the source but without a token, which
            get a placeholder token so that ids are contiguous.
    """

    tokenizer: Tokenizer
    added: np.ndarray
    first: int
    counts: ExpansionCounts


@dataclasses.dataclass(frozen=True)
class _New:
    """A token to add.

    Attributes:
        target: its target id.
        spelling: its spelling in the source's model.
        text: its text; ``None`` if its bytes are not UTF-8.
        starts: whether it starts a word (begins with a space).
    """

    target: int
    spelling: str
    text: str | None
    starts: bool


def expand(source: Tokenizer, alignment: Alignment, rows: int) -> Expansion:
    """Add the target's unmatched text tokens to a copy of the source's tokenizer.

    Args:
        source: fast tokenizer of the source model.
        alignment: alignment of the target's tokenizer to the source's.
        rows: number of rows of the source's input matrix.

    Raises:
        InputError: saltlm cannot add tokens to the source's kind of tokenizer.
    """
    content = json.loads(source.backend_tokenizer.to_str())
    model = content["model"]
    kind = _kind(alignment, model)
    first = max(rows, alignment.source.size)
    candidates = list(_new_tokens(alignment, kind))
    names = {token["content"]: token["id"] for token in content.get("added_tokens", ())}
    new = [token for token in candidates if token.spelling not in names]
    if kind == UNIGRAM:
        built, new, counts = _unigram(content, names, new, first)
    else:
        built, new, counts = _bpe(content, model, names, new, first)
    expanded: Any = copy.deepcopy(source)
    expanded._tokenizer = built
    new = sorted(new, key=lambda token: token.target)
    fillers = first - alignment.source.size
    return Expansion(
        tokenizer=expanded,
        added=np.array([token.target for token in new], dtype=np.int64),
        first=first,
        counts={"added": len(new), "left_out": len(candidates) - len(new), "fillers": fillers, **counts},
    )


def _kind(alignment: Alignment, model: dict[str, Any]) -> str:
    """Kind of the source's tokenizer, one of :data:`KINDS`."""
    kind = alignment.source.kind
    # With marks at the ends of a piece, as in CLIP, or with dropped merges, several spellings give the same token.
    unsupported = [name for name in ("continuing_subword_prefix", "end_of_word_suffix", "dropout") if model.get(name)]
    if kind not in KINDS or unsupported:
        raise input_error(
            "keep_source_vocabulary",
            f"a source tokenizer of kind {kind}" + "".join(f" with {name}" for name in unsupported),
            "byte-level BPE, SentencePiece BPE or SentencePiece Unigram",
            "leave it out to replace the tokenizer",
        )
    return kind


def _new_tokens(alignment: Alignment, kind: str) -> Iterator[_New]:
    """The target's unmatched text tokens, spelled as the source's model spells them."""
    data, offsets = alignment.target.token_bytes()
    joined, bounds = data.tobytes(), offsets.tolist()
    unmatched = (alignment.source_id < 0) & (alignment.target.flags() & (SPECIAL | BYTE_PIECE | HOLE | ADDED) == 0)
    for token in np.flatnonzero(unmatched).tolist():
        token_bytes = joined[bounds[token] : bounds[token + 1]]
        text: str | None
        try:
            text = token_bytes.decode()
        except UnicodeDecodeError:
            text = None
        if not token_bytes:
            continue
        if kind == BYTE_LEVEL:
            spelling = "".join(map(_byte_characters().__getitem__, token_bytes))
        elif text is not None:
            spelling = text.replace(" ", "▁")
        else:
            continue
        yield _New(token, spelling, text, token_bytes.startswith(b" "))


@functools.cache
def _byte_characters() -> list[str]:
    """Byte -> its character in byte-level BPE (GPT-2's table)."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    table = {byte: chr(byte) for byte in shown} | {byte: chr(256 + index) for index, byte in enumerate(hidden)}
    return [table[byte] for byte in range(256)]


def _filler(index: int) -> str:
    """Spelling of a placeholder token; no text gives it, because the models do not spell a space as a space."""
    return f"<no token {index}>"


def _bpe(
    content: dict[str, Any], model: dict[str, Any], names: dict[str, int], new: list[_New], first: int
) -> tuple[Any, list[_New], MergeCounts]:
    """Add tokens to a BPE model; returns the tokenizer, the tokens that it reaches, and counts.

    Adding or removing one token can make another unreachable, so this repeats until all added tokens are reached.
    """
    # tokenizers takes an added token's id from the vocabulary, or else from the vocabulary's size, which changes here.
    source_vocabulary = {**model["vocab"], **names}
    taken = set(source_vocabulary.values())
    source_vocabulary |= {_filler(index): index for index in range(first) if index not in taken}
    whole_words = bool(model.get("ignore_merges")) or _self_encoding(content)
    new = [token for token in new if token.spelling not in source_vocabulary]
    while True:
        vocabulary = source_vocabulary | _numbered(new, first)
        merges = _merges(vocabulary, new, set(names))
        built = {**model, "vocab": vocabulary, "merges": [*model["merges"], *merges]}
        merging = _tokenizer({**content, "model": {**built, "ignore_merges": False}})
        merged = _reached(merging, new, vocabulary)
        result = _tokenizer({**content, "model": {**built, "ignore_merges": True}}) if whole_words else merging
        # Within a longer word only merges apply, so a token that does not start a word needs merges.
        rest = [token for token in new if token.target not in merged and token.starts and whole_words]
        alone = _reached(result, rest, vocabulary)
        kept = [token for token in new if token.target in merged or token.target in alone]
        if whole_words:
            still_reached = _reached(result, kept, vocabulary)
            kept = [token for token in kept if token.target in still_reached]
        if len(kept) == len(new):
            return result, new, {"whole_words": len(new) - len(merged), "merges": len(merges)}
        new = kept


def _numbered(new: Sequence[_New], first: int) -> dict[str, int]:
    """Spelling -> id of the new tokens: ``first``, ``first + 1``, ... by ascending target id."""
    ordered = sorted(new, key=lambda token: token.target)
    return {token.spelling: first + index for index, token in enumerate(ordered)}


def _merges(vocabulary: dict[str, int], new: Sequence[_New], added: set[str]) -> list[list[str]]:
    """Merges for each split of a new token into two known tokens that are not added tokens; the longest tokens first."""
    merges = []
    for token in sorted(new, key=lambda token: (-len(token.spelling), token.target)):
        spelling = token.spelling
        for at in range(1, len(spelling)):
            left, right = spelling[:at], spelling[at:]
            if left in vocabulary and right in vocabulary and left not in added and right not in added:
                merges.append([left, right])
    return merges


def _self_encoding(content: dict[str, Any]) -> bool:
    """Whether the merges turn each token's spelling into that token, so that whole-word look-up changes nothing."""
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
) -> tuple[Any, list[_New], MergeCounts]:
    """Add pieces to a Unigram model; returns the tokenizer, the tokens that it reaches, and counts.

    Repeats until all added tokens are reached, as :func:`_bpe` does.
    """
    source_pieces = [[piece, score] for piece, score in content["model"]["vocab"]]
    by_id = {index: spelling for spelling, index in names.items()}
    worst = min((score for _, score in source_pieces), default=0.0)
    source_pieces += [[by_id.get(index, _filler(index)), worst] for index in range(len(source_pieces), first)]
    known = {piece for piece, _ in source_pieces}
    new = [token for token in new if token.spelling not in known]
    typical = float(np.median([score for _, score in source_pieces]))
    while True:
        scores = {piece: score for piece, score in source_pieces if piece not in names}
        for token in sorted(new, key=lambda token: len(token.spelling)):
            best = _best_score(token.spelling, scores, worst - UNKNOWN)
            scores[token.spelling] = max(typical, best + MARGIN)
        spellings = [token.spelling for token in sorted(new, key=lambda token: token.target)]
        vocabulary = [*source_pieces, *([spelling, scores[spelling]] for spelling in spellings)]
        built = _tokenizer({**content, "model": {**content["model"], "vocab": vocabulary}})
        reached = _reached(built, new, _numbered(new, first))
        kept = [token for token in new if token.target in reached]
        if len(kept) == len(new):
            return built, new, {"whole_words": 0, "merges": 0}
        new = kept


def _best_score(spelling: str, scores: dict[str, float], unknown: float) -> float:
    """Score of the best segmentation of a spelling (Viterbi); ``unknown`` is the score of a character without a piece."""
    best = [0.0] + [-np.inf] * len(spelling)
    for end in range(1, len(best)):
        best[end] = max(
            best[begin] + scores.get(spelling[begin:end], unknown if end - begin == 1 else -np.inf)
            for begin in range(end)
        )
    return float(best[-1])


def _tokenizer(content: dict[str, Any]) -> Any:
    """A ``tokenizers.Tokenizer`` of the content of a tokenizer.json."""
    from tokenizers import Tokenizer as Backend

    return Backend.from_str(json.dumps(content))


def _reached(tokenizer: Any, new: Sequence[_New], ids: dict[str, int]) -> set[int]:
    """Target ids of the tokens that their own text produces.

    Three texts are tried: the token's text; the text without its leading space, because some tokenizers add a space before
    every text; and, for a token that continues a word, its spelling given to the model alone, if normalizer and pre-tokenizer
    leave its text in one part.
    """
    reached: set[int] = set()
    texts = {token.target: token.text for token in new if token.text}
    for forms in (texts, {target: text.removeprefix(" ") for target, text in texts.items()}):
        rest = [token for token in new if token.target not in reached and forms.get(token.target)]
        encoded = tokenizer.encode_batch([forms[token.target] for token in rest], add_special_tokens=False)
        reached |= {t.target for t, out in zip(rest, encoded, strict=True) if out.ids == [ids[t.spelling]]}
    for token in new:
        if token.target not in reached and not token.starts and _stays_whole(tokenizer, token):
            out = tokenizer.model.tokenize(token.spelling)
            if len(out) == 1 and out[0].id == ids[token.spelling]:
                reached.add(token.target)
    return reached


def _stays_whole(tokenizer: Any, token: _New) -> bool:
    """Whether the token's text reaches the model as one part, apart from a space mark before it.

    Tokens without text (raw bytes) always pass.
    """
    if token.text is None:
        return True
    text = tokenizer.normalizer.normalize_str(token.text) if tokenizer.normalizer else token.text
    parts = [part for part, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)] if tokenizer.pre_tokenizer else [text]
    return len(parts) == 1 and parts[0].lstrip("▁Ġ") == token.spelling
