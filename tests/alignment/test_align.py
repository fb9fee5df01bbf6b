"""Laws of alignment for all pairs of tokenizer kinds: identity, renumbering, order, strictness, covers."""

from __future__ import annotations

import base64
import itertools
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers_tiny import KINDS, byte_level_bpe, tiny

from saltlm import _rust
from saltlm.alignment.align import BYTE_PIECE, HOLE, SPECIAL, MatchKind, align, load_tokens
from saltlm.errors import InputError

PAIRS = list(itertools.product(KINDS, KINDS))


def canonical(vocabulary: _rust.Vocabulary) -> list[bytes]:
    data, offsets = vocabulary.token_bytes()
    return [data[a:b].tobytes() for a, b in itertools.pairwise(offsets)]


def renumbered(tokenizer, order: list[int]) -> bytes:
    """The tokenizer's JSON with id ``order[i]`` for token ``i`` (BPE and WordPiece, where ids may be in any order)."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    content["model"]["vocab"] = {token: order[id_] for token, id_ in content["model"]["vocab"].items()}
    for added in content["added_tokens"]:
        added["id"] = order[added["id"]]
    return json.dumps(content).encode()


def native(data: bytes) -> _rust.Vocabulary:
    return _rust.Vocabulary.from_tokenizer_json(data, [])


@pytest.mark.parametrize("kind", KINDS)
def test_kind_is_read_from_the_model(kind: str) -> None:
    assert load_tokens(tiny(kind)).vocabulary.kind == kind


@pytest.mark.parametrize("kind", KINDS)
def test_self_alignment_is_the_identity(kind: str) -> None:
    found = align(tiny(kind), tiny(kind))
    assert found.source_id.tolist() == list(range(len(tiny(kind))))
    assert found.cover_offsets[-1] == 0


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_strict_kinds_never_match_different_bytes(source: str, target: str) -> None:
    found = align(tiny(source), tiny(target), overlap="case")
    ours, theirs = canonical(found.target), canonical(found.source)
    for token, (kind, id_) in enumerate(zip(found.kind, found.source_id, strict=True)):
        assert (id_ == -1) == (kind == MatchKind.NONE)
        if kind in (MatchKind.EXACT, MatchKind.BYTE):
            assert ours[token] == theirs[id_]
        elif kind == MatchKind.WORD_START:
            assert ours[token] != theirs[id_] and ours[token].removeprefix(b" ") == theirs[id_].removeprefix(b" ")
        elif kind == MatchKind.CASE:
            assert ours[token].strip().decode().lower() == theirs[id_].strip().decode().lower()


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_exact_matches_equal_a_plain_dictionary(source: str, target: str) -> None:
    found = align(tiny(source), tiny(target))
    text = SPECIAL | HOLE
    by_bytes: dict[bytes, set[int]] = {}
    for id_, token in enumerate(canonical(found.source)):
        if not found.source.flags()[id_] & text:
            by_bytes.setdefault(token, set()).add(id_)
    for id_, token in enumerate(canonical(found.target)):
        if found.target.flags()[id_] & text:
            continue
        candidates = by_bytes.get(token, set())
        assert (found.source_id[id_] in candidates) if candidates else (found.source_id[id_] == -1), token


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_covers_spell_the_token(source: str, target: str) -> None:
    found = align(tiny(source), tiny(target))
    ours, theirs = canonical(found.target), canonical(found.source)
    pieces = {text for text, flags in zip(theirs, found.source.flags(), strict=True) if not flags & (SPECIAL | HOLE)}
    for token in range(len(ours)):
        cover = found.cover(token)
        if found.source_id[token] >= 0 or found.target.flags()[token] & (SPECIAL | HOLE):
            assert not len(cover)
        elif spells(pieces, ours[token]):
            assert b"".join(theirs[piece] for piece in cover) == ours[token]
        else:
            assert not len(cover) and source in ("sentencepiece_unigram", "wordpiece"), "the others have every byte"


def spells(pieces: set[bytes], text: bytes) -> bool:
    """Whether some sequence of the pieces is the text."""
    reached = [True] + [False] * len(text)
    for end in range(1, len(text) + 1):
        reached[end] = any(reached[begin] and text[begin:end] in pieces for begin in range(end))
    return reached[-1]


def encode_whole(source: str, text: bytes) -> list[int] | None:
    """Segmentation of a text by the model alone, without pre-tokenizer and normalizer."""
    tokenizer = Tokenizer.from_str(tiny(source).backend_tokenizer.to_str())
    model = tokenizer.model
    string = text.decode()
    if source == "byte_level_bpe":
        table = {b: c for c, b in alphabet().items()}
        string = "".join(table[b] for b in text)
    elif source in ("sentencepiece_unigram", "sentencepiece_bpe"):
        string = string.replace(" ", "▁")
    elif string.startswith(" "):
        string = string[1:]
    else:
        return None  # the WordPiece model cannot segment the continuation of a word
    return [token.id for token in model.tokenize(string)]


def alphabet() -> dict[str, int]:
    """Character -> byte, from the printable ranges, independent of the Rust table."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    other = [b for b in range(256) if b not in plain]
    return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(other)}


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_covers_are_the_source_models_own_segmentation(source: str, target: str) -> None:
    found = align(tiny(source), tiny(target))
    theirs = canonical(found.source)
    seen = 0
    for token, text in enumerate(canonical(found.target)):
        cover = found.cover(token)
        try:
            text.decode()
        except UnicodeDecodeError:
            continue
        if not len(cover) or (expected := encode_whole(source, text)) is None:
            continue
        seen += 1
        if b"".join(theirs[i] for i in expected) == text:  # otherwise the model gave <unk>
            assert cover.tolist() == expected, text
    assert bool(seen) == (source != target)


@given(text=st.text("abehiknost äöüßÜ中🙂\n", min_size=1, max_size=300), source=st.sampled_from(KINDS[:3]))
def test_any_text_is_covered_as_the_model_segments_it(text: str, source: str) -> None:
    tokens = tokens_of(source)
    line = base64.b64encode(text.encode()) + b" 0"
    kind, _, _, cover = _rust.align(tokens, _rust.Vocabulary.from_tiktoken(line, []), "exact", [])
    expected = encode_whole(source, text.encode())
    theirs = canonical(tokens)
    if kind[0] != MatchKind.NONE:
        assert not len(cover)
    elif b"".join(theirs[i] for i in expected) == text.encode():
        assert cover.tolist() == expected
    else:
        assert source == "sentencepiece_unigram" and not len(cover), "the others have every byte"


@given(data=st.data(), source=st.sampled_from(("byte_level_bpe", "wordpiece")), target=st.sampled_from(KINDS))
def test_renumbering_the_source_only_renumbers(data, source: str, target: str) -> None:
    order = data.draw(st.permutations(range(len(tiny(source)))))
    plain_source = native(tiny(source).backend_tokenizer.to_str().encode())
    vocabulary = native(tiny(target).backend_tokenizer.to_str().encode())
    moved = _rust.align(native(renumbered(tiny(source), order)), vocabulary, "exact", [])
    plain = _rust.align(plain_source, vocabulary, "exact", [])
    np.testing.assert_array_equal(moved[0], plain[0])
    np.testing.assert_array_equal(moved[1], [order[i] if i >= 0 else -1 for i in plain[1]])
    np.testing.assert_array_equal(moved[2], plain[2])
    np.testing.assert_array_equal(moved[3], [order[i] for i in plain[3]])


@given(data=st.data(), source=st.sampled_from(KINDS), target=st.sampled_from(("byte_level_bpe", "wordpiece")))
def test_renumbering_the_target_only_renumbers(data, source: str, target: str) -> None:
    order = data.draw(st.permutations(range(len(tiny(target)))))
    vocabulary = native(tiny(source).backend_tokenizer.to_str().encode())
    plain = _rust.align(vocabulary, native(tiny(target).backend_tokenizer.to_str().encode()), "case", [])
    moved = _rust.align(vocabulary, native(renumbered(tiny(target), order)), "case", [])
    for token, place in enumerate(order):
        assert (moved[0][place], moved[1][place]) == (plain[0][token], plain[1][token])
        ours = plain[3][plain[2][token] : plain[2][token + 1]]
        np.testing.assert_array_equal(moved[3][moved[2][place] : moved[2][place + 1]], ours)


def test_order_in_the_file_does_not_matter() -> None:
    content = json.loads(tiny("byte_level_bpe").backend_tokenizer.to_str())
    content["model"]["vocab"] = dict(reversed(content["model"]["vocab"].items()))
    content["added_tokens"].reverse()
    plain = native(tiny("byte_level_bpe").backend_tokenizer.to_str().encode())
    other = native(json.dumps(content).encode())
    for a, b in zip(_rust.align(plain, plain, "case", []), _rust.align(other, other, "case", []), strict=True):
        np.testing.assert_array_equal(a, b)


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


@given(st.lists(st.binary(min_size=1, max_size=6), min_size=1, max_size=60, unique=True), st.integers(0, 5))
def test_tiktoken_ranks_align_as_bytes(tokens: list[bytes], gap: int) -> None:
    def ranks(items: list[bytes], step: int) -> bytes:
        return b"".join(base64.b64encode(t) + b" %d\n" % (i * step) for i, t in enumerate(items))

    source = _rust.Vocabulary.from_tiktoken(ranks(tokens, gap + 1), [])
    target = _rust.Vocabulary.from_tiktoken(ranks(tokens[::-1], 1), [])
    assert source.size == (len(tokens) - 1) * (gap + 1) + 1
    assert int((source.flags() & HOLE > 0).sum()) == source.size - len(tokens)
    kind, ids, *_ = _rust.align(source, target, "exact", [])
    assert (kind == MatchKind.EXACT).all()
    assert ids.tolist() == [i * (gap + 1) for i in reversed(range(len(tokens)))]


def test_partial_utf8_and_controls_do_not_collapse() -> None:
    tokens = [bytes([b]) for b in range(256)] + [b"\xe4\xb8", b"\xe4\xb8\xad", b"\xef\xbf\xbd", b"\t\n", b"\n\n"]
    data = b"".join(base64.b64encode(t) + b" %d\n" % i for i, t in enumerate(tokens))
    both = _rust.Vocabulary.from_tiktoken(data, [])
    found = _rust.align(tokens_of("sentencepiece_bpe"), both, "case", [])
    target = canonical(both)
    source = canonical(tokens_of("sentencepiece_bpe"))
    assert all(source[i] == target[t] or found[0][t] >= MatchKind.WORD_START for t, i in enumerate(found[1]) if i >= 0)
    byte = found[0][:256]
    assert (byte != MatchKind.NONE).all(), "every byte has a piece, including <0xFF>"
    assert both.words()[256] is None and both.words()[257] == "中" and both.words()[9] is None


def tokens_of(kind: str) -> _rust.Vocabulary:
    return load_tokens(tiny(kind)).vocabulary


def test_byte_pieces_match_as_bytes_and_real_tokens_come_first() -> None:
    found = align(tiny("byte_level_bpe"), tiny("sentencepiece_bpe"))
    flags = found.target.flags()
    pieces = np.flatnonzero(flags & BYTE_PIECE)
    assert len(pieces) == 256
    assert (found.kind[pieces] == MatchKind.BYTE).all()
    back = align(tiny("sentencepiece_bpe"), tiny("byte_level_bpe"))
    for token, text in enumerate(canonical(back.target)):
        if text == b"a":
            assert back.kind[token] == MatchKind.EXACT
        if text == b"\xff":
            assert back.kind[token] == MatchKind.BYTE


def test_special_tokens_match_by_role_never_by_text() -> None:
    source, target = tiny("byte_level_bpe"), tiny("wordpiece")
    found = align(source, target)
    role = {name: found.source_id[getattr(target, f"{name}_token_id")] for name in ("cls", "sep", "pad", "mask", "unk")}
    assert role["cls"] == source.bos_token_id and role["sep"] == source.eos_token_id
    assert role["pad"] == source.pad_token_id and role["mask"] == -1 and role["unk"] == -1
    special = found.source.flags() & SPECIAL > 0
    shared = (found.kind != MatchKind.ROLE) & found.shared
    assert not special[found.source_id[shared]].any()


def test_overrides_come_first() -> None:
    source, target = tiny("byte_level_bpe"), tiny("wordpiece")
    found = align(source, target, special_overrides={"[MASK]": "<|end|>"})
    assert found.source_id[target.mask_token_id] == source.eos_token_id
    with pytest.raises(InputError, match=r"no such token in the target.*\[MASK\]"):
        align(source, target, special_overrides={"[NOPE]": "<|end|>"})


def test_added_tokens_are_plain_text_beyond_the_vocabulary() -> None:
    tokenizer = byte_level_bpe(size=300)
    before = len(tokenizer)
    tokenizer.add_tokens(["Donaudampfschiff", "zwei  blanks"])
    found = align(tokenizer, tokenizer)
    assert found.target.size == before + 2
    assert canonical(found.target)[before:] == [b"Donaudampfschiff", b"zwei  blanks"]
    assert found.source_id.tolist() == list(range(before + 2))
    cover = align(byte_level_bpe(size=300), tokenizer)
    theirs = canonical(cover.source)
    assert b"".join(theirs[i] for i in cover.cover(before)) == b"Donaudampfschiff"


@pytest.mark.parametrize("overlap", ["exact", "word-start", "case"])
def test_looser_overlaps_only_add(overlap: str) -> None:
    words = ["▁Haus", "haus", "▁der", "▁Der", "▁", "DER"]
    source = Tokenizer(models.Unigram([(w, -1.0) for w in words[:3]]))
    target = Tokenizer(models.Unigram([(w, -1.0) for w in words]))
    for tokenizer in (source, target):
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    expected = {
        "exact": [0, 1, 2, -1, -1, -1],
        "word-start": [0, 1, 2, -1, -1, -1],
        "case": [0, 1, 2, 2, -1, 2],
    }[overlap]
    assert align(source, target, overlap=overlap).source_id.tolist() == expected
    plain = Tokenizer(models.Unigram([("der", -1.0)]))
    plain.pre_tokenizer = pre_tokenizers.Metaspace()
    ids = align(plain, target, overlap=overlap).source_id.tolist()
    assert ids == {"exact": [-1] * 6, "word-start": [-1, -1, 0, -1, -1, -1], "case": [-1, -1, 0, 0, -1, 0]}[overlap]


def test_a_result_prints_counts_not_arrays() -> None:
    text = repr(align(tiny("byte_level_bpe"), tiny("wordpiece")))
    assert text.startswith("Alignment(S=420, T=") and "array" not in text


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
        (b'{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [], "end_of_word_suffix": "</w>"}}', "end of words"),
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


def test_missing_and_unknown_inputs(tmp_path) -> None:
    with pytest.raises(InputError, match="nothing at"):
        align(tmp_path / "nope", tiny("wordpiece"))
    with pytest.raises(InputError, match="a int"):
        align(3, tiny("wordpiece"))
    with pytest.raises(InputError, match="overlap"):
        align(tiny("wordpiece"), tiny("wordpiece"), overlap="fuzzy")


def model_file(tmp_path, model: dict, **parts):
    """Tokens of a ``tokenizer.json`` with this model and these components."""
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({"model": model, **parts}), encoding="utf-8")
    return load_tokens(path)


def component(name: str, **options) -> dict:
    return {"type": name, **options}


REPLACE = component("Replace", pattern={"String": " "}, content="▁")
BACK = component("Replace", pattern={"String": "▁"}, content=" ")
FALLBACK = component("Sequence", decoders=[BACK, component("ByteFallback"), component("Fuse")])
PRE = component("Split", pattern={"String": " "}, behavior="MergedWithPrevious", invert=False)
REGEX = component("Split", pattern={"Regex": "\\s+"}, behavior="Isolated", invert=False)
LEVEL = component("ByteLevel", add_prefix_space=False, trim_offsets=True, use_regex=False)
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
    model, parts, kind, expected = SPELLED[name]
    tokens = model_file(tmp_path, model, **parts)
    assert tokens.vocabulary.kind == kind
    assert canonical(tokens.vocabulary) == expected
    same = align(tokens, tokens)
    assert same.source_id.tolist() == list(range(len(expected))), (
        "tokens with equal bytes are distinguished by their spelling"
    )
    assert all(k in (MatchKind.EXACT, MatchKind.BYTE) for k in same.kind)


def added(*tokens: tuple[int, str, bool]) -> list[dict]:
    return [{"id": index, "content": content, "special": special} for index, content, special in tokens]


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
    model, parts, _, own = SPELLED[family]
    found = model_file(tmp_path, model, **parts, added_tokens=added(*tokens)).vocabulary
    assert canonical(found) == own + [text.encode() for text in expected]
    special = {index for index, _, is_special in tokens if is_special}
    assert set(np.flatnonzero(found.flags() & SPECIAL)) == special
    holes = [index for index, text in enumerate(expected, len(own)) if not text]
    assert np.flatnonzero(found.flags() & HOLE).tolist() == holes


def test_an_added_token_replaces_the_piece_of_its_id(tmp_path) -> None:
    model, parts, *_ = SPELLED["gpt2, no type"]
    found = model_file(tmp_path, model, **parts, added_tokens=added((1, "<|end|>", True))).vocabulary
    assert canonical(found) == [b" ", b"<|end|>"]


def test_covers_are_made_of_the_models_own_pieces(tmp_path) -> None:
    model = {"type": "BPE", "vocab": {"a": 0, "b": 1, "c": 2, "ab": 3}, "merges": ["a b"]}
    source = model_file(tmp_path, model, pre_tokenizer=LEVEL, added_tokens=added((4, "bc", False), (5, "ca", True)))
    ranks = b"".join(base64.b64encode(t) + b" %d\n" % i for i, t in enumerate([b"abc", b"bc", b"bca"]))
    kind, ids, _, cover = _rust.align(source.vocabulary, _rust.Vocabulary.from_tiktoken(ranks, []), "exact", [])
    assert ids.tolist() == [-1, 4, -1] and kind.tolist() == [0, 1, 0]
    assert cover.tolist() == [3, 2, 1, 2, 0], "an added token matches as text but is not used in covers"


def test_an_uncased_wordpiece_has_no_capitals(tmp_path) -> None:
    # Its normalizer lower-cases all text, so none of its tokens stands for a capital: only overlap "case" matches one.
    source = model_file(tmp_path, {"type": "WordPiece", "vocab": {"haus": 0, "中": 1}})
    line = b"".join(base64.b64encode(t.encode()) + b" %d\n" % i for i, t in enumerate([" Haus", " haus", "中"]))
    target = _rust.Vocabulary.from_tiktoken(line, [])
    ids = {
        overlap: _rust.align(source.vocabulary, target, overlap, [])[1].tolist()
        for overlap in ("exact", "word-start", "case")
    }
    assert ids == {"exact": [-1, 0, -1], "word-start": [-1, 0, 1], "case": [0, 0, 1]}


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
    own = [{"rank": i, "token_bytes": base64.b64encode(t).decode()} for i, t in enumerate([b"a", b"\xff", b" b", b"c"])]
    content = {"config": {"default_vocab_size": 13, "default_num_special_tokens": 10}, "vocab": own}
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


def test_an_override_may_name_any_token() -> None:
    source, target = tiny("byte_level_bpe"), tiny("wordpiece")
    found = align(source, target, special_overrides={"[MASK]": "Ċ"})
    assert canonical(found.source)[found.source_id[target.mask_token_id]] == b"\n"


def test_a_forked_child_aligns_too(tmp_path) -> None:
    tiny("byte_level_bpe").save_pretrained(tmp_path)
    code = (
        "import os, sys\n"
        "from saltlm import align\n"
        "path = sys.argv[1]\n"
        "here = align(path, path)\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    os._exit(int((align(path, path).source_id != here.source_id).any()))\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "tokenizer.json"], check=True, timeout=60)


def test_no_thread_changes_the_result(tmp_path) -> None:
    tiny("sentencepiece_unigram").save_pretrained(tmp_path / "a")
    tiny("byte_level_bpe").save_pretrained(tmp_path / "b")
    code = (
        "import hashlib, sys\n"
        "from saltlm import align\n"
        "found = align(sys.argv[1], sys.argv[2])\n"
        "parts = (found.kind, found.source_id, found.cover_offsets, found.cover_ids)\n"
        "print(hashlib.sha256(b''.join(p.tobytes() for p in parts)).hexdigest())\n"
    )
    command = [sys.executable, "-c", code, tmp_path / "a", tmp_path / "b"]
    results = set()
    for threads in ("1", "3"):
        environment = {**os.environ, "RAYON_NUM_THREADS": threads}
        results.add(subprocess.run(command, check=True, capture_output=True, env=environment).stdout)
    assert len(results) == 1
