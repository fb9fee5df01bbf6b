"""Which of llama.cpp's forms a tokenizer gets, and which tokenizers have none."""

from __future__ import annotations

import pytest
from export_tiny import (
    byte_level_with,
    edited,
    end_of_word_bpe,
    split,
    uncased_unigram,
    uncased_wordpiece,
    unigram_of_lines,
    unigram_of_words,
)
from tokenizers import pre_tokenizers
from tokenizers_tiny import KINDS, sentencepiece_unigram, tiny

from saltlm.errors import InputError
from saltlm.export.pre_tokenizers import PRE_TOKENIZERS
from saltlm.export.vocabulary import build_vocabulary, refuse_differences

FORMS = {"byte_level_bpe": "gpt2", "sentencepiece_unigram": "t5", "sentencepiece_bpe": "llama", "wordpiece": "bert"}
CONTROL, UNUSED, BYTE = 3, 5, 6


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_has_its_form(kind: str) -> None:
    tokenizer = tiny(kind)
    rows = len(tokenizer) + 5
    vocabulary = build_vocabulary(tokenizer, rows)
    assert vocabulary.model == FORMS[kind] and not vocabulary.difference.texts
    assert len(vocabulary.tokens) == len(vocabulary.types) == rows == len(set(vocabulary.tokens))
    assert set(vocabulary.types[len(tokenizer) :]) == {UNUSED}
    for role in ("bos", "eos", "pad", "cls", "sep"):
        index = getattr(tokenizer, f"{role}_token_id")
        assert index is None or vocabulary.types[index] == CONTROL
    assert (vocabulary.scores is not None) == (kind.startswith("sentencepiece"))
    assert (vocabulary.types.count(BYTE) == 256) == (kind == "sentencepiece_bpe")
    assert (vocabulary.merges is not None) == (kind == "byte_level_bpe")


def test_word_starts_are_marked_as_llama_cpp_marks_them() -> None:
    tokenizer = tiny("wordpiece")
    tokens = build_vocabulary(tokenizer, len(tokenizer)).tokens
    of = tokenizer.convert_tokens_to_ids
    assert tokens[of("##e")] == "e" and tokens[of("the")] == "▁the" and tokens[of("[CLS]")] == "[CLS]"


GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PIPELINES = {
    "gpt-2": (None, False),
    "llama-bpe": (split(LLAMA3), True),
    "dbrx": (split(LLAMA3), False),
    "qwen2": (split(LLAMA3.replace("{1,3}", "")), False),
    "starcoder": (pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), split(GPT2)]), False),
}


@pytest.mark.parametrize("name", PIPELINES)
def test_the_pre_tokenizer_is_named_by_what_it_does(name: str) -> None:
    """The same splits may be spelled differently: starcoder's here by other steps than llama.cpp's patterns."""
    pre_tokenizer, ignore_merges = PIPELINES[name]
    tokenizer = byte_level_with(pre_tokenizer, ignore_merges=ignore_merges)
    vocabulary = build_vocabulary(tokenizer, len(tokenizer))
    assert vocabulary.difference.texts == []
    # Where merges reach every token, looking whole words up changes nothing, and both names fit.
    assert vocabulary.pre == name or {vocabulary.pre, name} == {"llama-bpe", "dbrx"}


@pytest.mark.parametrize("known", PRE_TOKENIZERS, ids=lambda known: known.name)
def test_a_tokenizer_behind_each_of_the_pre_tokenizers_is_accepted(known) -> None:
    tokenizer = byte_level_with(split(*known.patterns), ignore_merges=known.ignore_merges)
    vocabulary = build_vocabulary(tokenizer, len(tokenizer))
    assert vocabulary.difference.texts == []


@pytest.mark.parametrize(
    ("tokenizer", "form"),
    [(uncased_unigram(), "t5"), (unigram_of_words(), "t5"), (unigram_of_lines(), "t5"), (uncased_wordpiece(), "bert")],
    ids=["uncased Unigram", "Unigram of words", "Unigram of lines", "uncased WordPiece"],
)
def test_normalizers_become_a_table_or_flags(tokenizer, form: str) -> None:
    vocabulary = build_vocabulary(tokenizer, len(tokenizer))
    assert vocabulary.model == form and vocabulary.difference.texts == []
    if form == "bert":
        assert vocabulary.flags["tokenizer.ggml.normalizer.lowercase"]
    else:
        assert vocabulary.charsmap is not None


def of_whole_words(content: dict) -> None:
    """A token that only whole-word look-up finds: its merges are gone."""
    vocabulary = content["model"]["vocab"]
    long = max((token for token in vocabulary if token.startswith("Ġ") and token.isalpha()), key=len)
    content["model"]["merges"] = [merge for merge in content["model"]["merges"] if "".join(merge) != long]
    content["model"]["ignore_merges"] = True


def prefixed(content: dict) -> None:
    content["pre_tokenizer"]["add_prefix_space"] = True


def by_bytes(content: dict) -> None:
    content["model"]["vocab"] += [[f"<0x{byte:02X}>", -20.0] for byte in range(256)]
    content["model"]["byte_fallback"] = True


DIFFERENT = {
    "whole words first": (
        lambda: edited(byte_level_with(None), of_whole_words),
        "looks whole words up before it merges",
    ),
    "a blank before a text": (lambda: edited(tiny("byte_level_bpe"), prefixed), "puts a blank before each text"),
    "Unigram with bytes": (lambda: edited(sentencepiece_unigram(), by_bytes), "spells rare characters by bytes"),
    "splits that no name stands for": (lambda: byte_level_with(split(r"\p{L}{1,2}")), "segments differently"),
}


@pytest.mark.parametrize("case", DIFFERENT)
def test_tokenizers_that_llama_cpp_would_segment_differently_are_refused(case: str) -> None:
    make, cause = DIFFERENT[case]
    tokenizer = make()
    vocabulary = build_vocabulary(tokenizer, len(tokenizer))
    with pytest.raises(InputError, match=cause) as error:
        refuse_differences(vocabulary, "model x")
    assert "--allow-differences" in str(error.value)


def test_a_kind_that_llama_cpp_lacks_is_refused() -> None:
    tokenizer = end_of_word_bpe()
    with pytest.raises(InputError, match="end_of_word_suffix"):
        build_vocabulary(tokenizer, len(tokenizer))
