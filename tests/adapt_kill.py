"""Runs adaptations in forked children, to be killed: imports are paid once. Prints one JSON object.

Usage: adapt_kill.py FOLDER OUT uninterrupted|kill|signal
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import matplotlib.figure  # noqa: F401 - paid for before the forks, like the next two
import torch
import torch.utils.tensorboard
import transformers.trainer  # noqa: F401

from saltlm.adaptation.checkpoints import read_metrics
from saltlm.adaptation.config import AdaptConfig
from saltlm.adaptation.run import adapt

OPTIONS = {
    "phases": "rows:3,embeddings:2,all:5", "seq_length": 32, "batch_size": 2, "accumulate": 2, "device": "cpu", "heldout": 0.2,
    "eval_bytes": 500, "eval_steps": 4, "save_steps": 2, "learning_rate": 1e-3, "shuffle_documents": 8, "dtype": "float32",
}  # fmt: skip


def run(folder: Path, out: Path, pause: float = 0.0) -> None:
    torch.set_num_threads(1)
    adapt(
        folder / "model", folder / "text.txt", out, AdaptConfig(**OPTIONS), replay={folder / "english.txt": 0.25}, resume=True,
        progress=lambda report: time.sleep(pause),
    )  # fmt: skip


def child(folder: Path, out: Path, pause: float = 0.0) -> int:
    process = os.fork()
    if process == 0:
        code = 1
        try:
            run(folder, out, pause)
            code = 0
        except KeyboardInterrupt as stopped:
            (out / "stopped.txt").write_text(str(stopped))
            code = 130
        finally:
            os._exit(code)
    return process


def steps(out: Path) -> int:
    return len(read_metrics(out / "metrics.jsonl"))


def kill(process: int, out: Path, when, number: int) -> int | None:
    """Wait for a moment, then kill; the exit code where the child was quicker."""
    while not when():
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    os.kill(process, number)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def moments(out: Path):
    """Moments to be killed at: after lines of metrics, and within the writing of checkpoints and of the last folder."""
    writing = lambda pattern, place: lambda: any(place.glob(pattern))  # noqa: E731
    for step in (2, 5):
        yield writing(f".step-{step}.writing/*/*", out / "checkpoints")
    yield lambda: steps(out) >= 8
    yield writing(".step-8.writing/*/optimizer.pt", out / "checkpoints")
    yield writing(f".{out.name}.saltlm-*/*.safetensors", out.parent)


def main(folder: Path, out: Path, how: str) -> None:
    killed = []
    if how == "kill":
        for when in moments(out):
            code = kill(child(folder, out, 0.02), out, when, signal.SIGKILL)
            whole = not (out / "config.json").exists() or (out / "model.safetensors").exists()
            killed.append([code, steps(out), whole])
    if how == "signal":
        code = kill(child(folder, out, 0.05), out, lambda: steps(out) >= 4, signal.SIGTERM)
        killed.append([code, steps(out), (out / "stopped.txt").read_text()])
        (out / "stopped.txt").unlink()
    status = os.waitpid(child(folder, out), 0)[1]
    print(json.dumps({"code": os.waitstatus_to_exitcode(status), "killed": killed}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
