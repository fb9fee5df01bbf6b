"""The tokenizer for a causal model: the target's segmentation, the source's special tokens around a text, roles, config ids."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import processors
from tokenizers_tiny import KINDS, TEXT, byte_level_bpe, sentencepiece_unigram, tiny, wordpiece

from saltlm.alignment.causal_tokenizer import causal_tokenizer
from saltlm.alignment.config_ids import id_changes
from saltlm.errors import InputError

PAIRS = list(itertools.product(KINDS, KINDS))
TEMPLATE = "{% for m in messages %}<|turn|>{{ m['content'] }}<|end|>{% endfor %}"


def encoder_like(tokenizer_kind: str):
    """A tokenizer that adds special tokens before and after a text, as encoders do."""
    tokenizer = wordpiece() if tokenizer_kind == "wordpiece" else sentencepiece_unigram()
    first, last = (tokenizer.cls_token or tokenizer.bos_token), (tokenizer.sep_token or tokenizer.eos_token)
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in (first, last)}
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}", pair=f"{first} $A {last} $B {last}", special_tokens=list(ids.items())
    )
    return tokenizer


def with_bos():
    """A source that begins every text with its bos."""
    tokenizer = byte_level_bpe()
    bos = tokenizer.bos_token
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.bos_token_id)]
    )
    return tokenizer


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_segmentation_is_the_targets(source: str, target: str) -> None:
    tokenizer = causal_tokenizer(tiny(target), tiny(source), chat_template="target")
    for text in TEXT:
        expected = tiny(target)(text, add_special_tokens=False)["input_ids"]
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == expected
        assert tokenizer(text)["input_ids"] == expected, "if the source adds no special tokens, neither does the result"


@given(st.text(max_size=40))
def test_segmentation_is_the_targets_on_any_text(text: str) -> None:
    target = tiny("sentencepiece_unigram")
    tokenizer = causal_tokenizer(target, tiny("byte_level_bpe"), chat_template="none")
    assert tokenizer(text)["input_ids"] == target(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("tokenizer_kind", ["wordpiece", "sentencepiece_unigram"])
def test_special_tokens_around_a_text_follow_the_source(tokenizer_kind: str) -> None:
    target = encoder_like(tokenizer_kind)
    assert target("kissa")["input_ids"][-1] in (target.sep_token_id, target.eos_token_id)
    bare = causal_tokenizer(target, tiny("byte_level_bpe"), chat_template="target")
    inner = target("kissa", add_special_tokens=False)["input_ids"]
    assert bare("kissa")["input_ids"] == inner
    with_start = causal_tokenizer(target, with_bos(), chat_template="target")
    assert with_start("kissa")["input_ids"] == [with_start.bos_token_id, *inner]
    assert with_start("kissa", "talo")["input_ids"][0] == with_start.bos_token_id
    assert set(with_start("kissa")) == {"input_ids", "attention_mask"}, "causal models do not accept token types"


def test_cls_and_sep_replace_missing_bos_and_eos() -> None:
    tokenizer = causal_tokenizer(tiny("wordpiece"), tiny("byte_level_bpe"), chat_template="target")
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("[CLS]", "[SEP]", "[PAD]")
    assert (tokenizer.unk_token, tokenizer.mask_token) == ("[UNK]", "[MASK]")


def test_the_argument_is_not_changed() -> None:
    target = encoder_like("wordpiece")
    before = target.backend_tokenizer.to_str()
    source = byte_level_bpe()
    source.chat_template = TEMPLATE
    causal_tokenizer(target, source, chat_template="source")
    assert target.backend_tokenizer.to_str() == before


def test_special_tokens_of_the_chat_template_are_added() -> None:
    source = byte_level_bpe()
    source.add_special_tokens({"additional_special_tokens": ["<|turn|>", "<|unused|>"]})
    source.chat_template = TEMPLATE
    target = tiny("sentencepiece_unigram")
    tokenizer = causal_tokenizer(target, source, chat_template="source")
    size = len(target)
    added = {tokenizer.convert_ids_to_tokens(i) for i in range(size, len(tokenizer))}
    assert added == {"<|turn|>", "<|begin|>", "<|end|>"}
    assert tokenizer.eos_token == "<|end|>" and tokenizer.bos_token == "<|begin|>"
    text = tokenizer.apply_chat_template([{"role": "user", "content": "kissa"}], tokenize=False)
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == tokenizer.convert_tokens_to_ids("<|turn|>") and ids[-1] == tokenizer.eos_token_id
    for policy in ("target", "none"):
        assert causal_tokenizer(target, source, chat_template=policy).chat_template is None


def test_a_missing_chat_template_is_an_error() -> None:
    with pytest.raises(InputError, match="the source tokenizer has none"):
        causal_tokenizer(tiny("wordpiece"), tiny("byte_level_bpe"), chat_template="source")


def test_a_second_eos_id_never_becomes_bos_or_pad() -> None:
    tokenizer = causal_tokenizer(tiny("wordpiece"), tiny("byte_level_bpe"), chat_template="none")
    source_id = np.full(len(tokenizer), -1, dtype=np.int32)
    # The source has one token for bos, eos and pad, the first of its eos ids.
    source_id[[tokenizer.pad_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id]] = 1
    source_id[200] = 60
    changes = id_changes({"eos_token_id": [1, 60], "decoder_start_token_id": 1}, None, tokenizer, source_id)
    assert changes.config["eos_token_id"] == [tokenizer.sep_token_id, 200]
    assert changes.config["decoder_start_token_id"] == tokenizer.sep_token_id


def test_words_spelled_in_ids_are_mapped_completely_or_removed() -> None:
    tokenizer = causal_tokenizer(tiny("wordpiece"), tiny("byte_level_bpe"), chat_template="none")
    source_id = np.full(len(tokenizer), -1, dtype=np.int32)
    source_id[[7, 9]] = [50, 51]
    generation = {
        "bad_words_ids": [[50], [51, 50], [51, 52]],
        "forced_decoder_ids": [[1, 50]],
        "sequence_bias": [[[50], 1.0]],
    }
    changed = id_changes({}, generation, tokenizer, source_id).generation
    assert changed["bad_words_ids"] == [[7], [9, 7]]
    assert changed["forced_decoder_ids"] is None and changed["sequence_bias"] is None


def test_ids_in_configs_follow_roles_and_the_alignment() -> None:
    tokenizer = causal_tokenizer(tiny("wordpiece"), tiny("byte_level_bpe"), chat_template="none")
    source_id = np.full(len(tokenizer), -1, dtype=np.int32)
    source_id[[7, 9, 11]] = [50, 51, 50]
    config = {"vocab_size": 9, "bos_token_id": 0, "eos_token_id": [1, 51, 77], "image_token_id": 50, "foo_token_id": 8}
    generation = {"suppress_tokens": [51, 8], "begin_suppress_tokens": [8], "forced_bos_token_id": None, "top_k": 3}
    changes = id_changes(config, generation, tokenizer, source_id)
    assert changes.config == {
        "bos_token_id": tokenizer.cls_token_id,
        "eos_token_id": [tokenizer.sep_token_id, 9],
        "pad_token_id": tokenizer.pad_token_id,
        "image_token_id": 7,
        "foo_token_id": None,
    }
    assert changes.generation == {
        "bos_token_id": tokenizer.cls_token_id,
        "eos_token_id": tokenizer.sep_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "suppress_tokens": [9],
        "begin_suppress_tokens": None,
    }
    assert id_changes(config, None, tokenizer, source_id).generation is None
