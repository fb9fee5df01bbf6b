"""A run that was killed at any moment can be resumed, and ends with the bits of an uninterrupted run."""

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
    here = Path(__file__).parents[1] / "support"
    paths = os.pathsep.join([str(here), *sys.path])
    done = subprocess.run(
        [sys.executable, str(here / "adapt_kill.py"), str(folder), str(folder / out), how],
        text=True,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        timeout=300,
        check=False,
    )
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
    adapt_tiny.transferred(folder / "model", "gpt2")  # with dropout, so that the random state must be restored
    adapt_tiny.text_file(folder / "text.txt", 40)
    adapt_tiny.text_file(folder / "english.txt", 20, seed=5)
    assert drive(folder, "whole", "uninterrupted") == {"code": 0, "killed": []}
    return folder


def test_a_run_killed_at_any_moment_ends_with_the_same_bits(folder):
    done = drive(folder, "killed", "kill")
    assert done["code"] == 0
    assert all(whole for _, _, whole in done["killed"])
    assert [code for code, _, _ in done["killed"]] == [-signal.SIGKILL] * 5
    assert result(folder / "killed") == result(folder / "whole")
    assert not list(folder.glob(".killed*")) and not (folder / "killed" / "checkpoints").exists()


def test_a_signal_writes_a_checkpoint_before_the_run_ends(folder):
    done = drive(folder, "asked", "signal")
    (code, lines, message), *_ = done["killed"]
    assert code == 130 and f"step-{lines - 1}" in message and "--resume" in message
    assert done["code"] == 0 and result(folder / "asked") == result(folder / "whole")


def test_resuming_a_finished_run_writes_nothing(folder):
    before = {path: path.stat().st_mtime_ns for path in (folder / "whole").iterdir()}
    done = adapt(
        folder / "model",
        folder / "text.txt",
        folder / "whole",
        AdaptConfig(**OPTIONS),
        replay={folder / "english.txt": 0.25},
        resume=True,
    )
    assert done.steps == 10
    assert {path: path.stat().st_mtime_ns for path in (folder / "whole").iterdir()} == before


def stopped(folder: Path, out: Path, at: int) -> dict:
    """Stop a run by an exception after step ``at``; returns the arguments of adapt()."""

    def stop(report):
        if report.step == at:
            raise Stop

    given = {
        "model": folder / "model",
        "texts": folder / "text.txt",
        "out": out,
        "config": AdaptConfig(**OPTIONS),
        "replay": {folder / "english.txt": 0.25},
    }
    with pytest.raises(Stop):
        adapt(**given, progress=stop)
    return given


def test_distillation_streaming_and_early_stopping_resume_with_the_same_bits(folder, tmp_path):
    """Row distillation, a streamed dataset, WSD, decay of new rows and early stopping, stopped in each phase."""
    pytest.importorskip("datasets")
    model = adapt_tiny.transferred(tmp_path / "model")
    (tmp_path / "hub").mkdir()
    entries = [json.dumps({"text": text}) + "\n" for text in adapt_tiny.documents(40)]
    (tmp_path / "hub" / "train.jsonl").write_text("".join(entries))
    config = AdaptConfig(
        **{
            **OPTIONS,
            "phases": "rows:2,all:9@1.0",
            "schedule": "wsd",
            "weight_decay": 0.1,
            "eval_steps": 1,
            "early_stop": 2,
            "distill_rows": True,
            "distill_steps": 3,
            "distill_source": str(folder / "model"),
            "max_grad_norm": None,
        }
    )
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


def test_resuming_with_other_inputs_is_refused(folder, tmp_path):
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
    other_save_steps = AdaptConfig(**{**OPTIONS, "save_steps": 5})  # this option may change
    assert adapt(**{**given, "config": other_save_steps}, resume=True).steps == 10


def test_force_starts_over(folder, tmp_path):
    given = stopped(folder, tmp_path / "out", 3)
    adapt(**{**given, "config": AdaptConfig(**OPTIONS, force=True)})
    # Another process may use another number of threads, so the figures are equal up to rounding.
    metrics, expected = result(tmp_path / "out")[0], result(folder / "whole")[0]
    assert [line["step"] for line in metrics] == [line["step"] for line in expected]
    assert metrics[-1]["loss"] == pytest.approx(expected[-1]["loss"], rel=1e-3)


def test_a_full_disk_leaves_the_last_checkpoint_unchanged(folder, tmp_path, monkeypatch):
    given = stopped(folder, tmp_path / "out", 3)
    save = torch.save

    def save_on_full_disk(content, file, *args, **kwargs):
        save(content, file, *args, **kwargs)
        raise OSError(28, "No space left on device", str(file))

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", save_on_full_disk)
        with pytest.raises(InputError, match=r"a full disk.*go on by --resume: the last checkpoint, step-2, is safe"):
            adapt(**given, resume=True)
    names = sorted(path.name for path in (tmp_path / "out" / "checkpoints").iterdir())
    assert names == ["step-2"]
    assert adapt(**given, resume=True).steps == 10


def test_a_disk_without_room_for_the_model_leaves_the_last_checkpoint_unchanged(folder, tmp_path, monkeypatch):
    given = stopped(folder, tmp_path / "out", 9)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, 0))
        with pytest.raises(InputError, match=r"no space left.*go on by --resume: the last checkpoint is safe"):
            adapt(**given, resume=True)
    assert (tmp_path / "out" / "checkpoints" / "step-10").is_dir()
    assert adapt(**given, resume=True).steps == 10


def test_an_interrupt_before_the_first_step_says_how_to_resume(folder, tmp_path):
    def stop(report):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="the same command with --resume goes on from the beginning"):
        adapt(folder / "model", folder / "text.txt", tmp_path / "out", AdaptConfig(**OPTIONS), progress=stop)


def test_a_run_killed_before_its_record_is_written_can_be_resumed(tmp_path):
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


def test_a_folder_created_after_the_check_is_not_replaced(tmp_path):
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
