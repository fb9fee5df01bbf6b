"""The tokenizer for a causal model: the target's segmentation, the source's special tokens, roles, padding."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import processors
from tokenizers_tiny import KINDS, TEXT, byte_level_bpe, sentencepiece_unigram, tiny, with_roles, wordpiece

from saltlm.alignment.causal_tokenizer import causal_tokenizer
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


BYTES = {"bos_token": "<|begin|>", "eos_token": "<|end|>"}
UNIGRAM = {"bos_token": "<s>", "eos_token": "</s>"}


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        # The target's, whatever the source has.
        (
            ("byte_level_bpe", {**BYTES, "pad_token": "<|pad|>"}),
            ("sentencepiece_unigram", {**UNIGRAM, "pad_token": "<pad>"}),
            "<pad>",
        ),
        (("byte_level_bpe", BYTES), ("sentencepiece_unigram", {**UNIGRAM, "pad_token": "<mask>"}), "<mask>"),
        # The source's, where the target has that token.
        (("sentencepiece_unigram", {**UNIGRAM, "pad_token": "<pad>"}), ("sentencepiece_unigram", UNIGRAM), "<pad>"),
        (
            ("byte_level_bpe", {**BYTES, "pad_token": "<|pad|>"}),
            ("byte_level_bpe", {**BYTES, "pad_token": "<|end|>"}),
            "<|pad|>",
        ),
        # Else none: eos would be left out of the loss.
        (("sentencepiece_unigram", {**UNIGRAM, "pad_token": "<pad>"}), ("byte_level_bpe", BYTES), None),
        (("byte_level_bpe", BYTES), ("byte_level_bpe", BYTES), None),
        (("byte_level_bpe", {**BYTES, "pad_token": "<|end|>"}), ("byte_level_bpe", BYTES), None),
        (("byte_level_bpe", BYTES), ("sentencepiece_unigram", {**UNIGRAM, "pad_token": "</s>"}), None),
        # Unless both say so.
        (
            ("byte_level_bpe", {**BYTES, "pad_token": "<|end|>"}),
            ("sentencepiece_unigram", {**UNIGRAM, "pad_token": "</s>"}),
            "</s>",
        ),
    ],
)
def test_the_padding_token(source, target, expected: str | None) -> None:
    tokenizer = causal_tokenizer(
        with_roles(target[0], **target[1]), with_roles(source[0], **source[1]), chat_template="none"
    )
    assert tokenizer.pad_token == expected
    assert len(tokenizer) == len(tiny(target[0]))


@pytest.mark.parametrize(
    ("roles", "pad"), [({"pad_token": "<pad>"}, "<pad>"), ({}, "<pad>"), ({"pad_token": "<|pad|>"}, "<|pad|>")]
)
def test_a_needed_padding_token_is_added_at_the_end(roles, pad: str) -> None:
    target = with_roles("sentencepiece_bpe", bos_token="<s>", eos_token="</s>", pad_token="</s>")
    source = with_roles("byte_level_bpe", **BYTES, **roles)
    tokenizer = causal_tokenizer(target, source, chat_template="none", needs_pad=True)
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == (pad, len(target)) and len(tokenizer) == len(target) + 1
    assert tokenizer.convert_ids_to_tokens(list(range(len(target)))) == target.convert_ids_to_tokens(
        list(range(len(target)))
    )
    own = causal_tokenizer(tiny("wordpiece"), source, chat_template="none", needs_pad=True)
    assert own.pad_token == "[PAD]" and len(own) == len(tiny("wordpiece"))


def test_text_in_the_targets_vocabulary_is_no_padding_token() -> None:
    """A source's padding token that is ordinary text in the target would be taken for padding where the text has it."""
    word = next(token for token in tiny("sentencepiece_unigram").get_vocab() if token.isalpha() and len(token) > 2)
    source = with_roles("byte_level_bpe", **BYTES, pad_token=word)
    target = with_roles("sentencepiece_unigram", **UNIGRAM)
    assert causal_tokenizer(target, source, chat_template="none").pad_token is None
