"""tokenizer.model, written for BPE tokenizers over text, and read by SentencePiece itself."""

from __future__ import annotations

import json

import pytest
import sentencepiece
from tokenizers import Tokenizer, models, normalizers
from tokenizers_tiny import KINDS, SPECIALS, TEXT, sentencepiece_bpe, tiny
from transformers import PreTrainedTokenizerFast

from saltlm.model.segmentation import SENTENCES
from saltlm.model.sentencepiece_bpe import tokenizer_model


def changed(edit) -> PreTrainedTokenizerFast:
    """The tiny SentencePiece BPE tokenizer with a changed tokenizer.json."""
    content = json.loads(sentencepiece_bpe().backend_tokenizer.to_str())
    edit(content)
    backend = Tokenizer.from_str(json.dumps(content))
    return PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIALS["sentencepiece_bpe"])


def without_prefix(content: dict) -> None:
    content["normalizer"]["normalizers"] = [{"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]


@pytest.mark.parametrize("edit", [lambda content: None, without_prefix], ids=["a blank before the text", "none"])
def test_sentencepiece_gives_the_same_ids(edit) -> None:
    tokenizer = changed(edit)
    data = tokenizer_model(tokenizer)
    assert data is not None
    read = sentencepiece.SentencePieceProcessor(model_proto=data)
    assert read.vocab_size() == len(tokenizer)
    assert [read.id_to_piece(index) for index in range(len(tokenizer))] == tokenizer.convert_ids_to_tokens(
        range(len(tokenizer))
    )
    for text in (*TEXT, *SENTENCES):
        assert read.encode(text) == tokenizer(text, add_special_tokens=False)["input_ids"], text
    assert (read.bos_id(), read.eos_id(), read.unk_id()) == tuple(
        getattr(tokenizer, f"{role}_token_id") for role in ("bos", "eos", "unk")
    )
    assert read.pad_id() == -1 and read.is_byte(tokenizer.convert_tokens_to_ids("<0x0A>"))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "sentencepiece_bpe"])
def test_other_kinds_get_no_file(kind: str) -> None:
    """Programs take every tokenizer.model for BPE, so a Unigram one would be read wrong without a word."""
    assert tokenizer_model(tiny(kind)) is None


def lowercased(content: dict) -> None:
    content["normalizer"]["normalizers"].insert(0, {"type": "Lowercase"})


def without_bytes(content: dict) -> None:
    content["model"]["byte_fallback"] = False


@pytest.mark.parametrize("edit", [lowercased, without_bytes], ids=lambda edit: edit.__name__)
def test_what_sentencepiece_would_segment_differently_gets_no_file(edit) -> None:
    assert tokenizer_model(changed(edit)) is None


def test_merges_that_lack_a_join_get_no_file() -> None:
    """Trained by another program, a vocabulary may hold a token that its merges never make."""
    pieces = {"<unk>": 0, "▁": 1, "a": 2, "b": 3, "c": 4, "ab": 5, "bc": 6, "abc": 7}
    pieces |= {f"<0x{byte:02X}>": 8 + byte for byte in range(256)}
    model = models.BPE(pieces, [("b", "c"), ("a", "b")], unk_token="<unk>", byte_fallback=True)
    backend = Tokenizer(model)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    assert tokenizer.tokenize("abc") == ["▁", "a", "bc"], "SentencePiece would make abc of it"
    assert tokenizer_model(tokenizer) is None
