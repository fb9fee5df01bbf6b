"""Tokenizer files of every family: the bytes of their tokens, their added tokens, and the files that are refused."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizer_files import LEVEL, added_tokens, canonical, component, model_file
from tokenizers_tiny import KINDS, tiny

from saltlm import _rust
from saltlm.alignment.align import HOLE, SPECIAL, MatchKind, align, load_tokens
from saltlm.errors import InputError


@pytest.mark.parametrize("tokenizer_kind", KINDS)
def test_kind_is_read_from_the_model(tokenizer_kind: str) -> None:
    assert load_tokens(tiny(tokenizer_kind)).vocabulary.kind == tokenizer_kind


@given(st.binary(max_size=200))
def test_random_bytes_are_refused_without_a_panic(data: bytes) -> None:
    for read in (
        lambda: _rust.Vocabulary.from_tokenizer_json(data, []),
        lambda: _rust.Vocabulary.from_tiktoken(data, []),
    ):
        try:
            read()
        except ValueError as error:
            assert "expected" in str(error)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "broken file"),
        (b"{}", "broken file"),
        (b'{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}', "ByteLevel"),
        (b'{"model": {"type": "Nope", "vocab": {"a": 0}}}', "Nope"),
        (b'{"model": {"type": "WordPiece", "vocab": {}}}', "empty vocabulary"),
        (b'{"model": {"type": "WordPiece", "vocab": {"a": 99999999999}}}', "token id 99999999999"),
        (b'{"model": {"type": "WordPiece", "vocab": {"a": -1}}}', "broken file"),
        (
            b'{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [], "continuing_subword_prefix": "##"}}',
            "continuations",
        ),
        (
            b'{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [], "end_of_word_suffix": "</w>"},'
            b' "pre_tokenizer": {"type": "Metaspace"}}',
            "marks word ends and word starts",
        ),
    ],
)
def test_broken_tokenizers_are_named(tmp_path, content: bytes, words: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=words) as caught:
        align(path, path)
    assert str(path) in str(caught.value)


def test_a_broken_rank_line_is_named(tmp_path) -> None:
    path = tmp_path / "x.tiktoken"
    path.write_bytes(b"YQ== 0\nYg=\n")
    with pytest.raises(InputError, match="line 2"):
        align(path, path)


REPLACE = component("Replace", pattern={"String": " "}, content="▁")
BACK = component("Replace", pattern={"String": "▁"}, content=" ")
FALLBACK = component("Sequence", decoders=[BACK, component("ByteFallback"), component("Fuse")])
PRE = component("Split", pattern={"String": " "}, behavior="MergedWithPrevious", invert=False)
REGEX = component("Split", pattern={"Regex": "\\s+"}, behavior="Isolated", invert=False)
SPELLED = {
    "gpt2, no type": (
        {"vocab": {"Ġ": 0, "ĠÃ¤": 1}, "merges": []},
        {"pre_tokenizer": LEVEL},
        "byte_level_bpe",
        [b" ", " ä".encode()],
    ),
    "llama 3": (
        {"type": "BPE", "vocab": {"Ċ": 0, "ĠJa": 1}, "merges": [], "ignore_merges": True},
        {"pre_tokenizer": component("Sequence", pretokenizers=[REGEX, LEVEL]), "decoder": LEVEL},
        "byte_level_bpe",
        [b"\n", b" Ja"],
    ),
    "llama 2": (
        {"type": "BPE", "vocab": {"<0x0A>": 0, "▁Ja": 1, "Ġ": 2}, "merges": [], "byte_fallback": True},
        {
            "normalizer": component("Sequence", normalizers=[component("Prepend", prepend="▁"), REPLACE]),
            "decoder": FALLBACK,
        },
        "sentencepiece_bpe",
        [b"\n", b" Ja", "Ġ".encode()],
    ),
    "gemma": (
        {"type": "BPE", "vocab": {"<0xE4>": 0, "▁▁": 1, "\n\n": 2}, "merges": [], "byte_fallback": True},
        {"normalizer": REPLACE, "pre_tokenizer": PRE, "decoder": FALLBACK},
        "sentencepiece_bpe",
        [b"\xe4", b"  ", b"\n\n"],
    ),
    "t5, mt5: byte pieces that its model does not fall back on are text": (
        {"type": "Unigram", "vocab": [["▁Ja", -1.0], ["ja▁", -2.0], ["<0x0A>", -3.0]], "unk_id": 0},
        {"pre_tokenizer": component("Metaspace", replacement="▁")},
        "sentencepiece_unigram",
        [b" Ja", b"ja ", b"<0x0A>"],
    ),
    "unigram over bytes": (
        {"type": "Unigram", "vocab": [["ĠJ", -1.0], ["Ã", -2.0], ["a", -2.0]]},
        {"pre_tokenizer": LEVEL, "decoder": LEVEL},
        "byte_level_unigram",
        [b" J", b"\xc3", b"a"],
    ),
    "wordpiece": (
        {"type": "WordPiece", "vocab": {"ja": 0, "##ja": 1, "##": 2, "#": 3, "中": 4}},
        {"pre_tokenizer": component("BertPreTokenizer")},
        "wordpiece",
        [b" ja", b"ja", b" ##", b" #", " 中".encode()],
    ),
    "wordpiece over marked words": (
        {"type": "WordPiece", "vocab": {"▁ja": 0, "##ja": 1, "ja": 2}},
        {"pre_tokenizer": component("Metaspace", replacement="▁")},
        "wordpiece",
        [b" ja", b"ja", b"ja"],
    ),
    "whole words": ({"type": "WordLevel", "vocab": {"ja": 0, "##a": 1}}, {}, "wordpiece", [b" ja", b" ##a"]),
}


@pytest.mark.parametrize("name", SPELLED)
def test_spellings_of_real_families(tmp_path, name: str) -> None:
    model, parts, tokenizer_kind, expected = SPELLED[name]
    tokens = model_file(tmp_path, model, **parts)
    assert tokens.vocabulary.kind == tokenizer_kind
    assert canonical(tokens.vocabulary) == expected
    same = align(tokens, tokens)
    assert same.source_id.tolist() == list(range(len(expected))), (
        "tokens with equal bytes are distinguished by their spelling"
    )
    assert all(k in (MatchKind.EXACT, MatchKind.BYTE) for k in same.kind)


@pytest.mark.parametrize(
    ("family", "tokens", "expected"),
    [
        # An added token is matched in the raw text, so its "Ġ" is no space mark: its bytes are the two bytes of U+0120.
        ("gpt2, no type", [(2, "Ġnew", False), (3, " new", False)], ["Ġnew", " new"]),
        ("llama 2", [(3, "▁new", False), (9, "<|a▁b|>", True)], [" new", *[""] * 5, "<|a▁b|>"]),
        # An added token with the spelling of a piece is that piece.
        ("gemma", [(1, "▁▁", False), (3, "<start>", True)], ["<start>"]),
        ("wordpiece", [(5, "covid", False), (6, "##new", False), (7, "[NEW]", True)], [" covid", "new", "[NEW]"]),
    ],
)
def test_added_tokens_of_each_spelling(tmp_path, family: str, tokens, expected) -> None:
    model, parts, _, model_tokens = SPELLED[family]
    vocabulary = model_file(tmp_path, model, **parts, added_tokens=added_tokens(*tokens)).vocabulary
    assert canonical(vocabulary) == model_tokens + [text.encode() for text in expected]
    special = {index for index, _, is_special in tokens if is_special}
    assert set(np.flatnonzero(vocabulary.flags() & SPECIAL)) == special
    holes = [index for index, text in enumerate(expected, len(model_tokens)) if not text]
    assert np.flatnonzero(vocabulary.flags() & HOLE).tolist() == holes


def test_an_added_token_replaces_the_piece_of_its_id(tmp_path) -> None:
    model, parts, *_ = SPELLED["gpt2, no type"]
    vocabulary = model_file(tmp_path, model, **parts, added_tokens=added_tokens((1, "<|end|>", True))).vocabulary
    assert canonical(vocabulary) == [b" ", b"<|end|>"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"model": {"type": "WordPiece"}}', "missing field `vocab`"),
        (b'{"model": {"type": "WordPiece", "vocab": {"a": 0, "b": 0}}}', '"a" and "b" with one id, 0'),
        (
            b'{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [], "continuing_subword_prefix": "@@"}}',
            "continuations",
        ),
        (b'{"model": {"type": "Unigram", "vocab": [["a"]]}}', "broken file"),
        (b'{"model": {"type": "WordPiece", "vocab": {"\xff": 0}}}', "broken file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git-lfs pointer"),
    ],
)
def test_more_broken_tokenizers_are_named(tmp_path, content: bytes, words: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=words):
        load_tokens(tmp_path)


def test_two_tokens_of_one_rank_are_refused(tmp_path) -> None:
    path = tmp_path / "x.tiktoken"
    path.write_bytes(b"YQ== 0\nYg== 7\nYw== 7\n")
    with pytest.raises(InputError, match="two tokens of rank 7"):
        load_tokens(path)


def test_the_first_broken_line_of_a_long_file_is_named(tmp_path) -> None:
    lines = [base64.b64encode(b"token %d" % i) + b" %d" % i for i in range(60_000)]
    lines[41_234] = lines[55_555] = b"?"
    path = tmp_path / "x.tiktoken"
    path.write_bytes(b"\r\n".join(lines))
    with pytest.raises(InputError, match=r'line 41235: found "\?"'):
        load_tokens(path)
    lines[41_234], lines[55_555] = b"YQ== 41234", b"Yg== 55555"
    path.write_bytes(b"\r\n".join(lines))
    tokens = canonical(load_tokens(path).vocabulary)
    assert len(tokens) == 60_000 and tokens[59_999] == b"token 59999" and tokens[41_234] == b"a"


def test_rank_files_are_recognised_by_their_content(tmp_path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(b"YQ== 0\nYg== 1\n")
    assert load_tokens(path).vocabulary.kind == "tiktoken"
    path.write_bytes(b"\n\x0e\n\x05<unk>")
    with pytest.raises(InputError, match="SentencePiece model"):
        load_tokens(path)


def test_tekken_files_use_the_first_ranks_after_the_special_tokens(tmp_path) -> None:
    ranks = [
        {"rank": i, "token_bytes": base64.b64encode(t).decode()} for i, t in enumerate([b"a", b"\xff", b" b", b"c"])
    ]
    content = {"config": {"default_vocab_size": 13, "default_num_special_tokens": 10}, "vocab": ranks}
    path = tmp_path / "tekken.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    tokens = load_tokens(tmp_path)
    assert canonical(tokens.vocabulary) == [b"<unk>", b"<s>", b"</s>", *[b""] * 7, b"a", b"\xff", b" b"]
    assert tokens.roles == {"unk": 0, "bos": 1, "eos": 2}
    content["special_tokens"] = [{"rank": 4, "token_str": "<pad>"}]
    path.write_text(json.dumps(content), encoding="utf-8")
    assert load_tokens(path).roles == {"pad": 4}
    del content["config"]["default_vocab_size"]
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(InputError, match=r"tekken\.json: found a broken file \(KeyError"):
        load_tokens(path)


def test_names_with_dots_are_names_on_a_hub(monkeypatch) -> None:
    for name in ("Qwen/Qwen2.5-0.5B", "gpt2"):
        asked = []
        monkeypatch.setattr(
            "saltlm.alignment.tokens._through_transformers",
            lambda n, _, asked=asked: asked.append(str(n)) or tiny("wordpiece"),
        )
        load_tokens(name)
        assert asked == [name]
    with pytest.raises(InputError, match="nothing at"):
        load_tokens("folder/tokenizer.json")
