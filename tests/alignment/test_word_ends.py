"""BPE that marks the ends of words (``</w>``: HerBERT, GPT-1, CLIP), as donor and as source."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from models_tiny import save_bert, save_llama
from safetensors.torch import load_file
from tokenizer_files import canonical
from tokenizers_donors import SUFFIX_KINDS, WORD_END
from tokenizers_tiny import KINDS, TEXT, tiny
from transformers import AutoModelForCausalLM, AutoTokenizer

from saltlm import TransferConfig, transfer
from saltlm.alignment.align import HOLE, SPECIAL, WORD_START, MatchKind, align, load_tokens
from saltlm.alignment.causal_tokenizer import causal_tokenizer


@pytest.fixture(scope="module")
def donors():
    return {kind: make() for kind, make in SUFFIX_KINDS.items()}


@pytest.mark.parametrize("kind", SUFFIX_KINDS)
def test_a_piece_that_ends_a_word_begins_with_a_space(donors, kind: str) -> None:
    vocabulary = load_tokens(donors[kind]).vocabulary
    assert vocabulary.kind == ("byte_level_bpe" if kind == "clip" else "suffix_bpe")
    texts, flags = canonical(vocabulary), vocabulary.flags()
    ends = 0
    for token, index in donors[kind].get_vocab().items():
        if flags[index] & SPECIAL:
            continue
        is_end = (token.endswith(WORD_END) and token != WORD_END) or token == "Ġ"  # the byte of the space itself
        assert texts[index].startswith(b" ") == bool(flags[index] & WORD_START) == is_end, token
        assert WORD_END.encode() not in texts[index] or token == WORD_END
        ends += is_end
    assert ends > 50
    words = vocabulary.words()
    assert words[donors[kind].get_vocab()[f"cat{WORD_END}"]] == "cat"


@pytest.mark.parametrize("kind", SUFFIX_KINDS)
def test_aligned_with_itself_it_is_the_identity(donors, kind: str) -> None:
    alignment = align(donors[kind], donors[kind])
    assert alignment.source_id.tolist() == list(range(len(donors[kind])))


@pytest.mark.parametrize("source", KINDS)
@pytest.mark.parametrize("kind", SUFFIX_KINDS)
def test_exact_matches_equal_a_plain_dictionary(donors, kind: str, source: str) -> None:
    alignment = align(tiny(source), donors[kind])
    id_of: dict[bytes, int] = {}
    for index, text in reversed(list(enumerate(canonical(alignment.source)))):
        if not alignment.source.flags()[index] & (SPECIAL | HOLE):
            id_of[text] = index
    shared = 0
    for index, text in enumerate(canonical(alignment.target)):
        if alignment.target.flags()[index] & SPECIAL:
            continue
        assert (alignment.source_id[index] >= 0) == (text in id_of), text
        if text in id_of:
            assert canonical(alignment.source)[alignment.source_id[index]] == text
            shared += 1
    assert shared > 30
    if source == "wordpiece":  # whole words match words, and parts match parts
        index = alignment.source_id[donors[kind].get_vocab()[f"cat{WORD_END}"]]
        assert tiny(source).convert_ids_to_tokens(int(index)) == "cat"


@pytest.mark.parametrize("target", KINDS)
@pytest.mark.parametrize("kind", SUFFIX_KINDS)
def test_as_a_source_it_covers_words_as_its_model_segments_them(donors, kind: str, target: str) -> None:
    """The cover of " lower" is the segmentation of the word "lower"; without the space there is no end of a word."""
    alignment = align(donors[kind], tiny(target))
    model, texts = donors[kind].backend_tokenizer.model, canonical(alignment.target)
    seen = 0
    for token, text in enumerate(texts):
        cover = alignment.cover(token)
        if not len(cover):
            continue
        pieces = donors[kind].convert_ids_to_tokens(cover.tolist())
        ends = [piece.endswith(WORD_END) for piece in pieces]
        assert ends == [False] * (len(pieces) - 1) + [text.startswith(b" ")]
        word = text.removeprefix(b" ")
        if text.startswith(b" "):
            alphabet = byte_characters() if kind == "clip" else None
            spelled = "".join(alphabet[b] for b in word) if alphabet else word.decode()
            assert [piece.id for piece in model.tokenize(spelled)] == cover.tolist()
            seen += 1
    assert seen > 2


def byte_characters() -> dict[int, str]:
    """Byte -> its character in byte-level BPE, from the printable ranges."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    other = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {byte: chr(256 + index) for index, byte in enumerate(other)}


@pytest.mark.parametrize("kind", SUFFIX_KINDS)
def test_the_new_tokenizer_writes_words_without_marks(donors, kind: str) -> None:
    tokenizer = causal_tokenizer(donors[kind], tiny("byte_level_bpe"), chat_template="target")
    for text in TEXT:
        ids = tokenizer(text)["input_ids"]
        assert ids == donors[kind](text, add_special_tokens=False)["input_ids"]
        decoded = tokenizer.decode(ids)
        assert WORD_END not in decoded
        again = tokenizer(decoded)["input_ids"]
        assert again == ids, "what it writes it reads as the same tokens"
    assert tokenizer.decode(tokenizer("the cat sat on the mat")["input_ids"]) == "the cat sat on the mat"


@pytest.mark.parametrize("kind", SUFFIX_KINDS)
def test_a_transfer_gives_a_model_that_loads(donors, tmp_path, kind: str) -> None:
    save_llama(tmp_path / "source", tiny("byte_level_bpe"))
    save_bert(tmp_path / "target", donors[kind])
    done = transfer(tmp_path / "source", tmp_path / "target", out=tmp_path / "out", config=TransferConfig())
    before = load_file(tmp_path / "source" / "model.safetensors")["model.embed_tokens.weight"]
    text = np.flatnonzero(done.alignment.shared & (done.alignment.kind != MatchKind.ROLE))
    assert len(text) > 50 and done.summary["counts"]["solved"] > 20
    assert torch.equal(done.input_rows[text], before[done.alignment.source_id[text].astype(np.int64)])
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = tokenizer("the cat sat on the mat", return_tensors="pt")
    assert tokenizer.decode(ids["input_ids"][0]) == "the cat sat on the mat"
    logits = AutoModelForCausalLM.from_pretrained(tmp_path / "out")(**ids).logits
    assert logits.isfinite().all() and logits.shape[-1] == len(tokenizer)
    saved = json.loads((tmp_path / "out" / "tokenizer.json").read_text())
    assert saved["model"]["end_of_word_suffix"] == WORD_END
