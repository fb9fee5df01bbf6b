"""A run that is killed at any moment goes on, and ends bit for bit as one that was not."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import adapt_tiny
import pytest
import torch
from adapt_kill import OPTIONS

from saltlm.adaptation.checkpoints import RunFolder
from saltlm.adaptation.config import AdaptConfig
from saltlm.adaptation.run import adapt
from saltlm.errors import InputError

TIMES = ("seconds", "tokens_per_second")


class Stop(Exception):
    pass


def drive(folder: Path, out: str, how: str) -> dict:
    here = Path(__file__).parent
    paths = os.pathsep.join([str(here), *sys.path])
    done = subprocess.run(
        [sys.executable, str(here / "adapt_kill.py"), str(folder), str(folder / out), how], text=True, capture_output=True,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def result(out: Path) -> tuple[list[dict], bytes]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMES} for line in lines], (
        out / "model.safetensors"
    ).read_bytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    adapt_tiny.transferred(folder / "model", "gpt2")  # with dropout: the random state must come back, too
    adapt_tiny.text_file(folder / "text.txt", 40)
    adapt_tiny.text_file(folder / "english.txt", 20, seed=5)
    assert drive(folder, "whole", "uninterrupted") == {"code": 0, "killed": []}
    return folder


def test_killed_at_any_moment_it_ends_the_same(folder):
    done = drive(folder, "killed", "kill")
    assert done["code"] == 0
    assert all(whole for _, _, whole in done["killed"])
    assert [code for code, _, _ in done["killed"]] == [-signal.SIGKILL] * 5
    assert result(folder / "killed") == result(folder / "whole")
    assert not list(folder.glob(".killed*")) and not (folder / "killed" / "checkpoints").exists()


def test_a_polite_signal_saves_first(folder):
    done = drive(folder, "asked", "signal")
    (code, lines, message), *_ = done["killed"]
    assert code == 130 and f"step-{lines - 1}" in message and "--resume" in message
    assert done["code"] == 0 and result(folder / "asked") == result(folder / "whole")


def test_a_finished_run_is_left_alone(folder):
    before = {path: path.stat().st_mtime_ns for path in (folder / "whole").iterdir()}
    done = adapt(
        folder / "model", folder / "text.txt", folder / "whole", AdaptConfig(**OPTIONS),
        replay={folder / "english.txt": 0.25}, resume=True,
    )  # fmt: skip
    assert done.steps == 10
    assert {path: path.stat().st_mtime_ns for path in (folder / "whole").iterdir()} == before


def stopped(folder: Path, out: Path, at: int) -> dict:
    """A run that an exception ends after a step; returns what to call again."""

    def stop(report):
        if report.step == at:
            raise Stop

    given = {
        "model": folder / "model", "texts": folder / "text.txt", "out": out, "config": AdaptConfig(**OPTIONS),
        "replay": {folder / "english.txt": 0.25},
    }  # fmt: skip
    with pytest.raises(Stop):
        adapt(**given, progress=stop)
    return given


def test_every_kind_of_run_goes_on_to_the_same(folder, tmp_path):
    """Row distillation, a streamed dataset, WSD, decay of new rows and early stopping, stopped in each phase."""
    pytest.importorskip("datasets")
    model = adapt_tiny.transferred(tmp_path / "model")
    (tmp_path / "hub").mkdir()
    entries = [json.dumps({"text": text}) + "\n" for text in adapt_tiny.documents(40)]
    (tmp_path / "hub" / "train.jsonl").write_text("".join(entries))
    config = AdaptConfig(
        **{
            **OPTIONS, "phases": "rows:2,all:9@1.0", "schedule": "wsd", "weight_decay": 0.1, "eval_steps": 1, "early_stop": 2,
            "distill_rows": True, "distill_steps": 3, "distill_source": str(folder / "model"), "max_grad_norm": None,
        }
    )  # fmt: skip
    text, out = f"dataset:{tmp_path / 'hub'},train", tmp_path / "out"
    whole = adapt(model, text, tmp_path / "whole", config)
    assert 5 < whole.steps < 14 and whole.kept_step == whole.steps - 2
    for at in (2, 5, whole.steps):

        def stop(report, at=at):
            if report.step == at:
                raise Stop

        with pytest.raises(Stop):
            adapt(model, text, out, config, resume=True, progress=stop)
    assert adapt(model, text, out, config, resume=True).kept_step == whole.kept_step
    assert result(out) == result(tmp_path / "whole")


def test_another_run_is_refused(folder, tmp_path):
    given = stopped(folder, tmp_path / "out", 2)
    other = adapt_tiny.text_file(tmp_path / "other.txt", 30, seed=9)
    model = adapt_tiny.transferred(tmp_path / "model", "gpt2", seed=1)
    before = sorted(tmp_path.rglob("*"))
    for match, changed in {
        "another text": {"texts": other},
        "another model": {"model": model},
        "another replay": {"replay": {folder / "english.txt": 0.3}},
        "another evaluation": {"eval_texts": other},
        r"another config \(learning_rate was 0.001, is 0.002\)": {
            "config": AdaptConfig(**{**OPTIONS, "learning_rate": 2e-3})
        },
    }.items():
        with pytest.raises(InputError, match=match):
            adapt(**{**given, **changed}, resume=True)
    with pytest.raises(InputError, match="go on with it by --resume, or start over by --force"):
        adapt(**given)
    assert sorted(tmp_path.rglob("*")) == before
    seldom = AdaptConfig(**{**OPTIONS, "save_steps": 5})  # how often checkpoints are written may change
    assert adapt(**{**given, "config": seldom}, resume=True).steps == 10


def test_force_starts_over(folder, tmp_path):
    given = stopped(folder, tmp_path / "out", 3)
    adapt(**{**given, "config": AdaptConfig(**OPTIONS, force=True)})
    # Another process, another number of threads: the same up to rounding.
    ours, theirs = result(tmp_path / "out")[0], result(folder / "whole")[0]
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    assert ours[-1]["loss"] == pytest.approx(theirs[-1]["loss"], rel=1e-3)


def test_a_full_disk_spares_the_last_checkpoint(folder, tmp_path, monkeypatch):
    given = stopped(folder, tmp_path / "out", 3)
    stock = torch.save

    def full(content, file, *args, **kwargs):
        stock(content, file, *args, **kwargs)
        raise OSError(28, "No space left on device", str(file))

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(InputError, match=r"a full disk.*go on by --resume: the last checkpoint, step-2, is safe"):
            adapt(**given, resume=True)
    names = sorted(path.name for path in (tmp_path / "out" / "checkpoints").iterdir())
    assert names == ["step-2"]
    assert adapt(**given, resume=True).steps == 10


def test_a_disk_too_small_for_the_model_spares_the_last_checkpoint(folder, tmp_path, monkeypatch):
    given = stopped(folder, tmp_path / "out", 9)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, 0))
        with pytest.raises(InputError, match=r"no space left.*go on by --resume: the last checkpoint is safe"):
            adapt(**given, resume=True)
    assert (tmp_path / "out" / "checkpoints" / "step-10").is_dir()
    assert adapt(**given, resume=True).steps == 10


def test_an_interrupt_before_the_first_step_says_how_to_go_on(folder, tmp_path):
    def stop(report):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="the same command with --resume goes on from the beginning"):
        adapt(folder / "model", folder / "text.txt", tmp_path / "out", AdaptConfig(**OPTIONS), progress=stop)


def test_a_folder_is_a_runs_from_its_first_moment(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / ".run.json.writing").write_text("{")  # killed while the record was written
    run = RunFolder(out, main=True, barrier=lambda: None)
    with pytest.raises(InputError, match="an existing folder"):
        run.check(resume=False, force=False, protected=[])
    run.check(resume=True, force=False, protected=[])
    assert run.find({}) is None
    run.start({"model": "m"}, None)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["checkpoints", "out", "run.json"]
    run.release()
    (out / "run.json").write_text('{"format": 1}')
    with pytest.raises(InputError, match=r"a run.json that is no record of an adaptation.*start over by --force"):
        run.find({})


def test_a_folder_made_meanwhile_is_left_alone(tmp_path):
    run = RunFolder(tmp_path / "out", main=True, barrier=lambda: None)
    run.check(resume=False, force=False, protected=[])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model").touch()
    with pytest.raises(InputError, match="a folder made meanwhile"):
        run.start({}, None)
    assert (tmp_path / "out" / "model").exists()


def test_two_processes_do_not_write_one_folder(folder, tmp_path):
    given = stopped(folder, tmp_path / "out", 2)
    other = RunFolder(tmp_path / "out", main=True, barrier=lambda: None)
    other._take_lock()
    with pytest.raises(InputError, match="another process that is adapting into it"):
        adapt(**given, resume=True)
    other.release()
