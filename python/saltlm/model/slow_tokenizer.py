"""A fast form of BPE tokenizers that transformers has in Python only (PhoBERT, BERTweet, CTRL kinds).

Their merges mark the end of a word by ``</w>``; their vocabulary either has the same marks or ``@@`` at the pieces that do not
end a word. Which words they split a text into stands in code, so several splits are tried, and only one that gives the ids of
the slow tokenizer for every probe text is taken.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

WORD_END, CONTINUED = "</w>", "@@"
PROBES = (
    "the cat sat on the mat, and the other one did not!",
    "Hello World (2026): naïve café; don't e-mail me...",
    "Đây là một câu tiếng Việt . Chúng_tôi là những nghiên_cứu_viên .",
    "über Straßen; kissa istui matolla; żółć gęślą jaźń",
    "привет, мир! Γειά σου Κόσμε",  # noqa: RUF001
    "two  blanks\nand a line break\n\nor two\ta tab",
    "القط جلس 中文字 かな 한국어 🙂",
    "",
)


def fast_form(slow: Any) -> Any:
    """A ``tokenizers.Tokenizer`` that gives the same ids as a slow BPE tokenizer.

    A symbol that the merges use and the vocabulary lacks gets an id beyond the vocabulary: the slow tokenizer gives the
    unknown token for it.

    Args:
        slow: a slow tokenizer of transformers.

    Returns:
        The fast tokenizer; ``None`` if this is no such BPE, or no split of words gives the same ids.
    """
    encoder, ranks = getattr(slow, "encoder", None), getattr(slow, "bpe_ranks", None)
    if not isinstance(encoder, dict) or not isinstance(ranks, dict) or not ranks:
        return None
    texts = [*PROBES, *_words(encoder)]
    expected = [_ids(slow, text) for text in texts]
    unknown = slow.unk_token_id
    for candidate in _candidates(slow, encoder, ranks):
        outputs = candidate.encode_batch(texts, add_special_tokens=False)
        ids = [[index if index < len(slow) else unknown for index in output.ids] for output in outputs]
        if ids == expected:
            return candidate
    return None


def _ids(slow: Any, text: str) -> list[int]:
    return list(slow(text, add_special_tokens=False)["input_ids"])


def _words(encoder: dict[str, int]) -> Iterator[str]:
    """Texts of pieces of the vocabulary, as words and joined."""
    pieces = [token.removesuffix(CONTINUED).removesuffix(WORD_END) for token in encoder]
    pieces = [piece for piece in pieces if piece and not piece.startswith(("<", "["))]
    chosen = pieces[:: max(1, len(pieces) // 500)]
    yield " ".join(chosen)
    yield " ".join(one + other for one, other in itertools.pairwise(chosen))


def _candidates(slow: Any, encoder: dict[str, int], ranks: dict[tuple[str, str], int]) -> Iterator[Any]:
    """Fast tokenizers of the same vocabulary and merges that split texts into words in different ways."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    special = [str(token) for token in slow.all_special_tokens]
    vocabulary = _vocabulary({**encoder, **slow.added_tokens_encoder}, special)
    merges = [pair for pair, _ in sorted(ranks.items(), key=lambda item: item[1]) if len(pair) == 2]
    size = max(len(slow), *(index + 1 for index in vocabulary.values()))
    for left, right in merges:
        for symbol in (left, right, left + right):
            if symbol not in vocabulary:
                vocabulary[symbol] = size
                size += 1
    splits = (
        pre_tokenizers.Split(Regex(r"\S+\n?"), "removed", invert=True),
        pre_tokenizers.WhitespaceSplit(),
        pre_tokenizers.BertPreTokenizer(),
    )
    for split, normalizer in itertools.product(splits, (None, normalizers.Lowercase())):
        model = models.BPE(vocabulary, merges, unk_token=slow.unk_token, end_of_word_suffix=WORD_END, fuse_unk=False)
        tokenizer = Tokenizer(model)
        tokenizer.pre_tokenizer = split
        if normalizer is not None:
            tokenizer.normalizer = normalizer
        tokenizer.decoder = decoders.BPEDecoder(suffix=WORD_END)
        tokenizer.add_special_tokens(special)
        tokenizer.add_tokens([token for token in slow.added_tokens_encoder if token not in special])
        yield tokenizer


def _vocabulary(encoder: dict[str, int], special: list[str]) -> dict[str, int]:
    """Symbols as the merges spell them -> id: ``X@@`` becomes ``X``, and ``X`` becomes ``X</w>``."""
    if any(token.endswith(WORD_END) for token in encoder) or not any(token.endswith(CONTINUED) for token in encoder):
        return dict(encoder)
    symbols = {token: index for token, index in encoder.items() if token in special}
    for token, index in encoder.items():
        if token not in special:
            ends = not token.endswith(CONTINUED) or token == CONTINUED
            symbols[token + WORD_END if ends else token.removesuffix(CONTINUED)] = index
    return symbols
