"""A tokenizer in the forms that llama.cpp has: which form fits, and whether it segments text alike.

llama.cpp has four forms: SentencePiece's BPE (joins by score), Unigram, WordPiece, and byte-level BPE with one of its
compiled-in pre-tokenizers. For each form, the tokenizer that llama.cpp makes of the file is built with the tokenizers
library and compared with the real one, on text in many scripts and on the vocabulary itself.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ..errors import input_error
from ..model.segmentation import Difference, boundary_texts, check_texts, compare, is_byte_level, steps_of
from ..model.sentencepiece_bpe import (
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    is_sentencepiece_bpe,
    joined_content,
    piece_types,
    scores_of,
    with_blanks_marked,
)
from ..protocols import Tokenizer
from .charsmap import BY_CHARACTER, charsmap_of, takes_blanks_alike
from .pre_tokenizers import PRE_TOKENIZERS, PreTokenizer

SHOWN = 3  # differing texts that a message shows
FEW = 400  # texts of the first pass over the candidates
NEITHER = "a kind that llama.cpp does not have"
ADVICE = "serve the folder with a program that reads tokenizer.json (vLLM, SGLang, transformers)"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """A tokenizer as a GGUF file holds it.

    Attributes:
        model: llama.cpp's name of the form: ``llama``, ``t5``, ``bert`` or ``gpt2``.
        pre: name of the pre-tokenizer; ``default`` where the form has none.
        tokens: spelling of each id, one for each row.
        types: type of each id.
        scores: score of each id, for forms with scores.
        merges: merges of byte-level BPE.
        flags: further settings: key of the GGUF file -> value.
        charsmap: table of the normalizer, for Unigram.
        difference: where llama.cpp segments text differently.
        compared: number of ordinary texts compared.
        cause: why llama.cpp segments text differently, as far as the tokenizer's settings tell.
    """

    model: str
    pre: str = "default"
    tokens: list[str]
    types: list[int]
    scores: list[float] | None = None
    merges: list[str] | None = None
    flags: Mapping[str, bool]
    charsmap: bytes | None = None
    difference: Difference
    compared: int
    cause: str


@dataclasses.dataclass(frozen=True)
class _Candidate:
    """A form with settings, and the tokenizer that llama.cpp makes of it."""

    pre: str
    flags: Mapping[str, bool]
    backend: Callable[[], Any]
    splits: int = 0  # texts that its pre-tokenizer splits differently


def build_vocabulary(tokenizer: Tokenizer, rows: int) -> Vocabulary:
    """Choose the form of llama.cpp in which a tokenizer segments text as it does in transformers.

    Args:
        tokenizer: a fast tokenizer.
        rows: number of rows of the input matrix; ids without a token get a placeholder.

    Raises:
        InputError: llama.cpp has no such kind of tokenizer.
    """
    from tokenizers import Tokenizer as Backend

    content = json.loads(tokenizer.backend_tokenizer.to_str())
    content["post_processor"] = None
    tokens = spellings(tokenizer, rows)
    known = set(tokenizer.get_vocab().values())
    types = [kind if index in known else UNUSED for index, kind in enumerate(piece_types(content, tokens))]
    form = _form_of(content)
    common: dict[str, Any] = {"model": form, "tokens": tokens, "types": types}
    if form == "llama":
        common["scores"] = scores_of(content, tokens)
        candidates = list(_joining(content, tokens, common["scores"]))
    elif form == "t5":
        common["scores"] = _unigram_scores(content, rows)
        common["charsmap"] = charsmap_of(content)
        candidates = list(_unigram(content))
    elif form == "bert":
        common["tokens"] = _word_starts_marked(content, tokens, types)
        candidates = list(_word_pieces(content))
    else:
        common["types"] = [CONTROL if kind == UNKNOWN else kind for kind in types]
        common["merges"] = _merges(content)
        candidates = list(_byte_level(content))
    backend = Backend.from_str(json.dumps(content))
    texts = check_texts(backend, content)
    best = _best(backend, candidates, texts)
    chosen, difference = best
    cause = _cause(content, chosen.pre) if difference.texts else ""
    return Vocabulary(
        pre=chosen.pre, flags=chosen.flags, difference=difference, compared=len(texts), cause=cause, **common
    )


def refuse_differences(vocabulary: Vocabulary, what: str) -> None:
    """Raise if llama.cpp would segment ordinary text differently.

    Args:
        vocabulary: the vocabulary.
        what: what is exported, for the message.

    Raises:
        InputError: an ordinary text differs.
    """
    differing = vocabulary.difference.texts
    if differing:
        shown = ", ".join(repr(text if len(text) <= 60 else text[:57] + "...") for text in differing[:SHOWN])
        found = (
            f"{len(differing):,} of {vocabulary.compared:,} texts that llama.cpp segments differently, such as {shown}"
        )
        found += f" ({vocabulary.cause})" if vocabulary.cause else ""
        advice = f"{ADVICE}, or export with --allow-differences"
        raise input_error(f"{what}, tokenizer", found, "a tokenizer that llama.cpp has a form for", advice)


def spellings(tokenizer: Tokenizer, rows: int) -> list[str]:
    """Spelling of each id below ``rows``; ids without a token get the placeholder ``[PADn]``.

    Args:
        tokenizer: a fast tokenizer.
        rows: number of rows.
    """
    by_id = {index: token for token, index in tokenizer.get_vocab().items()}
    known = set(by_id.values())
    names = []
    for index in range(rows):
        name = by_id.get(index, f"[PAD{index}]")
        while index not in by_id and name in known:
            name = f"[{name}]"
        names.append(name)
    return names


def _form_of(content: Mapping[str, Any]) -> str:
    model = content["model"]
    kind = model.get("type")
    if kind == "Unigram":
        return "t5"
    if kind == "WordPiece" and model.get("continuing_subword_prefix") == "##":
        return "bert"
    if kind == "BPE" and is_byte_level(content) and not model.get("end_of_word_suffix"):
        return "gpt2"
    if is_sentencepiece_bpe(content):
        return "llama"
    details = "".join(
        f" with {name}" for name in ("end_of_word_suffix", "continuing_subword_prefix") if model.get(name)
    )
    if kind == "BPE" and not details and not model.get("byte_fallback"):
        details = " over characters, without a token for each byte"
    expected = "byte-level BPE, SentencePiece BPE with byte fallback, Unigram or WordPiece"
    raise input_error("tokenizer", f"{kind}{details}, {NEITHER}", expected, ADVICE)


def _best(backend: Any, candidates: Sequence[_Candidate], texts: Sequence[str]) -> tuple[_Candidate, Difference]:
    """The candidate with the fewest differing texts, then splits, then kinds of unusual texts that differ."""
    best: tuple[_Candidate, Difference] | None = None

    def rank(candidate: _Candidate, difference: Difference) -> tuple[int, int, int]:
        return len(difference.texts), candidate.splits, len(difference.edges)

    # A pass over few texts sorts the candidates; the whole comparison takes seconds where the vocabulary is large.
    few = texts[:: max(1, len(texts) // FEW)]
    ordered = sorted(candidates, key=lambda candidate: rank(candidate, compare(backend, candidate.backend(), few)))
    for candidate in ordered[:3]:
        difference = compare(backend, candidate.backend(), texts)
        if best is None or rank(candidate, difference) < rank(*best):
            best = (candidate, difference)
        if not difference.texts:
            break
    assert best is not None, "each form has a candidate"
    return best


def _cause(content: Mapping[str, Any], pre: str) -> str:
    """What in the tokenizer's settings llama.cpp does not do; empty where that is not known."""
    model = content["model"]
    steps = steps_of(content.get("pre_tokenizer"), "pretokenizers")
    if any(step["type"] == "ByteLevel" and step.get("add_prefix_space") for step in steps):
        return "the tokenizer puts a blank before each text"
    lookup = {known.name for known in PRE_TOKENIZERS if known.ignore_merges}
    if model.get("ignore_merges") and pre not in lookup:
        return (
            f"the tokenizer looks whole words up before it merges, llama.cpp only with {' and '.join(sorted(lookup))}"
        )
    if model.get("type") == "Unigram" and model.get("byte_fallback"):
        return "the tokenizer spells rare characters by bytes, llama.cpp's Unigram by the unknown token"
    return ""


def _joining(content: Mapping[str, Any], tokens: Sequence[str], scores: Sequence[float]) -> Iterator[_Candidate]:
    """SentencePiece's BPE, with and without a blank before the text."""
    joined = joined_content(content, tokens, scores)
    for prefix in (True, False):
        flags = {"tokenizer.ggml.add_space_prefix": prefix}
        yield _Candidate("default", flags, functools.partial(with_blanks_marked, joined, prefix))


def _unigram_scores(content: Mapping[str, Any], rows: int) -> list[float]:
    pieces = content["model"]["vocab"]
    scores = [float(score) for _, score in pieces[:rows]]
    return scores + [0.0] * (rows - len(scores))


def _unigram(content: Mapping[str, Any]) -> Iterator[_Candidate]:
    """Unigram; blanks before the text and in a row are added and removed in each combination."""
    from tokenizers import Regex, normalizers
    from tokenizers import Tokenizer as Backend

    model = {**content["model"], "byte_fallback": False}  # llama.cpp's Unigram has no fallback to bytes
    kept = [step for step in steps_of(content.get("normalizer"), "normalizers") if step["type"] in BY_CHARACTER]
    normalizer = {"type": "Sequence", "normalizers": kept} if kept else None
    plain = json.dumps({**content, "model": model, "normalizer": normalizer, "pre_tokenizer": None})

    def made(prefix: bool, merged: bool) -> Any:
        backend = Backend.from_str(plain)
        steps: list[Any] = [] if backend.normalizer is None else [backend.normalizer]
        if takes_blanks_alike(content):
            steps.append(normalizers.Replace(Regex(r"\s"), " "))
        if merged:
            steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
        steps += [normalizers.Prepend("▁")] * prefix + [normalizers.Replace(" ", "▁")]
        backend.normalizer = normalizers.Sequence(steps)
        return backend

    for prefix in (True, False):
        for merged in (True, False):
            if merged and not prefix:
                continue  # llama.cpp writes the blank before the text whenever it merges blanks
            flags = {
                "tokenizer.ggml.add_space_prefix": prefix,
                "tokenizer.ggml.remove_extra_whitespaces": merged,
            }
            yield _Candidate("default", flags, functools.partial(made, prefix, merged))


def _word_starts_marked(content: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int]) -> list[str]:
    """WordPiece spellings as llama.cpp has them: ``▁`` before a word start, nothing before a continuation."""
    marked = []
    for token, kind in zip(tokens, types, strict=True):
        if kind != NORMAL:
            marked.append(token)
        else:
            marked.append(token.removeprefix("##") if token.startswith("##") else "▁" + token)
    duplicate = len(marked) - len(set(marked))
    if duplicate:
        found = f"{duplicate} word pieces that llama.cpp could not tell from others"
        raise input_error("tokenizer", found, "pieces that stay different without their ## marks", ADVICE)
    return marked


def _word_pieces(content: Mapping[str, Any]) -> Iterator[_Candidate]:
    """WordPiece behind BERT's normalizer, which lowercases and drops accents or not."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import normalizers, pre_tokenizers

    plain = json.dumps({**content, "normalizer": None, "pre_tokenizer": None})

    def made(lowercase: bool, accents: bool) -> Any:
        backend = Backend.from_str(plain)
        backend.normalizer = normalizers.BertNormalizer(
            clean_text=True, handle_chinese_chars=True, strip_accents=accents, lowercase=lowercase
        )
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        return backend

    for lowercase, accents in ((False, False), (True, True), (True, False), (False, True)):
        flags = {
            "tokenizer.ggml.normalizer.lowercase": lowercase,
            "tokenizer.ggml.normalizer.strip_accents": accents,
        }
        yield _Candidate("default", flags, functools.partial(made, lowercase, accents))


def _merges(content: Mapping[str, Any]) -> list[str]:
    merges = content["model"]["merges"]
    return [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]


def _byte_level(content: Mapping[str, Any]) -> Iterator[_Candidate]:
    """Byte-level BPE behind each of llama.cpp's pre-tokenizers."""
    from tokenizers import Tokenizer as Backend

    # One tokenizer for all candidates: building it takes a second where the vocabulary is large.
    backend = Backend.from_str(json.dumps({**content, "normalizer": None, "pre_tokenizer": None}))

    def made(known: PreTokenizer) -> Any:
        backend.pre_tokenizer = known.step()
        backend.model.ignore_merges = known.ignore_merges
        return backend

    texts = boundary_texts()
    parts = Backend.from_str(json.dumps(content)).pre_tokenizer
    expected = [parts.pre_tokenize_str(text) for text in texts]
    for known in PRE_TOKENIZERS:
        step = known.step()
        splits = sum(step.pre_tokenize_str(text) != parts for text, parts in zip(texts, expected, strict=True))
        yield _Candidate(known.name, {}, functools.partial(made, known), splits)
