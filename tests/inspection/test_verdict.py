"""The verdict: its levels, its advice, the command that makes a folder again, and records of older versions."""

from __future__ import annotations

import json
import shlex
import shutil

import pytest
from safetensors.numpy import load_file, save_file

from saltlm.cli.main import main
from saltlm.cli.options import config_from, parser
from saltlm.config import TransferConfig
from saltlm.folder.estimate import Estimate
from saltlm.inspection.page import page
from saltlm.inspection.rows import GROUPS, inspect
from saltlm.inspection.verdict import transfer_command, verdict_of
from saltlm.pipeline import transfer


def summary(**changes):
    """A summary of a good transfer by the default method."""
    return {
        "method": "auto",
        "counts": {"copied": 300_000, "role": 5, "solved": 0, "composed": 199_994, "drawn": 1},
        "new_tokens": 199_995,
        "anchors": 300_000,
        "heldout": {"score": 0.15, "broken": None},
        "inputs": {"source": {"path": "a source"}, "target": {"path": "target"}},
        "config": TransferConfig().to_json(),
        "environment": {},
        "warnings": [],
        **changes,
    }


@pytest.mark.parametrize(
    ("heldout", "level"),
    [
        ({"score": 0.15, "broken": None}, "good"),
        ({"score": 0.05, "broken": None}, "fair"),
        ({"score": -0.4, "broken": None}, "poor"),
        ({"score": 0.5, "broken": "rows explode"}, "poor"),
        (None, "unknown"),
    ],
)
def test_the_level_follows_the_self_check(heldout, level: str) -> None:
    verdict = verdict_of(summary(heldout=heldout), "out")
    assert verdict.level == level
    assert heldout is None or not heldout["broken"] or heldout["broken"] in verdict.start


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, ["--tune-text"]),
        ({"config": {**TransferConfig().to_json(), "tune_text": "t.txt"}}, ["saltlm", "adapt", "out"]),
        ({"adapted": {}}, ["saltlm", "evaluate", "a source", "out"]),
        ({"method": "salt", "config": {"method": "salt"}, "heldout": {"score": -1}}, ["--source", "a source"]),
        ({"method": "salt", "config": {"method": "salt"}, "counts": {"drawn": 199_995}}, ["--target", "target"]),
    ],
)
def test_three_short_lines_and_a_command(changes, words: list[str]) -> None:
    verdict = verdict_of(summary(**changes), "out")
    assert len(verdict.lines) == 3 and all(0 < len(line) <= 78 for line in verdict.lines), verdict.lines
    assert set(words) <= set(shlex.split(verdict.command))
    if changes.get("method") == "salt":
        assert "--method" not in verdict.command


def test_a_plan_says_what_it_costs() -> None:
    cost = str(Estimate(memory=3 * 10**9, seconds=200.0, disk=10**12))
    verdict = verdict_of(summary(heldout=None), None, cost=cost)
    assert verdict.start == "About 3.0 GB of memory, 3 minutes, 1.0 TB of disk; nothing was written."
    assert all(len(line) <= 78 for line in verdict.lines) and "anchors 300,000" in verdict.rows
    few = verdict_of(summary(heldout=None, anchors=3), None, cost=cost)
    assert few.level == "poor" and "PLM" in few.advice


@pytest.mark.parametrize(
    "config",
    [
        TransferConfig(),
        TransferConfig(method="salt", center=True, ridge=0.01),
        TransferConfig(method="blend", blend_weight="pieces", blend_with="salt", heldout=0),
        TransferConfig(special_overrides={"<a>": "<b>"}, pad_to_multiple_of=64, dtype="bfloat16"),
    ],
)
def test_the_command_makes_the_transfer_again(config: TransferConfig) -> None:
    words = shlex.split(transfer_command(summary(config=config.to_json()), "my out"))
    arguments = parser().parse_args(words[1:])
    assert config_from(arguments, TransferConfig) == config
    assert (arguments.source, arguments.target, arguments.out) == ("a source", "target", "my out")


@pytest.fixture(scope="module")
def folder(untied, tmp_path_factory):
    out = tmp_path_factory.mktemp("verdict") / "out"
    return transfer(untied.source, untied.target, untied.vectors, out, TransferConfig(method="salt"))


def test_results_judge_alike_everywhere(folder, capsys, monkeypatch) -> None:
    verdict = folder.verdict
    assert inspect(folder.out).verdict.lines == verdict.lines
    html = folder._repr_html_()
    assert verdict.rows in html and "<script" not in html
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["inspect", str(folder.out)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("\n| ") and all(line in printed for line in verdict.lines)
    assert f"next: {verdict.command}\n" in printed
    assert max(len(line) for line in printed.splitlines() if not line.startswith("next: ")) <= 80


@pytest.mark.parametrize("group", list(GROUPS)[1:])
def test_what_an_older_record_lacks_is_left_out_and_named(group: str, folder, tmp_path, capsys) -> None:
    shutil.copytree(folder.out, tmp_path / "out")
    path = tmp_path / "out" / "provenance.safetensors"
    save_file({name: array for name, array in load_file(path).items() if name not in GROUPS[group]}, path)
    rows = inspect(tmp_path / "out")
    assert rows.missing == (group,)
    assert f"lacks: {group}" in "".join(page(rows))
    assert main(["inspect", str(tmp_path / "out"), "#9"]) == main(["inspect", str(tmp_path / "out")]) == 0
    assert "older version" in capsys.readouterr().out


@pytest.mark.parametrize(
    "key", ["heldout", "inputs", "config", "environment", "warnings", "support", "seconds", "roles"]
)
def test_a_summary_without_a_key_is_shown_without_it(key: str, folder, tmp_path, capsys) -> None:
    shutil.copytree(folder.out, tmp_path / "out")
    content = json.loads((tmp_path / "out" / "saltlm.json").read_text())
    del content[key]
    (tmp_path / "out" / "saltlm.json").write_text(json.dumps(content))
    text = "".join(page(inspect(tmp_path / "out")))
    assert ("older version" in text) == (key in ("heldout", "inputs", "config", "environment", "warnings"))
    assert main(["inspect", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out


def test_a_dry_run_estimates(untied, capsys) -> None:
    words = ["transfer", "--source", str(untied.source), "--target", str(untied.target), "--dry-run", "--quiet"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "About " in printed and "of memory" in printed and "of disk; nothing was written." in printed
    assert main([*words, "--json"]) == 0
    estimate = json.loads(capsys.readouterr().out)["estimate"]
    done = transfer(untied.source, untied.target, dry_run=True)
    assert done.estimate is not None and estimate["disk"] == done.estimate.disk > 0
    assert done.estimate.seconds > 0 and "nothing was written" in done._repr_html_()


def test_the_estimated_disk_is_that_of_the_written_weights(untied, tmp_path) -> None:
    planned = transfer(untied.source, untied.target, dry_run=True).estimate
    assert planned is not None
    done = transfer(untied.source, untied.target, None, tmp_path / "out")
    written = sum(file.stat().st_size for file in done.out.glob("*.safetensors") if "provenance" not in file.name)
    assert planned.disk == pytest.approx(written, rel=0.02)
