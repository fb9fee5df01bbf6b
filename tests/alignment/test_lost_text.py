"""What the new tokenizer cannot write is said: white space, upper case, accents. Each is measured on the tokenizer."""

from __future__ import annotations

import logging

import pytest
from models_tiny import save_bert, save_llama
from tokenizers_donors import (
    clip,
    gpt1,
    herbert,
    markers,
    one_space_unigram,
    unaccented_unigram,
    uncased_unigram,
    uncased_wordpiece,
)
from tokenizers_tiny import tiny, wordpiece

from saltlm import TransferConfig, transfer
from saltlm.alignment.causal_tokenizer import causal_tokenizer
from saltlm.alignment.lost_text import lost_text

SOURCE = "byte_level_bpe"
CASE, MARKS = "upper case into lower case", "strips accents"
# Donor -> words of its notes.
LOSSES = {
    "byte-level": (lambda: tiny("byte_level_bpe"), []),
    "byte fallback": (lambda: tiny("sentencepiece_bpe"), []),
    "unigram": (lambda: tiny("sentencepiece_unigram"), ["keep line breaks and tabs,"]),
    "one space": (one_space_unigram, ["keep line breaks, tabs and several blanks in a row,"]),
    "wordpiece": (
        wordpiece,
        ["line breaks, tabs, several blanks in a row and whether a blank stands beside punctuation"],
    ),
    "uncased wordpiece": (uncased_wordpiece, ["line breaks", CASE, MARKS]),
    "uncased unigram": (uncased_unigram, ["line breaks", CASE]),
    "unaccented unigram": (unaccented_unigram, ["line breaks", MARKS]),
    "herbert": (herbert, ["line breaks"]),
    "gpt1": (gpt1, ["line breaks", CASE, MARKS]),
    "clip": (clip, ["line breaks", CASE]),
}


@pytest.mark.parametrize("donor", LOSSES)
def test_each_loss_has_one_note(donor: str) -> None:
    make, words = LOSSES[donor]
    notes = lost_text(tiny(SOURCE), causal_tokenizer(make(), tiny(SOURCE), chat_template="target"))
    assert len(notes) == len(words)
    for note, word in zip(notes, words, strict=True):
        assert word in note
        assert "--keep-source-vocabulary" in note and "PLM" in note


@pytest.mark.parametrize("donor", LOSSES)
def test_what_the_source_loses_as_well_is_no_note(donor: str) -> None:
    same = causal_tokenizer(LOSSES[donor][0](), tiny(SOURCE), chat_template="target")
    assert lost_text(same, same) == []


def test_letters_that_the_vocabulary_lacks_are_not_called_lower_cased() -> None:
    notes = lost_text(tiny(SOURCE), causal_tokenizer(wordpiece(), tiny(SOURCE), chat_template="target"))
    assert not any(CASE in note or MARKS in note for note in notes), (
        "they become unknown tokens, which is another matter"
    )


def test_a_template_that_writes_line_breaks_is_named() -> None:
    source = markers(special=True, listed=False)
    source.chat_template = "{% for m in messages %}<|turn|>{{ '\n' + m['content'] }}{% endfor %}"
    (note,) = lost_text(source, causal_tokenizer(one_space_unigram(), source, chat_template="source"))
    assert "the chat template writes line breaks, which its prompts lose" in note
    (plain,) = lost_text(source, causal_tokenizer(one_space_unigram(), source, chat_template="none"))
    assert "chat template" not in plain


def test_a_transfer_says_it_and_the_remedy_helps(tmp_path, caplog) -> None:
    save_llama(tmp_path / "source", tiny(SOURCE))
    save_bert(tmp_path / "target", uncased_wordpiece())
    config = TransferConfig(method="subword-mean", heldout=0.0)
    with caplog.at_level(logging.WARNING, "saltlm"):
        done = transfer(tmp_path / "source", tmp_path / "target", config=config, dry_run=True)
    for word in ("line breaks", CASE, MARKS):
        assert sum(word in warning for warning in done.summary["warnings"]) == 1
        assert sum(word in record.getMessage() for record in caplog.records) == 1
    kept = TransferConfig(method="subword-mean", heldout=0.0, keep_source_vocabulary=True)
    done = transfer(tmp_path / "source", tmp_path / "target", config=kept, dry_run=True)
    assert not any("--keep-source-vocabulary" in warning for warning in done.summary["warnings"])
    text = "A line,\n\tÄ another"
    assert done.tokenizer.decode(done.tokenizer(text)["input_ids"]) == text
