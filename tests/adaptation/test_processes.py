"""Two processes give the results of one process with twice the accumulation, with and without sharding."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import adapt_tiny
import pytest
from safetensors.torch import load_file
from transformers import TrainingArguments

from saltlm.adaptation.config import AdaptConfig
from saltlm.adaptation.processes import check_sharding, use_one_device
from saltlm.adaptation.run import adapt
from saltlm.cli.main import main
from saltlm.errors import InputError

OPTIONS = {
    "phases": "rows:2,all:3@1e-3",
    "seq_length": 32,
    "batch_size": 2,
    "device": "cpu",
    "heldout": 0.2,
    "eval_bytes": 500,
    "eval_steps": 2,
    "save_steps": 2,
    "dtype": "float32",
    "weight_decay": 0.1,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    adapt_tiny.transferred(folder / "model")
    adapt_tiny.text_file(folder / "text.txt", 60)
    adapt(folder / "model", folder / "text.txt", folder / "one", AdaptConfig(**{**OPTIONS, "accumulate": 2}))
    return folder


TORCHRUN = "torch.distributed.run --nproc-per-node 2 --rdzv-backend c10d --rdzv-endpoint localhost:0"
# accelerate's launcher for several GPUs also starts processes on CPUs; its launcher for CPUs needs MPI.
ACCELERATE = (
    "accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --main_process_port 0 --mixed_precision no"
    " --dynamo_backend no"
)


def torchrun(*words: str, launcher: str = TORCHRUN) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *launcher.split(), *words],
        text=True,
        capture_output=True,
        check=False,
        timeout=600,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
    )


def words_of(folder: Path, out: str, *more: str) -> list[str]:
    options = [word for name, value in OPTIONS.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    given = ["adapt", str(folder / "model"), "--text", str(folder / "text.txt"), "--out", str(folder / out)]
    return [*given, "--json", *options, *more]


def lines(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def assert_same_run(folder: Path, name: str) -> None:
    """The run of two processes has the figures and weights of the run of one process with twice the accumulation."""
    one, both = lines(folder / "one"), lines(folder / name)
    assert [line["step"] for line in both] == list(range(6))
    for line, expected in zip(both[1:], one[1:], strict=True):
        for key in ("loss", "gradient_norm", "bits_per_byte"):
            assert line[key] == pytest.approx(expected[key], rel=1e-4), (line["step"], key)
        for key in ("tokens", "bytes", "learning_rates", "phase"):
            assert line[key] == pytest.approx(expected[key]), (line["step"], key)
    assert both[-1]["heldout_bits_per_byte"] == pytest.approx(one[-1]["heldout_bits_per_byte"], rel=1e-4)
    before, expected, result = (load_file(folder / part / "model.safetensors") for part in ("model", "one", name))
    assert set(result) == set(expected)
    for key, tensor in result.items():
        change = (expected[key] - before[key]).abs().max()
        assert (tensor - expected[key]).abs().max() <= 0.02 * change, key


def test_two_processes_equal_one_with_twice_the_accumulation(folder, capsys):
    done = torchrun("-m", "saltlm", *words_of(folder, "two"))
    assert done.returncode == 0, done.stderr[-4000:]
    assert json.loads(done.stdout)["steps"] == 5  # one process prints one object
    assert_same_run(folder, "two")
    assert main(words_of(folder, "two", "--resume")) == 2  # in one process
    printed = capsys.readouterr()
    assert "their number was 2, is 1" in printed.err and "start as many processes" in printed.err and not printed.out


def test_accelerate_launch_gives_the_same_run(folder):
    done = torchrun("-m", "saltlm", *words_of(folder, "launched"), launcher=ACCELERATE)
    assert done.returncode == 0, done.stderr[-4000:]
    assert json.loads((folder / "launched" / "saltlm.json").read_bytes())["adapted"]["processes"] == 2
    assert_same_run(folder, "launched")


@pytest.fixture(scope="module")
def sharded(folder):
    """Runs in two processes, all but the last with FSDP2.

    Returns:
        For each model that was prepared: number of its weights, and of those that the second process holds.
    """
    adapt_tiny.transferred(folder / "untied", "phi")

    def job(out: str, model: str = "model", stop: int | None = None, **options) -> dict:
        options = {**OPTIONS, "sharding": "fsdp2", **options}
        paths = {"model": str(folder / model), "text": str(folder / "text.txt"), "out": str(folder / out)}
        return {**paths, "stop": stop, "config": options}

    jobs = [
        job("sharded"),
        job("stopped", stop=3),
        job("untied-sharded", "untied", gradient_checkpointing=True),
        job("untied-whole", "untied", sharding="none"),
    ]
    done = torchrun(str(Path(__file__).parents[1] / "support" / "adapt_two.py"), json.dumps(jobs))
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_two_processes_that_hold_half_the_model_each_give_the_same_run(folder, sharded):
    *with_fsdp, (size, local_size) = sharded
    assert local_size == size
    assert len(with_fsdp) == 4 and all(0.49 * size < local < 0.52 * size for size, local in with_fsdp)
    assert_same_run(folder, "sharded")


def test_a_sharded_model_with_an_untied_head_and_a_bias_gives_the_same_losses(folder, sharded):
    result, expected = (lines(folder / f"untied-{name}") for name in ("sharded", "whole"))
    assert [line["loss"] for line in result[1:]] == pytest.approx([line["loss"] for line in expected[1:]], rel=1e-4)
    before, after = (load_file(folder / name / "model.safetensors") for name in ("untied", "untied-sharded"))
    assert set(before) == set(after) and not before["lm_head.bias"].equal(after["lm_head.bias"])


def test_a_sharded_run_that_was_stopped_and_resumed_has_the_same_bits(folder, sharded):
    untimed = [
        [{k: v for k, v in line.items() if k not in ("seconds", "tokens_per_second")} for line in lines(folder / name)]
        for name in ("sharded", "stopped")
    ]
    assert untimed[0] == untimed[1]
    weights = [(folder / name / "model.safetensors").read_bytes() for name in ("sharded", "stopped")]
    assert weights[0] == weights[1]


def test_a_process_uses_one_device():
    arguments = TrainingArguments(output_dir="unused", report_to="none", use_cpu=True)
    arguments._n_gpu = 2  # the number that transformers counts where a process sees two GPUs
    assert use_one_device(arguments).n_gpu == 1


def test_options_that_sharding_does_not_allow_are_refused(folder, capsys, monkeypatch):
    assert main(words_of(folder, "bad", "--sharding", "fsdp2")) == 2
    assert "fsdp2 in one process" in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "2")
    for option in ("precision", "compile"):
        with pytest.raises(InputError, match=f"{option}.* with sharding fsdp2"):
            check_sharding(AdaptConfig(sharding="fsdp2", compile=option == "compile"), {"fp16": option == "precision"})
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert main(words_of(folder, "bad")) == 2
    assert "turn FSDP off in that configuration" in capsys.readouterr().err
    assert not (folder / "bad").exists()


def test_the_command_refuses_bad_input_and_writes_nothing(folder, capsys):
    text, out = str(folder / "text.txt"), str(folder / "bad")
    for match, words in {
        "expected FILE:RATIO": ["--replay", "x"],
        "fp16 on a CPU": ["--device", "cpu", "--precision", "fp16"],
        "found 'rows:0'": ["--phases", "rows:0"],
        "it is the input folder": ["--out", str(folder / "model")],
    }.items():
        assert main(["adapt", str(folder / "model"), "--text", text, "--out", out, *words]) == 2
        printed = capsys.readouterr()
        assert match in printed.err and not printed.out and "Traceback" not in printed.err
    assert not (folder / "bad").exists()


def test_the_command_shows_progress_and_a_table(folder, capsys):
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
