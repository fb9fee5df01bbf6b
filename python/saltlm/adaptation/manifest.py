"""The manifest of a checkpoint: step, and size and digest of every file, so that a damaged checkpoint is noticed."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

from ..errors import first_line
from ..files.hashing import sampled_digest
from ..files.json_files import read_json, write_json_whole

MANIFEST, FORMAT = "manifest.json", 1
STATE = "adapt.json"  # the state of the run, see saltlm.adaptation.checkpoints
TRAINER_STATE = "trainer_state.json"  # as Trainer names it


def write_manifest(checkpoint: Path, step: int) -> None:
    """Write the manifest of a checkpoint whose other files are complete.

    A file of up to 1 GiB is read whole, a larger one by a sample of 1/64 of its bytes: at most the larger of 1 GiB and 1/64 of
    its size for each file, about a second for a GiB. A resume reads as much again.

    Args:
        checkpoint: the folder.
        step: number of finished steps of the run.

    Raises:
        OSError: a file cannot be read, or the manifest cannot be written.
    """
    names = sorted(path.relative_to(checkpoint).as_posix() for path in checkpoint.rglob("*") if path.is_file())
    files = {
        name: {"bytes": (checkpoint / name).stat().st_size, "sha256": sampled_digest(checkpoint / name)}
        for name in names
        if name != MANIFEST
    }
    trainer_step = None
    if TRAINER_STATE in files:
        trainer_step = read_json(checkpoint / TRAINER_STATE)["global_step"]
    content = {"format": FORMAT, "step": step, "trainer_step": trainer_step, "files": files}
    write_json_whole(checkpoint / MANIFEST, content)


def checkpoint_fault(checkpoint: Path, step: int) -> str | None:
    """Why a checkpoint must not be used; ``None`` for a whole one.

    Args:
        checkpoint: the folder.
        step: number of finished steps, by the folder's name.

    Returns:
        The first fault: the manifest is missing or broken, a file is missing or has another size or digest, or a step differs.
    """
    if not _is_regular(checkpoint / MANIFEST):
        return f"no {MANIFEST} (an earlier version of saltlm writes none)"
    try:
        content = read_json(checkpoint / MANIFEST)
        stated, files = content["step"], {str(name): dict(entry) for name, entry in content["files"].items()}
        fault = None if stated == step else f"a {MANIFEST} of step {stated!r:.20}"
        fault = fault or next((fault for name in files if (fault := _file_fault(checkpoint, name, files[name]))), None)
        return fault or _added_file(checkpoint, files) or _step_fault(checkpoint, step, content, files)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"a broken file ({first_line(error)})"


def _file_fault(checkpoint: Path, name: str, entry: dict[str, Any]) -> str | None:
    path = checkpoint / name
    if Path(name).is_absolute() or ".." in Path(name).parts or not _is_regular(path):
        return f"no {name!r:.80}"
    size = path.stat().st_size
    if size != entry["bytes"]:
        return f"{name!r:.80} of {size:,} bytes, {entry['bytes']:,} by the manifest"
    if sampled_digest(path) != entry["sha256"]:
        return f"{name!r:.80} with another digest than in the manifest"
    return None


def _added_file(checkpoint: Path, files: dict[str, dict[str, Any]]) -> str | None:
    """A file that the manifest does not name: weights in it would be loaded. Hidden files do not count."""
    names = {path.relative_to(checkpoint).as_posix() for path in checkpoint.rglob("*") if not path.is_dir()}
    added = sorted(name for name in names - files.keys() - {MANIFEST} if not Path(name).name.startswith("."))
    return f"{added[0]!r:.80}, which the manifest does not name" if added else None


def _step_fault(checkpoint: Path, step: int, content: dict[str, Any], files: dict[str, dict[str, Any]]) -> str | None:
    """Whether the states inside the checkpoint are of the step; their digests are right by now."""
    if STATE not in files:
        return f"a {MANIFEST} without {STATE}"
    state = read_json(checkpoint / STATE)
    if state["step"] != step:
        return f"a {STATE} of step {state['step']!r:.20}"
    if content.get("trainer_step") is None:
        return None
    if TRAINER_STATE not in files:
        return f"a {MANIFEST} without {TRAINER_STATE}"
    trainer_step = read_json(checkpoint / TRAINER_STATE)["global_step"]
    if trainer_step != content["trainer_step"]:
        return f"a {TRAINER_STATE} of step {trainer_step!r:.20}"
    return None


def _is_regular(path: Path) -> bool:
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except OSError:
        return False
