"""Exported files, read by llama.cpp itself: the same ids on text in many scripts, the same continuations."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from export_tiny import (
    ARCHITECTURES,
    byte_level_with,
    save_architecture,
    uncased_unigram,
    uncased_wordpiece,
    unigram_of_lines,
    unigram_of_words,
)
from llama_cpp import LlamaCpp
from models_tiny import save_bert, save_gpt2, save_llama, save_xlm_roberta
from tokenizers_tiny import TEXT, byte_level_bpe, tiny
from transformers import AutoModelForCausalLM, AutoTokenizer

import saltlm
from saltlm.export.config import ExportConfig
from saltlm.export.gguf_file import export_gguf
from saltlm.model.segmentation import SENTENCES
from saltlm_demo import finnish, input_text

pytest.importorskip("xllamacpp", reason="has no wheel for this system")
pytestmark = pytest.mark.real
STEPS = 8
PROMPTS = ("the cat sat on the mat while the other cats were sleeping", "a house, a river", "Die Katze", "1984")


def assert_same_ids(read: LlamaCpp, tokenizer, texts, *, special: bool = True) -> None:
    for text in texts:
        assert read.tokenize(text) == tokenizer(text, add_special_tokens=False)["input_ids"], text
    if special:
        assert read.tokenize(texts[0], special=True) == tokenizer(texts[0])["input_ids"]


def assert_same_continuation(read: LlamaCpp, folder: Path, tokenizer, tolerance: float) -> None:
    """llama.cpp goes on with the tokens that transformers finds most likely; rows that are equal tie for that."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    compared = 0
    for prompt in PROMPTS:
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        generated = read.continuation(ids, STEPS)  # empty where the first token ends the text
        with torch.no_grad():
            expected = model(torch.tensor([ids + generated])).logits[0, len(ids) - 1 :].log_softmax(-1)
        for step, token in enumerate(generated):
            assert expected[step].max() - expected[step, token] < tolerance, (prompt, step)
        for index, value in (read.log_probabilities(ids, 10) if generated else {}).items():
            assert abs(expected[0, index].item() - value) < tolerance
            compared += 1
    assert compared, "no prompt has a continuation"


@pytest.mark.parametrize("case", [*ARCHITECTURES, "gpt2"])
def test_architectures(tmp_path: Path, case: str) -> None:
    tokenizer = tiny("byte_level_bpe")
    folder = save_architecture(tmp_path / "model", case, tokenizer)
    export_gguf(folder, tmp_path / "x.gguf")
    read = LlamaCpp(tmp_path / "x.gguf")
    # ggml looks GELU up in a table of float16.
    tolerance = 1e-2 if case.startswith(("gemma", "gpt2")) else 1e-4
    assert_same_continuation(read, folder, tokenizer, tolerance)


DONORS = {
    "Unigram": lambda folder: save_xlm_roberta(folder, tiny("sentencepiece_unigram")),
    "uncased Unigram": lambda folder: save_xlm_roberta(folder, uncased_unigram()),
    "Unigram of words": lambda folder: save_xlm_roberta(folder, unigram_of_words()),
    "Unigram of lines": lambda folder: save_xlm_roberta(folder, unigram_of_lines()),
    "SentencePiece BPE": lambda folder: save_llama(folder, tiny("sentencepiece_bpe")),
    "WordPiece": lambda folder: save_bert(folder, tiny("wordpiece")),
    "uncased WordPiece": lambda folder: save_bert(folder, uncased_wordpiece()),
    "byte-level BPE": lambda folder: save_gpt2(folder, byte_level_bpe(500)),
}


@pytest.mark.parametrize("padded", [None, 64])
@pytest.mark.parametrize("kind", DONORS)
def test_donors(tmp_path: Path, kind: str, padded: int | None) -> None:
    source = save_llama(tmp_path / "source", tiny("byte_level_bpe"), tied=False)
    config = saltlm.TransferConfig(method="subword-mean", pad_to_multiple_of=padded)
    saltlm.transfer(source, DONORS[kind](tmp_path / "donor"), out=tmp_path / "out", config=config)
    done = export_gguf(tmp_path / "out", tmp_path / "x.gguf")
    assert done.different == 0 and (padded is None or done.rows % padded == 0)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    read = LlamaCpp(tmp_path / "x.gguf")
    assert_same_ids(read, tokenizer, (*TEXT, *SENTENCES), special="WordPiece" not in kind)
    assert_same_continuation(read, tmp_path / "out", tokenizer, 1e-4)


@pytest.mark.parametrize("donor", ["Unigram", "WordPiece", "byte-level BPE"])
@pytest.mark.parametrize("source", ["byte_level_bpe", "sentencepiece_bpe", "sentencepiece_unigram"])
def test_expanded_vocabularies(tmp_path: Path, source: str, donor: str) -> None:
    model = save_llama(tmp_path / "source", tiny(source))
    config = saltlm.TransferConfig(method="subword-mean", keep_source_vocabulary=True)
    saltlm.transfer(model, DONORS[donor](tmp_path / "donor"), out=tmp_path / "out", config=config)
    done = export_gguf(tmp_path / "out", tmp_path / "x.gguf", ExportConfig(allow_differences=True))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    read = LlamaCpp(tmp_path / "x.gguf")
    texts = (*TEXT, *SENTENCES)
    if done.different == 0:
        assert_same_ids(read, tokenizer, texts)
    else:
        # Tokens that only whole-word look-up finds, which llama.cpp has for few pre-tokenizers. The export tells it.
        assert source == "byte_level_bpe" and any("differently" in note for note in done.notes)
        same = sum(read.tokenize(text) == tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts)
        assert len(texts) / 2 < same < len(texts)
    assert_same_continuation(read, tmp_path / "out", tokenizer, 1e-4)


def test_what_the_check_finds_is_what_llama_cpp_does(tmp_path: Path) -> None:
    """A tokenizer that llama.cpp has no pre-tokenizer for differs there on the very texts that the export names."""
    from tokenizers import Regex, pre_tokenizers

    tokenizer = byte_level_with(pre_tokenizers.Split(Regex(r"\p{L}{1,2}"), "isolated"))
    folder = save_llama(tmp_path / "model", tokenizer)
    done = export_gguf(folder, tmp_path / "x.gguf", ExportConfig(allow_differences=True))
    read = LlamaCpp(tmp_path / "x.gguf")
    differing = [t for t in SENTENCES if read.tokenize(t) != tokenizer(t, add_special_tokens=False)["input_ids"]]
    assert done.different > 0 and differing


@pytest.mark.parametrize("from_body", [False, True], ids=["all from the folder", "layers from the source's GGUF file"])
def test_the_finnish_pair(tmp_path: Path, from_body: bool) -> None:
    pair = finnish.finnish_pair()
    config = saltlm.TransferConfig(method="subword-mean", gguf_file=pair.gguf_file)
    saltlm.transfer(pair.source, pair.donor, out=tmp_path / "out", config=config)
    body = str(pair.source / pair.gguf_file) if from_body else None
    # In float32, because ggml rounds the activations to float16 where the weights are.
    done = export_gguf(tmp_path / "out", tmp_path / "x.gguf", ExportConfig(body=body, weights="f32"))
    assert done.different == 0 and done.tokenizer[0] == "t5"
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    read = LlamaCpp(tmp_path / "x.gguf")
    text = input_text.finnish_text()
    lines = [" ".join(line.split()) for line in "\n".join((*text.heldout, *text.english)).splitlines() if line.strip()][
        :300
    ]
    assert_same_ids(read, tokenizer, (*SENTENCES, *lines))
    if not from_body:
        assert_same_continuation(read, tmp_path / "out", tokenizer, 1e-2)
