"""``saltlm.json`` has the keys and types that its typed dictionaries state, and docs/output.md names them."""

from __future__ import annotations

import json
import re
import typing
from pathlib import Path

import adapt_tiny
import pytest

from saltlm import AdaptConfig, TransferConfig, adapt, transfer
from saltlm.files.schema import faults
from saltlm.files.summary_file import AdaptationRecord, AdaptedSummary, Summary

DOCUMENT = Path(__file__).parents[2] / "docs" / "output.md"


CASES = {
    "auto": {},
    "salt, tuned": {"method": "salt", "tune": True},
    "salt, guarded": {"method": "salt", "norm_guard": "shrink", "heldout": 0.0},
    "wechsel": {"method": "wechsel"},
    "ofa": {"method": "ofa"},
    "expanded": {"method": "subword-mean", "keep_source_vocabulary": True},
    "zero": {"method": "zero"},
    "shifted": {"method": "mean", "unigram_shift": 0.5, "unigram_text": "TEXT"},
    "tuned by a text": {"tune_text": "TEXT"},
}


@pytest.mark.parametrize("name", CASES)
def test_a_transfer_writes_what_the_types_say(name: str, untied, bilingual, tmp_path) -> None:
    options = dict(CASES[name])
    for key in options.keys() & {"unigram_text", "tune_text"}:
        options[key] = str(adapt_tiny.text_file(tmp_path / "text.txt", 12))
    if name == "wechsel":
        options |= bilingual
    auxiliary = untied.vectors if name not in ("auto", "expanded", "zero") else None
    done = transfer(untied.source, untied.target, auxiliary, tmp_path / "out", TransferConfig(**options))
    written = json.loads((tmp_path / "out" / "saltlm.json").read_text(encoding="utf-8"))
    assert faults(written, Summary) == []
    assert written == json.loads(json.dumps(done.summary)) and list(written) == list(done.summary)
    assert written["warnings"] == done.summary["warnings"]


def test_a_dry_run_has_the_same_keys_without_the_reports_of_rows(untied) -> None:
    done = transfer(untied.source, untied.target, untied.vectors, config=TransferConfig(method="salt"), dry_run=True)
    assert faults(json.loads(json.dumps(done.summary)), Summary) == []
    assert "norm_guard" not in done.summary and done.summary["heldout"] is None


def test_an_adaptation_writes_what_the_types_say(untied, tmp_path) -> None:
    options = {"seq_length": 32, "batch_size": 2, "device": "cpu", "phases": "embeddings:1"}
    text = adapt_tiny.text_file(tmp_path / "text.txt", 20)
    replay = {adapt_tiny.text_file(tmp_path / "english.txt", 20, 1): 0.25}
    model = transfer(untied.source, untied.target, out=tmp_path / "model", config=TransferConfig(method="zero")).out
    before = json.loads((model / "saltlm.json").read_text(encoding="utf-8"))
    for count in range(2):
        model = adapt(model, text, tmp_path / f"adapted{count}", AdaptConfig(**options), replay=replay).out
        written = json.loads((model / "saltlm.json").read_text(encoding="utf-8"))
        record = written.pop("adapted")
        assert faults(record, AdaptationRecord) == [] and len(record["before"]) == count
        files = written.pop("files")
        assert {**written, "files": before["files"]} == before, "an adaptation keeps the summary of the transfer"
        assert files.keys() > {"model.safetensors", "config.json", "metrics.jsonl", "run.json"}
        assert {name for name in files if "#" in name} == {name for name in before["files"] if "#" in name}
    versions = {name: before[name] for name in ("format", "schema_version", "saltlm_version")}
    assert faults({**versions, "adapted": record}, AdaptedSummary) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"anchors": "3"}, "/anchors: '3', not int"),
        ({"anchors": True}, "/anchors: True"),
        ({"heldout": {"tokens": 3}}, "/heldout: no "),
        ({"statuses": [{"name": 3, "count": 1}]}, "/statuses/0/name"),
        ({"other": 1}, "the unknown key other"),
    ],
)
def test_the_check_of_this_file_notices_other_content(untied, change: dict, words: str) -> None:
    done = transfer(untied.source, untied.target, config=TransferConfig(method="zero", heldout=0.0), dry_run=True)
    assert any(words in fault for fault in faults({**done.summary, **change}, Summary))


def test_the_documentation_names_every_key() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    table = text[text.index("## saltlm.json") : text.index("## provenance.safetensors")]
    named = {key for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for key in re.findall(r"`(\w+)`", row)}
    assert named == {*typing.get_type_hints(Summary), *typing.get_type_hints(AdaptedSummary)}
