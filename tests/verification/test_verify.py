"""saltlm verify: passes for every method, and names the rows, files and tensors of a folder that was changed."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints_tiny import change_tensors
from models_tiny import save_bert, save_gpt2, save_phi
from safetensors.numpy import load_file, save_file
from tokenizers_tiny import tiny

from saltlm import InputError, TransferConfig, VerifyConfig, transfer, verify
from saltlm.cli.main import main
from saltlm.config import METHODS
from saltlm.inspection.rows import inspect
from saltlm.model.checkpoint import load_source
from saltlm.verification.results import Check, Verification

NAMES = ["record", "files", "copied rows", "recipes", "solved again", "body"]
FULL = VerifyConfig(full=True, sample=10_000)


def by_name(result: Verification) -> dict[str, Check]:
    assert [check.name for check in result.checks] == NAMES
    return {check.name: check for check in result.checks}


def results(result: Verification) -> dict[str, str]:
    return {name: check.result for name, check in by_name(result).items()}


def assert_passed(result: Verification, **other: str) -> None:
    assert [check for check in result.checks if check.result != "passed"] == [], other


@pytest.fixture(scope="module")
def salt(untied, tmp_path_factory) -> Path:
    """A transfer by SALT; the tests change copies of it."""
    out = tmp_path_factory.mktemp("salt") / "out"
    transfer(untied.source, untied.target, untied.vectors, out, TransferConfig(method="salt", heldout=0.0))
    return out


@pytest.fixture
def copy(salt: Path, tmp_path: Path) -> Path:
    return shutil.copytree(salt, tmp_path / "copy")


OPTIONS = {
    "blend": {"blend_with": "local-map", "blend_weight": "precision"},
    "salt": {"ridge": 0.1, "center": True, "max_support": 8},
    "auto": {"tune": True, "heldout": 0.2},
}


@pytest.mark.parametrize("method", METHODS)
def test_a_transfer_by_any_method_passes(method: str, untied, bilingual, tmp_path: Path) -> None:
    options = {"heldout": 0.0, **OPTIONS.get(method, {}), **(bilingual if method == "wechsel" else {})}
    config = TransferConfig(method=method, reload_check="off", **options)
    transfer(untied.source, untied.target, untied.vectors, tmp_path / "out", config)
    result = verify(tmp_path / "out", config=FULL)
    assert_passed(result)
    compared = int(re.match(r"([\d,]+) of", by_name(result)["solved again"].detail)[1].replace(",", ""))
    assert (compared == 0) == (method in ("normal", "multivariate"))


CASES = {
    "bfloat16, shrunk": {"dtype": "bfloat16", "norm_guard": "shrink", "method": "salt"},
    "float16": {"dtype": "float16", "method": "focus"},
    "shifted": {"method": "subword-mean", "unigram_shift": 0.5, "unigram_text": "TEXT"},
    "expanded": {"method": "subword-mean", "keep_source_vocabulary": True},
    "padded, cleaned": {"pad_to_multiple_of": 64, "clean_anchors": 0.2, "method": "ridge-map"},
    "blend of lists": {"method": "blend", "blend_with": "focus"},
    "the PLM's own vectors": {"method": "salt", "AUXILIARY": "plm"},
}


@pytest.mark.parametrize("name", CASES)
def test_options_after_the_method_are_followed(name: str, untied, tmp_path: Path) -> None:
    options = {"heldout": 0.0, "reload_check": "off", **CASES[name]}
    auxiliary = options.pop("AUXILIARY", untied.vectors)
    if "unigram_text" in options:
        options["unigram_text"] = str(tmp_path / "text.txt")
        (tmp_path / "text.txt").write_text("ein Haus und eine Katze\n\nder Hund\n")
    transfer(untied.source, untied.target, auxiliary, tmp_path / "out", TransferConfig(**options))
    assert_passed(verify(tmp_path / "out", config=FULL))


@pytest.mark.parametrize("save", [save_phi, save_gpt2])
def test_other_heads_pass(save: Callable, tmp_path: Path) -> None:
    """A head with a bias, and a tied one with a token that begins and ends a text."""
    source = save(tmp_path / "source", tiny("byte_level_bpe"))
    target = save_bert(tmp_path / "target", tiny("sentencepiece_unigram"))
    transfer(source, target, out=tmp_path / "out", config=TransferConfig(heldout=0.0))
    assert_passed(verify(tmp_path / "out", config=FULL))


def changed_row(folder: Path, row: int, key: str = "model.embed_tokens.weight") -> None:
    """Add the smallest step to one value of a row."""

    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[key] = tensors[key].clone()
        tensors[key][row, 3] += 0.01

    change_tensors(folder, change)


@pytest.mark.parametrize("key", ["model.embed_tokens.weight", "lm_head.weight"])
def test_a_changed_copied_row_is_named(copy: Path, key: str) -> None:
    rows = inspect(copy)
    row = next(row for row in range(len(rows.norms)) if rows.origin(row) == "copied" and rows.texts[row])
    changed_row(copy, row, key)
    checks = by_name(verify(copy))
    assert checks["copied rows"].result == checks["files"].result == "failed"
    (difference,) = checks["copied rows"].rows
    tensor = "input" if key.startswith("model") else "output"
    assert (difference.id, difference.token, difference.tensor) == (row, rows.texts[row], tensor)
    assert difference.difference == pytest.approx(0.01, rel=1e-3)
    assert any(key in name and "changed" in name for name in checks["files"].names)
    assert checks["body"].result == checks["recipes"].result == checks["solved again"].result == "passed"


def test_a_changed_new_row_is_named_by_its_recipe_and_by_the_method(copy: Path) -> None:
    rows = inspect(copy)
    row = next(r for r in range(len(rows.norms)) if rows.origin(r) == "solved" and rows.arrays["rule_kept"][r] == 1)
    changed_row(copy, row)
    checks = by_name(verify(copy, config=FULL))
    assert [(r.id, r.tensor) for r in checks["recipes"].rows] == [(row, "input")]
    assert [(r.id, r.tensor) for r in checks["solved again"].rows] == [(row, "input")]
    assert checks["copied rows"].result == "passed"


def test_a_forged_row_with_its_recipe_is_named_by_the_method(copy: Path) -> None:
    """Weights, row and digests agree with each other, but not with the method."""
    rows = inspect(copy)
    row = next(r for r in range(len(rows.norms)) if rows.origin(r) == "solved" and len(rows.parts(r)[0]) > 1)
    arrays = load_file(copy / "provenance.safetensors")
    begin, end = arrays["rule_offsets"][row : row + 2]
    arrays["rule_weights"][begin:end] *= 1.5
    save_file(arrays, copy / "provenance.safetensors")

    def change(tensors: dict[str, torch.Tensor]) -> None:
        for key in ("model.embed_tokens.weight", "lm_head.weight"):
            tensors[key] = tensors[key].clone()
            tensors[key][row] *= 1.5

    change_tensors(copy, change)
    checks = by_name(verify(copy, config=FULL))
    assert checks["recipes"].result == "passed" and checks["solved again"].result == "failed"
    assert {r.id for r in checks["solved again"].rows} == {row}


def test_a_sample_is_drawn_by_the_seed(copy: Path) -> None:
    rows = inspect(copy)
    for row in range(len(rows.norms)):
        if rows.origin(row) == "solved":
            changed_row(copy, row)
    first, again, other = (
        [r.id for r in by_name(verify(copy, config=VerifyConfig(sample=5, seed=seed)))["recipes"].rows]
        for seed in (1, 1, 2)
    )
    assert first == again != other and len(first) == len(other) == 5


def edit(folder: Path, change: Callable[[dict], object]) -> None:
    path = folder / "saltlm.json"
    summary = json.loads(path.read_text(encoding="utf-8"))
    change(summary)
    path.write_text(json.dumps(summary), encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s["counts"].update(copied=s["counts"]["copied"] + 1), "copied rows"),
        (lambda s: s["statuses"][1].update(count=99_999), "of status full_rank"),
        (lambda s: s["norms"]["solved"].update(max=1e9), "max norm 1e+09 of solved rows"),
        (lambda s: s.update(new_tokens=1), "1 new tokens"),
        (lambda s: s.update(anchors="many"), "saltlm.json/anchors"),
        (lambda s: s.pop("environment"), "no environment"),
    ],
)
def test_a_record_that_contradicts_the_rows_fails(copy: Path, change: Callable, words: str) -> None:
    edit(copy, change)
    check = by_name(verify(copy))["record"]
    assert check.result == "failed" and words in check.detail


def test_a_row_whose_origin_contradicts_its_source_is_named(copy: Path) -> None:
    arrays = load_file(copy / "provenance.safetensors")
    row = int(np.flatnonzero(arrays["origin"] == 0)[0])
    arrays["source_id"][row] = -1
    save_file(arrays, copy / "provenance.safetensors")
    checks = by_name(verify(copy))
    assert [r.id for r in checks["record"].rows] == [row] and checks["copied rows"].result == "failed"


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "README.md"])
def test_a_changed_file_is_named(copy: Path, name: str) -> None:
    (copy / name).write_bytes((copy / name).read_bytes() + b"\n")
    check = by_name(verify(copy))["files"]
    assert check.result == "failed" and [name in text for text in check.names] == [True]


@pytest.mark.parametrize("kind", ["removed", "a link inside", "a folder"])
def test_a_missing_file_is_named(copy: Path, kind: str) -> None:
    path = copy / "README.md"
    if kind == "a link inside":
        path.rename(copy / "other.md")
        path.symlink_to("other.md")
    else:
        path.unlink()
        if kind == "a folder":
            path.mkdir()
    check = by_name(verify(copy))["files"]
    assert check.result == "failed" and ["README.md' is missing" in text for text in check.names] == [True]


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "fifo", "sub\0file", ""])
def test_names_that_lead_out_of_the_folder_are_not_read(copy: Path, name: str) -> None:
    (copy.parent / "secret").write_text("x")
    os.mkfifo(copy / "fifo")
    edit(copy, lambda s: s["files"].update({name: "0" * 64}))
    check = by_name(verify(copy))["files"]
    assert check.result == "failed" and "missing" in check.names[0]


def test_the_digests_cover_every_file_and_vocabulary_tensor(salt: Path) -> None:
    files = json.loads((salt / "saltlm.json").read_text(encoding="utf-8"))["files"]
    assert {name for name in files if "#" not in name} == {p.name for p in salt.iterdir()} - {"saltlm.json"}
    tensors = {"model.safetensors#lm_head.weight", "model.safetensors#model.embed_tokens.weight"}
    assert {name for name in files if "#" in name} == tensors
    assert files["model.safetensors"] == f"{(salt / 'model.safetensors').stat().st_size} bytes"


def test_a_record_without_digests_is_not_checked(copy: Path) -> None:
    edit(copy, lambda s: s.pop("files"))
    assert results(verify(copy)) == dict.fromkeys(NAMES, "passed") | {"files": "not checked"}


@pytest.mark.parametrize("full", [False, True])
def test_a_changed_body_is_named(copy: Path, full: bool) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.norm.weight"] = tensors["model.norm.weight"] + 1
        if not full:
            tensors["model.norm.weight"] = tensors["model.norm.weight"].half()

    change_tensors(copy, change)
    check = by_name(verify(copy, config=VerifyConfig(full=full)))["body"]
    assert check.result == "failed" and ["model.norm.weight" in name for name in check.names] == [True]


def test_inputs_that_are_gone_or_changed_are_not_compared(copy: Path, untied, tmp_path: Path) -> None:
    source = shutil.copytree(untied.source, tmp_path / "source")
    target = shutil.copytree(untied.target, tmp_path / "target")
    vectors = shutil.copy(untied.vectors, tmp_path / "v.vec")
    edit(copy, lambda s: s["inputs"]["source"].update(path=str(tmp_path / "gone")))
    checks = by_name(verify(copy))
    assert {check.result for check in list(checks.values())[2:]} == {"not checked"}
    assert "name it by --source" in checks["body"].detail
    assert_passed(verify(copy, source, target, vectors))
    changed_row(source, 0)
    checks = by_name(verify(copy, source))
    assert checks["copied rows"].result == "not checked" and "another one than recorded" in checks["body"].detail
    vectors.write_text(vectors.read_text().replace("0.1", "0.2"))
    checks = by_name(verify(copy, untied.source, target, vectors))
    assert checks["solved again"].result == "not checked" and "vectors are others" in checks["solved again"].detail
    changed_row(target, 0, "embeddings.word_embeddings.weight")
    check = by_name(verify(copy, untied.source, target))["solved again"]
    assert check.result == "not checked" and "--target" in check.detail


def test_the_recorded_trust_in_code_is_not_taken_over(copy: Path) -> None:
    edit(copy, lambda s: s["config"].update(trust_remote_code=True))
    assert_passed(verify(copy))
    for entries in ({"gguf_file": 3}, {"method": "unknown"}, {"method": ["salt"]}):
        edit(copy, lambda s, entries=entries: s["config"].update(entries))
        check = by_name(verify(copy))["solved again"]
        assert check.result == "not checked" and "options cannot be used" in check.detail


def test_bad_input_is_refused(copy: Path, untied, tmp_path: Path, capsys) -> None:
    for folder, words in ((untied.source, "no saltlm.json"), (tmp_path / "none", "no saltlm.json")):
        assert main(["verify", str(folder)]) == 2
        assert words in capsys.readouterr().err
    assert main(["verify", str(copy), "--source", str(tmp_path / "none"), "--quiet"]) == 2
    assert main(["verify", str(copy), "--auxiliary", str(tmp_path / "none"), "--quiet"]) == 2
    assert main(["verify", str(copy), "--sample", "0"]) == 2
    edit(copy, lambda s: s.update(schema_version=99))
    with pytest.raises(InputError, match="schema_version 99"):
        verify(copy)
    (copy / "provenance.safetensors").write_bytes(b"{}")
    assert main(["verify", str(copy)]) == 2


def test_the_command_prints_a_table_or_one_object(copy: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["verify", str(copy), "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert not err and max(map(len, out.splitlines())) <= 80 and all(name in out for name in NAMES)
    row = next(r for r in range(len(inspect(copy).norms)) if inspect(copy).origin(r) == "copied")
    changed_row(copy, row)
    assert main(["verify", str(copy), "--quiet"]) == 1
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80 and "failed" in out and str(row) in out
    assert main(["verify", str(copy), "--json"]) == 1
    content = json.loads(capsys.readouterr().out)
    assert content["failed"] is True and [check["name"] for check in content["checks"]] == NAMES
    assert content["checks"][2]["rows"][0]["id"] == row


def test_nothing_is_written(copy: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*")}
    verify(copy, config=FULL)
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*")} == before
    assert len(load_source(copy).input_rows) == len(inspect(copy).norms)
