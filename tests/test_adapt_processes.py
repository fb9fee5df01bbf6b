"""Two processes train as one does with twice the accumulation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import adapt_tiny
import pytest
from safetensors.torch import load_file
from saltlm.adapt import adapt
from saltlm.adapt_config import AdaptConfig
from saltlm.cli import main

OPTIONS = {
    "phases": "rows:2,all:3@1e-3", "seq_length": 32, "batch_size": 2, "device": "cpu", "heldout": 0.2, "eval_bytes": 500,
    "eval_steps": 2, "save_steps": 2, "dtype": "float32", "weight_decay": 0.1,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    adapt_tiny.transferred(folder / "model")
    adapt_tiny.text_file(folder / "text.txt", 60)
    adapt(folder / "model", folder / "text.txt", folder / "one", AdaptConfig(**{**OPTIONS, "accumulate": 2}))
    return folder


def two(folder: Path, out: str, *more: str) -> subprocess.CompletedProcess[str]:
    options = [word for name, value in OPTIONS.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    return subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d",
            "--rdzv-endpoint", "localhost:0", "-m", "saltlm", "adapt", str(folder / "model"), "--text",
            str(folder / "text.txt"), "--out", str(folder / out), "--json", *options, *more,
        ],
        text=True, capture_output=True, check=False, timeout=300,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def lines(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_two_processes_are_one_with_doubled_accumulation(folder):
    name = "two"
    done = two(folder, name)
    assert done.returncode == 0, done.stderr[-4000:]
    assert json.loads(done.stdout)["steps"] == 5  # one object, from one process
    one, both = lines(folder / "one"), lines(folder / name)
    assert [line["step"] for line in both] == list(range(6))
    for ours, theirs in zip(both[1:], one[1:], strict=True):
        for key in ("loss", "gradient_norm", "bits_per_byte"):
            assert ours[key] == pytest.approx(theirs[key], rel=1e-4), (ours["step"], key)
        for key in ("tokens", "bytes", "learning_rates", "phase"):
            assert ours[key] == pytest.approx(theirs[key]), (ours["step"], key)
    assert both[-1]["heldout_bits_per_byte"] == pytest.approx(one[-1]["heldout_bits_per_byte"], rel=1e-4)
    before, whole, found = (load_file(folder / part / "model.safetensors") for part in ("model", "one", name))
    for key, tensor in found.items():
        moved = (whole[key] - before[key]).abs().max()
        assert (tensor - whole[key]).abs().max() <= 0.02 * moved, key


def test_the_command_refuses_bad_input(folder, capsys):
    text, out = str(folder / "text.txt"), str(folder / "bad")
    for match, words in {
        "expected FILE:RATIO": ["--replay", "x"],
        "found 'rows:0'": ["--phases", "rows:0"],
        "it is the input folder": ["--out", str(folder / "model")],
    }.items():
        assert main(["adapt", str(folder / "model"), "--text", text, "--out", out, *words]) == 2
        printed = capsys.readouterr()
        assert match in printed.err and not printed.out and "Traceback" not in printed.err
    assert not (folder / "bad").exists()


def test_the_command_shows_a_line_and_a_table(folder, capsys):
    words = ["--steps", "2", "--seq-length", "32", "--device", "cpu", "--heldout", "0.2", "--eval-bytes", "500"]
    assert (
        main(
            ["adapt", str(folder / "model"), "--text", str(folder / "text.txt"), "--out", str(folder / "shown"), *words]
        )
        == 0
    )
    printed = capsys.readouterr()
    assert "2 / 2" in printed.err and "tokens/s" in printed.err and "bits/byte" in printed.err
    assert "held-out bits per byte" in printed.out and "written to" in printed.out
