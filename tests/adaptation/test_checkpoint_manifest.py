"""A checkpoint that was damaged after it was written is never resumed from; an older whole one is, with a warning."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import adapt_tiny
import pytest

from saltlm import AdaptConfig, InputError, adapt, transfer, verify
from saltlm.adaptation.checkpoints import RunFolder
from saltlm.adaptation.manifest import MANIFEST, checkpoint_fault
from saltlm.config import TransferConfig

OPTIONS = {
    "phases": "embeddings:2,all:4",
    "seq_length": 32,
    "batch_size": 2,
    "device": "cpu",
    "save_steps": 2,
    "keep_checkpoints": 3,
    "heldout": 0.2,
    "eval_bytes": 500,
    "eval_steps": 10,
}


class Stop(Exception):
    pass


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> Path:
    """A folder with a model, a text, and a run that was stopped after step 5, with checkpoints of steps 2 and 4."""
    folder = tmp_path_factory.mktemp("stopped")
    adapt_tiny.transferred(folder / "model")
    adapt_tiny.text_file(folder / "text.txt", 30)

    def stop(report) -> None:
        if report.step == 5:
            raise Stop

    with pytest.raises(Stop):
        adapt(folder / "model", folder / "text.txt", folder / "run", AdaptConfig(**OPTIONS), progress=stop)
    assert sorted(path.name for path in (folder / "run" / "checkpoints").iterdir()) == ["step-2", "step-4"]
    return folder


@pytest.fixture
def out(stopped: Path, tmp_path: Path) -> Path:
    return shutil.copytree(stopped / "run", tmp_path / "run")


def change_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "optimizer.pt is missing": lambda c: (c / "optimizer.pt").unlink(),
    "optimizer.pt is truncated": lambda c: (c / "optimizer.pt").write_bytes((c / "optimizer.pt").read_bytes()[:-9]),
    "optimizer.pt of another step": lambda c: shutil.copy(c.parent / "step-2" / "optimizer.pt", c),
    "a bit of the weights": lambda c: flip(c / "model.safetensors"),
    "trainer_state.json of another step": lambda c: change_json(c / "trainer_state.json", global_step=7),
    "adapt.json of another step": lambda c: change_json(c / "adapt.json", step=3),
    "the random state is missing": lambda c: (c / "rng_state.pth").unlink(),
    "further weights": lambda c: shutil.copy(c / "model.safetensors", c / "model-2.safetensors"),
    "a link": lambda c: ((c / "scheduler.pt").unlink(), (c / "scheduler.pt").symlink_to("../step-2/scheduler.pt")),
    "no manifest": lambda c: (c / MANIFEST).unlink(),
    "a broken manifest": lambda c: (c / MANIFEST).write_text("[1"),
    "a manifest of another form": lambda c: (c / MANIFEST).write_text('{"step": 4, "files": {"a": 3}}'),
    "a whole checkpoint of another step": lambda c: (shutil.rmtree(c), shutil.copytree(c.parent / "step-2", c)),
}


def find(stopped: Path, out: Path) -> tuple[Path | None, RunFolder]:
    """The checkpoint that the run in a folder would resume from."""
    folder = RunFolder(out, main=True, barrier=lambda: None)
    identity = json.loads((out / "run.json").read_text())["identity"]
    return folder.find(identity), folder


def test_whole_checkpoints_are_found(stopped: Path, out: Path) -> None:
    checkpoint, folder = find(stopped, out)
    assert checkpoint == out / "checkpoints" / "step-4" and not folder.warnings
    content = json.loads((checkpoint / MANIFEST).read_text())
    assert content["step"] == 4 and content["trainer_step"] == 2  # the second step of the second phase
    assert content["files"].keys() == {path.name for path in checkpoint.iterdir()} - {MANIFEST}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_gives_way_to_an_older_one(stopped: Path, out: Path, kind: str) -> None:
    DAMAGE[kind](out / "checkpoints" / "step-4")
    checkpoint, folder = find(stopped, out)
    assert checkpoint == out / "checkpoints" / "step-2"
    assert "step-4 has" in folder.warnings[0] and "step-2 is used" in folder.warnings[0]


@pytest.mark.parametrize("kind", [kind for kind in DAMAGE if "another step" not in kind and kind != "a link"])
def test_without_a_whole_checkpoint_the_run_is_refused(stopped: Path, out: Path, kind: str) -> None:
    for name in ("step-2", "step-4"):
        DAMAGE[kind](out / "checkpoints" / name)
    before = sorted(out.rglob("*"))
    with pytest.raises(InputError, match=r"no checkpoint that is whole: step-4 has .*; step-2 has .*--force"):
        find(stopped, out)
    assert sorted(out.rglob("*")) == before


def test_a_run_goes_on_from_the_older_checkpoint_to_the_same_weights(stopped: Path, out: Path, tmp_path: Path) -> None:
    given = {
        "model": stopped / "model",
        "texts": stopped / "text.txt",
        "config": AdaptConfig(**OPTIONS),
        "resume": True,
    }
    whole = adapt(out=shutil.copytree(stopped / "run", tmp_path / "whole"), **given)
    DAMAGE["optimizer.pt of another step"](out / "checkpoints" / "step-4")
    done = adapt(out=out, **given)
    assert not whole.warnings and "step-4" in done.warnings[0]
    assert (out / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()
    assert done.heldout == whole.heldout


def test_the_best_checkpoint_of_early_stopping_must_be_whole(stopped: Path, out: Path) -> None:
    folder = RunFolder(out, main=True, barrier=lambda: None)
    latest = out / "checkpoints" / "step-4"
    change_json(latest / "adapt.json", best_step=2)
    from saltlm.adaptation.manifest import write_manifest

    write_manifest(latest, 4)
    record = json.loads((out / "run.json").read_text())
    identity = {**record["identity"], "config": {**record["identity"]["config"], "early_stop": 2}}
    change_json(out / "run.json", identity=identity)
    assert folder.find(identity) == latest
    flip(out / "checkpoints" / "step-2" / "model.safetensors")
    with pytest.raises(InputError, match="damaged best checkpoint"):
        folder.find(identity)


def test_a_manifest_names_no_file_outside(stopped: Path, out: Path) -> None:
    path = out / "checkpoints" / "step-4"
    content = json.loads((path / MANIFEST).read_text())
    change_json(path / MANIFEST, files={**content["files"], "../../run.json": content["files"]["adapt.json"]})
    assert "run.json" in (checkpoint_fault(path, 4) or "")


def test_a_verification_of_an_adapted_folder_compares_no_rows(untied, tmp_path: Path) -> None:
    model = transfer(untied.source, untied.target, out=tmp_path / "model", config=TransferConfig(method="zero")).out
    text = adapt_tiny.text_file(tmp_path / "text.txt", 20)
    options = {"seq_length": 32, "batch_size": 2, "device": "cpu", "phases": "embeddings:1"}
    done = adapt(model, text, tmp_path / "adapted", AdaptConfig(**options))
    checks = {check.name: check for check in verify(done.out).checks}
    assert checks["record"].result == checks["files"].result == "passed", checks
    assert {checks[name].result for name in ("copied rows", "recipes", "solved again", "body")} == {"not checked"}
    assert "trained after the transfer" in checks["body"].detail
    (done.out / "README.md").write_text("other")
    assert verify(done.out).failed
