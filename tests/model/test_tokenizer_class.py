"""Where the class that transformers chooses differs from tokenizer.json, the file counts, and a note says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from models_tiny import save_bert, save_llama, save_qwen2
from tokenizers_tiny import KINDS, TEXT, tiny

from saltlm import TransferConfig, transfer
from saltlm.errors import InputError
from saltlm.model.checkpoint import load_donor, load_source

# Classes that build their own pipeline, and those that cannot read such a file or have no fast form.
CLASSES = ("BertTokenizer", "T5Tokenizer", "XLMRobertaTokenizer", "LlamaTokenizer", "GPT2Tokenizer", "PhobertTokenizer")


def named(folder: Path, **entries) -> Path:
    """The folder, with other entries in tokenizer_config.json."""
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))
    return folder


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_file_counts(tmp_path: Path, kind: str, name: str) -> None:
    donor = load_donor(named(save_bert(tmp_path / "model", tiny(kind)), tokenizer_class=name))
    for text in TEXT:
        assert donor.tokenizer(text, add_special_tokens=False)["input_ids"] == tiny(kind)(text)["input_ids"]
    for role in ("bos", "eos", "pad", "unk", "cls", "sep", "mask"):
        expected = getattr(tiny(kind), f"{role}_token")
        assert expected is None or getattr(donor.tokenizer, f"{role}_token") == expected
    # Byte-level tokenizers are what GPT2Tokenizer builds, and transformers itself corrects LlamaTokenizer there.
    agrees = kind == "byte_level_bpe" and name in ("GPT2Tokenizer", "LlamaTokenizer")
    assert len(donor.notes) == (0 if agrees else 1)
    for note in donor.notes:
        assert "differs from tokenizer.json: it " in note and "tokenizer.json is used" in note


@pytest.mark.parametrize("kind", KINDS)
def test_a_plain_class_has_no_note(tmp_path: Path, kind: str) -> None:
    assert load_donor(save_bert(tmp_path / "model", tiny(kind))).notes == ()


def test_a_model_type_that_overrules_the_file(tmp_path: Path) -> None:
    """Its own class replaces the pre-tokenizer of another byte-level tokenizer."""
    folder = save_qwen2(tmp_path / "model", tiny("sentencepiece_bpe"))
    donor = load_donor(folder)
    for text in TEXT:
        expected = tiny("sentencepiece_bpe")(text, add_special_tokens=False)["input_ids"]
        assert donor.tokenizer(text, add_special_tokens=False)["input_ids"] == expected
    assert len(donor.notes) == 1
    # A source is used as a user loads it.
    source = load_source(folder)
    assert type(source.tokenizer).__name__ == "Qwen2Tokenizer" and not source.notes


def test_the_note_is_a_warning_of_the_transfer(tmp_path: Path) -> None:
    save_llama(tmp_path / "source", tiny("byte_level_bpe"))
    target = named(save_bert(tmp_path / "target", tiny("sentencepiece_unigram")), tokenizer_class="BertTokenizer")
    done = transfer(tmp_path / "source", target, out=tmp_path / "out", config=TransferConfig(method="subword-mean"))
    assert sum("differs from tokenizer.json" in warning for warning in done.summary["warnings"]) == 1
    expected = tiny("sentencepiece_unigram")(TEXT[0], add_special_tokens=False)["input_ids"]
    assert done.tokenizer(TEXT[0])["input_ids"] == expected


def test_a_class_with_other_ids(tmp_path: Path) -> None:
    folder = save_bert(tmp_path / "model", tiny("wordpiece"))
    donor = load_donor(named(folder, tokenizer_class="BertTokenizer", do_lower_case=True))
    assert donor.tokenizer.convert_ids_to_tokens(donor.tokenizer("Die")["input_ids"]) != ["[UNK]"]
    assert len(donor.notes) == 1


def test_a_broken_file_is_an_error_whatever_the_class(tmp_path: Path) -> None:
    folder = named(save_bert(tmp_path / "model", tiny("wordpiece")), tokenizer_class="BertTokenizer")
    (folder / "tokenizer.json").write_text('{"model": {"type": "WordPiece"}}')
    with pytest.raises(InputError, match="a tokenizer that transformers cannot load"):
        load_donor(folder)
