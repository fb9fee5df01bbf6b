"""Roles of special tokens, read from objects and folders, and pairs of tokens of the same role."""

from __future__ import annotations

import json

import pytest
from tokenizers_tiny import KINDS, SPECIALS, byte_level_bpe, tiny, with_roles

from saltlm.alignment.align import align, load_tokens
from saltlm.alignment.causal_tokenizer import causal_tokenizer
from saltlm.alignment.roles import match_ends, match_roles, real_roles, roles_of
from saltlm.errors import InputError


@pytest.mark.parametrize("tokenizer_kind", KINDS)
def test_folder_and_object_give_the_same_roles(tmp_path, tokenizer_kind: str) -> None:
    tiny(tokenizer_kind).save_pretrained(tmp_path)
    assert load_tokens(tmp_path).roles == roles_of(tiny(tokenizer_kind)) == load_tokens(tiny(tokenizer_kind)).roles
    assert len(roles_of(tiny(tokenizer_kind))) == len(SPECIALS[tokenizer_kind])
    assert align(tmp_path, tiny(tokenizer_kind)).source_id.tolist() == list(range(len(tiny(tokenizer_kind))))


def test_entries_may_be_objects_and_roles_make_tokens_special(tmp_path) -> None:
    tokenizer = byte_level_bpe(size=300)
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "special_tokens_map.json").unlink(missing_ok=True)
    config = {"bos_token": {"content": "<|begin|>", "special": True}, "eos_token": "<|end|>", "pad_token": None}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    assert load_tokens(tmp_path).roles == {"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id}


def test_the_error_names_a_broken_config(tmp_path) -> None:
    byte_level_bpe(size=300).save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match="tokenizer_config"):
        load_tokens(tmp_path)


def test_the_error_names_a_config_that_is_not_an_object(tmp_path) -> None:
    byte_level_bpe(size=300).save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[1]", encoding="utf-8")
    with pytest.raises(InputError, match=r"tokenizer_config\.json: found a list"):
        load_tokens(tmp_path)


@pytest.mark.parametrize("tokenizer_kind", ["sentencepiece_unigram", "sentencepiece_bpe", "wordpiece"])
def test_a_bare_file_has_the_roles_of_the_usual_spellings(tmp_path, tokenizer_kind: str) -> None:
    tiny(tokenizer_kind).save_pretrained(tmp_path)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        (tmp_path / name).unlink(missing_ok=True)
    for bare in (tmp_path, tmp_path / "tokenizer.json", tiny(tokenizer_kind).backend_tokenizer):
        assert load_tokens(bare).roles == roles_of(tiny(tokenizer_kind))


def test_one_token_of_two_roles_takes_the_first_that_the_source_knows() -> None:
    assert match_roles({"bos": 5, "eos": 6}, {"bos": 0, "eos": 0, "pad": 0}) == [(0, 5)]
    assert match_roles({"unk": 3}, {"bos": 0, "unk": 0}) == [(0, 3)]


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        ({"bos": 5, "eos": 6}, {"bos": 0, "eos": 1}, [(0, 5), (1, 6)]),
        ({"bos": 5, "eos": 5, "unk": 5}, {"cls": 2, "sep": 3, "pad": 0, "unk": 1}, [(0, 5), (1, 5), (2, 5), (3, 5)]),
        ({"eos": 7}, {"bos": 0, "eos": 0, "pad": 0}, [(0, 7)]),
        ({"eos": 7}, {"mask": 4, "unk": 3}, []),
        ({"eos": 0}, {"eos": 0}, [(0, 0)]),
        ({}, {"bos": 0}, []),
    ],
)
def test_pairs(source: dict, target: dict, expected: list) -> None:
    assert match_roles(source, target) == expected


def test_an_override_takes_precedence_over_the_role() -> None:
    assert match_roles({"eos": 7}, {"eos": 1}, {1: 9}) == [(1, 9)]


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        ({"bos": 5, "eos": 6}, {"bos": 0, "eos": 0, "pad": 0}, {0: 6}),
        ({"bos": 5, "eos": 6}, {"bos": 0, "eos": 1}, {}),
        ({"bos": 5, "eos": 6}, {"eos": 1, "pad": 0}, {}),
        ({"bos": 5, "eos": 5}, {"bos": 0, "eos": 0}, {}),
        ({"eos": 6}, {"bos": 0, "eos": 0}, {}),
        ({"bos": 5}, {"bos": 0, "eos": 0}, {}),
        ({"bos": 5, "sep": 7}, {"cls": 0, "sep": 0}, {0: 7}),
        ({"bos": 5, "eos": 6, "pad": 7}, {"eos": 0, "pad": 0, "unk": 0}, {}),
    ],
)
def test_a_token_that_begins_and_ends_a_text_ends_it_as_the_source_does(source: dict, target: dict, expected) -> None:
    assert match_ends(source, target) == expected


def test_an_override_takes_both_rows() -> None:
    assert match_ends({"bos": 5, "eos": 6}, {"bos": 0, "eos": 0}, {0: 9}) == {}


def test_a_stand_in_is_no_real_role() -> None:
    source = tiny("byte_level_bpe")
    for target, missing in (
        (tiny("wordpiece"), {"bos", "eos"}),
        (with_roles("sentencepiece_unigram", eos_token="</s>", pad_token="<pad>"), {"bos"}),
        (tiny("sentencepiece_unigram"), set()),
    ):
        tokenizer = causal_tokenizer(target, source, chat_template="none")
        assert roles_of(tokenizer).keys() - real_roles(tokenizer, target, source).keys() == missing
        assert real_roles(tokenizer, target, source) == roles_of(target)
