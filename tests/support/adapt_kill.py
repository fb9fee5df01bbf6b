"""Runs adaptations in forked child processes and kills them; the parent imports the libraries once. Prints one JSON object.

Usage: adapt_kill.py FOLDER OUT uninterrupted|kill|signal
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import matplotlib.figure  # noqa: F401 - imported before the forks, like the next two
import torch
import torch.utils.tensorboard
import transformers.trainer  # noqa: F401

from saltlm.adaptation.checkpoints import read_metrics
from saltlm.adaptation.config import AdaptConfig
from saltlm.adaptation.run import adapt

OPTIONS = {
    "phases": "rows:3,embeddings:2,all:5",
    "seq_length": 32,
    "batch_size": 2,
    "accumulate": 2,
    "device": "cpu",
    "heldout": 0.2,
    "eval_bytes": 500,
    "eval_steps": 4,
    "save_steps": 2,
    "learning_rate": 1e-3,
    "shuffle_documents": 8,
    "dtype": "float32",
}


# Audit events of every operation on a file that is given by its name.
EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.listdir", "os.scandir")


def run(folder: Path, out: Path, after_line: Callable[[], None]) -> None:
    torch.set_num_threads(1)
    adapt(
        folder / "model",
        folder / "text.txt",
        out,
        AdaptConfig(**OPTIONS),
        replay={folder / "english.txt": 0.25},
        resume=True,
        progress=lambda report: after_line(),
    )


def child(folder: Path, out: Path, when: Callable[[], bool] = lambda: False, number: int = 0) -> int:
    """Run an adaptation in a child process, which sends itself a signal the first time that ``when`` returns ``True``.

    ``when`` is called after each line of metrics and before every operation on a file that is given by its name.

    Returns:
        The exit code of the child.
    """
    process = os.fork()
    if process:
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    code, asked = 1, False

    def ask() -> None:
        nonlocal asked
        if not asked:
            asked = True  # when() opens files itself
            if when():
                os.kill(os.getpid(), number)
            else:
                asked = False

    try:
        sys.addaudithook(lambda event, arguments: ask() if event in EVENTS else None)
        run(folder, out, ask)
        code = 0
    except KeyboardInterrupt as stopped:
        (out / "stopped.txt").write_text(str(stopped))
        code = 130
    finally:
        os._exit(code)


def steps(out: Path) -> int:
    return len(read_metrics(out / "metrics.jsonl"))


def moments(out: Path) -> Iterator[Callable[[], bool]]:
    """Conditions at which the run is killed: while it writes a checkpoint, after a step, and while it writes the model."""
    writing = lambda pattern, folder: lambda: any(folder.glob(pattern))  # noqa: E731
    for step in (2, 5):
        yield writing(f".step-{step}.writing/*/*", out / "checkpoints")
    yield lambda: steps(out) >= 8
    yield writing(".step-8.writing/*/optimizer.pt", out / "checkpoints")
    yield writing(f".{out.name}.saltlm-*/*.safetensors", out.parent)


def main(folder: Path, out: Path, how: str) -> None:
    killed = []
    if how == "kill":
        for when in moments(out):
            code = child(folder, out, when, signal.SIGKILL)
            whole = not (out / "config.json").exists() or (out / "model.safetensors").exists()
            killed.append([code, steps(out), whole])
    if how == "signal":
        code = child(folder, out, lambda: steps(out) >= 4, signal.SIGTERM)
        killed.append([code, steps(out), (out / "stopped.txt").read_text()])
        (out / "stopped.txt").unlink()
    print(json.dumps({"code": child(folder, out), "killed": killed}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
