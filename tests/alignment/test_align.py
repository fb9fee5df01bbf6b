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
from tokenizer_files import LEVEL, added_tokens, canonical, model_file, native
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers_tiny import KINDS, byte_level_bpe, tiny

from saltlm import _rust
from saltlm.alignment.align import BYTE_PIECE, HOLE, SPECIAL, MatchKind, align, load_tokens
from saltlm.errors import InputError

PAIRS = list(itertools.product(KINDS, KINDS))


def renumbered(tokenizer, order: list[int]) -> bytes:
    """The tokenizer's JSON with id ``order[i]`` for token ``i`` (BPE and WordPiece, where ids may be in any order)."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    content["model"]["vocab"] = {token: order[id_] for token, id_ in content["model"]["vocab"].items()}
    for token in content["added_tokens"]:
        token["id"] = order[token["id"]]
    return json.dumps(content).encode()


@pytest.mark.parametrize("tokenizer_kind", KINDS)
def test_self_alignment_is_the_identity(tokenizer_kind: str) -> None:
    alignment = align(tiny(tokenizer_kind), tiny(tokenizer_kind))
    assert alignment.source_id.tolist() == list(range(len(tiny(tokenizer_kind))))
    assert alignment.cover_offsets[-1] == 0


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_strict_kinds_never_match_different_bytes(source: str, target: str) -> None:
    alignment = align(tiny(source), tiny(target), overlap="case")
    target_tokens, source_tokens = canonical(alignment.target), canonical(alignment.source)
    for token, (match, id_) in enumerate(zip(alignment.kind, alignment.source_id, strict=True)):
        assert (id_ == -1) == (match == MatchKind.NONE)
        target_bytes, source_bytes = target_tokens[token], source_tokens[id_]
        if match in (MatchKind.EXACT, MatchKind.BYTE):
            assert target_bytes == source_bytes
        elif match == MatchKind.WORD_START:
            assert target_bytes != source_bytes and target_bytes.removeprefix(b" ") == source_bytes.removeprefix(b" ")
        elif match == MatchKind.CASE:
            assert target_bytes.strip().decode().lower() == source_bytes.strip().decode().lower()


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_exact_matches_equal_a_plain_dictionary(source: str, target: str) -> None:
    alignment = align(tiny(source), tiny(target))
    text = SPECIAL | HOLE
    by_bytes: dict[bytes, set[int]] = {}
    for id_, token in enumerate(canonical(alignment.source)):
        if not alignment.source.flags()[id_] & text:
            by_bytes.setdefault(token, set()).add(id_)
    for id_, token in enumerate(canonical(alignment.target)):
        if alignment.target.flags()[id_] & text:
            continue
        candidates = by_bytes.get(token, set())
        assert (alignment.source_id[id_] in candidates) if candidates else (alignment.source_id[id_] == -1), token


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_covers_spell_the_token(source: str, target: str) -> None:
    alignment = align(tiny(source), tiny(target))
    target_tokens, source_tokens = canonical(alignment.target), canonical(alignment.source)
    pieces = {
        text
        for text, flags in zip(source_tokens, alignment.source.flags(), strict=True)
        if not flags & (SPECIAL | HOLE)
    }
    for token in range(len(target_tokens)):
        cover = alignment.cover(token)
        if alignment.source_id[token] >= 0 or alignment.target.flags()[token] & (SPECIAL | HOLE):
            assert not len(cover)
        elif spells(pieces, target_tokens[token]):
            assert b"".join(source_tokens[piece] for piece in cover) == target_tokens[token]
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
    """Character to byte, from the printable ranges, independent of the table in Rust."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    other = [b for b in range(256) if b not in plain]
    return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(other)}


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_covers_are_the_source_models_own_segmentation(source: str, target: str) -> None:
    alignment = align(tiny(source), tiny(target))
    source_tokens = canonical(alignment.source)
    seen = 0
    for token, text in enumerate(canonical(alignment.target)):
        cover = alignment.cover(token)
        try:
            text.decode()
        except UnicodeDecodeError:
            continue
        if not len(cover) or (expected := encode_whole(source, text)) is None:
            continue
        seen += 1
        if b"".join(source_tokens[i] for i in expected) == text:  # otherwise the model gave <unk>
            assert cover.tolist() == expected, text
    assert bool(seen) == (source != target)


@given(text=st.text("abehiknost äöüßÜ中🙂\n", min_size=1, max_size=300), source=st.sampled_from(KINDS[:3]))
def test_any_text_is_covered_as_the_model_segments_it(text: str, source: str) -> None:
    tokens = tokens_of(source)
    line = base64.b64encode(text.encode()) + b" 0"
    match, _, _, cover = _rust.align(tokens, _rust.Vocabulary.from_tiktoken(line, []), "exact", [])
    expected = encode_whole(source, text.encode())
    source_tokens = canonical(tokens)
    if match[0] != MatchKind.NONE:
        assert not len(cover)
    elif b"".join(source_tokens[i] for i in expected) == text.encode():
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
    for token, new_id in enumerate(order):
        assert (moved[0][new_id], moved[1][new_id]) == (plain[0][token], plain[1][token])
        cover = plain[3][plain[2][token] : plain[2][token + 1]]
        np.testing.assert_array_equal(moved[3][moved[2][new_id] : moved[2][new_id + 1]], cover)


def test_order_in_the_file_does_not_matter() -> None:
    content = json.loads(tiny("byte_level_bpe").backend_tokenizer.to_str())
    content["model"]["vocab"] = dict(reversed(content["model"]["vocab"].items()))
    content["added_tokens"].reverse()
    plain = native(tiny("byte_level_bpe").backend_tokenizer.to_str().encode())
    other = native(json.dumps(content).encode())
    for a, b in zip(_rust.align(plain, plain, "case", []), _rust.align(other, other, "case", []), strict=True):
        np.testing.assert_array_equal(a, b)


@given(st.lists(st.binary(min_size=1, max_size=6), min_size=1, max_size=60, unique=True), st.integers(0, 5))
def test_tiktoken_ranks_align_as_bytes(tokens: list[bytes], gap: int) -> None:
    def ranks(items: list[bytes], step: int) -> bytes:
        return b"".join(base64.b64encode(t) + b" %d\n" % (i * step) for i, t in enumerate(items))

    source = _rust.Vocabulary.from_tiktoken(ranks(tokens, gap + 1), [])
    target = _rust.Vocabulary.from_tiktoken(ranks(tokens[::-1], 1), [])
    assert source.size == (len(tokens) - 1) * (gap + 1) + 1
    assert int((source.flags() & HOLE > 0).sum()) == source.size - len(tokens)
    match, ids, *_ = _rust.align(source, target, "exact", [])
    assert (match == MatchKind.EXACT).all()
    assert ids.tolist() == [i * (gap + 1) for i in reversed(range(len(tokens)))]


def test_partial_utf8_and_controls_do_not_collapse() -> None:
    tokens = [bytes([b]) for b in range(256)] + [b"\xe4\xb8", b"\xe4\xb8\xad", b"\xef\xbf\xbd", b"\t\n", b"\n\n"]
    data = b"".join(base64.b64encode(t) + b" %d\n" % i for i, t in enumerate(tokens))
    both = _rust.Vocabulary.from_tiktoken(data, [])
    aligned = _rust.align(tokens_of("sentencepiece_bpe"), both, "case", [])
    target = canonical(both)
    source = canonical(tokens_of("sentencepiece_bpe"))
    assert all(
        source[i] == target[t] or aligned[0][t] >= MatchKind.WORD_START for t, i in enumerate(aligned[1]) if i >= 0
    )
    byte = aligned[0][:256]
    assert (byte != MatchKind.NONE).all(), "every byte has a piece, including <0xFF>"
    assert both.words()[256] is None and both.words()[257] == "中" and both.words()[9] is None


def tokens_of(tokenizer_kind: str) -> _rust.Vocabulary:
    return load_tokens(tiny(tokenizer_kind)).vocabulary


def test_byte_pieces_match_as_bytes_and_real_tokens_come_first() -> None:
    alignment = align(tiny("byte_level_bpe"), tiny("sentencepiece_bpe"))
    flags = alignment.target.flags()
    pieces = np.flatnonzero(flags & BYTE_PIECE)
    assert len(pieces) == 256
    assert (alignment.kind[pieces] == MatchKind.BYTE).all()
    back = align(tiny("sentencepiece_bpe"), tiny("byte_level_bpe"))
    for token, text in enumerate(canonical(back.target)):
        if text == b"a":
            assert back.kind[token] == MatchKind.EXACT
        if text == b"\xff":
            assert back.kind[token] == MatchKind.BYTE


def test_special_tokens_match_by_role_never_by_text() -> None:
    source, target = tiny("byte_level_bpe"), tiny("wordpiece")
    alignment = align(source, target)
    role = {
        name: alignment.source_id[getattr(target, f"{name}_token_id")] for name in ("cls", "sep", "pad", "mask", "unk")
    }
    assert role["cls"] == source.bos_token_id and role["sep"] == source.eos_token_id
    assert role["pad"] == source.pad_token_id and role["mask"] == -1 and role["unk"] == -1
    special = alignment.source.flags() & SPECIAL > 0
    shared = (alignment.kind != MatchKind.ROLE) & alignment.shared
    assert not special[alignment.source_id[shared]].any()


def test_overrides_come_first() -> None:
    source, target = tiny("byte_level_bpe"), tiny("wordpiece")
    alignment = align(source, target, special_overrides={"[MASK]": "<|end|>"})
    assert alignment.source_id[target.mask_token_id] == source.eos_token_id
    with pytest.raises(InputError, match=r"no such token in the target.*\[MASK\]"):
        align(source, target, special_overrides={"[NOPE]": "<|end|>"})


def test_added_tokens_are_plain_text_beyond_the_vocabulary() -> None:
    tokenizer = byte_level_bpe(size=300)
    before = len(tokenizer)
    tokenizer.add_tokens(["Donaudampfschiff", "zwei  blanks"])
    alignment = align(tokenizer, tokenizer)
    assert alignment.target.size == before + 2
    assert canonical(alignment.target)[before:] == [b"Donaudampfschiff", b"zwei  blanks"]
    assert alignment.source_id.tolist() == list(range(before + 2))
    cover = align(byte_level_bpe(size=300), tokenizer)
    source_tokens = canonical(cover.source)
    assert b"".join(source_tokens[i] for i in cover.cover(before)) == b"Donaudampfschiff"


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


def test_missing_and_unknown_inputs(tmp_path) -> None:
    with pytest.raises(InputError, match="nothing at"):
        align(tmp_path / "nope", tiny("wordpiece"))
    with pytest.raises(InputError, match="a int"):
        align(3, tiny("wordpiece"))
    with pytest.raises(InputError, match="overlap"):
        align(tiny("wordpiece"), tiny("wordpiece"), overlap="fuzzy")


def test_covers_are_made_of_pieces_of_the_model(tmp_path) -> None:
    model = {"type": "BPE", "vocab": {"a": 0, "b": 1, "c": 2, "ab": 3}, "merges": ["a b"]}
    source = model_file(
        tmp_path, model, pre_tokenizer=LEVEL, added_tokens=added_tokens((4, "bc", False), (5, "ca", True))
    )
    ranks = b"".join(base64.b64encode(t) + b" %d\n" % i for i, t in enumerate([b"abc", b"bc", b"bca"]))
    match, ids, _, cover = _rust.align(source.vocabulary, _rust.Vocabulary.from_tiktoken(ranks, []), "exact", [])
    assert ids.tolist() == [-1, 4, -1] and match.tolist() == [0, 1, 0]
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


def test_an_override_may_name_any_token() -> None:
    source, target = tiny("byte_level_bpe"), tiny("wordpiece")
    alignment = align(source, target, special_overrides={"[MASK]": "Ċ"})
    assert canonical(alignment.source)[alignment.source_id[target.mask_token_id]] == b"\n"


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
        "result = align(sys.argv[1], sys.argv[2])\n"
        "parts = (result.kind, result.source_id, result.cover_offsets, result.cover_ids)\n"
        "print(hashlib.sha256(b''.join(p.tobytes() for p in parts)).hexdigest())\n"
    )
    command = [sys.executable, "-c", code, tmp_path / "a", tmp_path / "b"]
    results = set()
    for threads in ("1", "3"):
        environment = {**os.environ, "RAYON_NUM_THREADS": threads}
        results.add(subprocess.run(command, check=True, capture_output=True, env=environment).stdout)
    assert len(results) == 1
