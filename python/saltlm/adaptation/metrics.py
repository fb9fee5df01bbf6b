"""What can be seen while a model is trained: metrics.jsonl, TensorBoard, the progress report, a picture of the curve."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import math
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..errors import BackendError
from .checkpoints import checkpoint_errors

# A mean loss over so many steps above this multiple of what guessing costs is no training any more.
DIVERGED_STEPS, DIVERGED_TIMES = 10, 2.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdaptProgress:
    """Where a run stands after a step.

    Attributes:
        step: steps done.
        steps: steps of the whole run.
        phase: name of the phase.
        loss: mean cost of a predicted token of this step, in nats; ``None`` before the first step.
        bits_per_byte: of the training text of this step; ``None`` before the first step.
        heldout: newest bits per byte of the held-out text in the target language, if any.
        source: the same in the source language.
        tokens_per_second: predicted tokens a second, lately.
        seconds_left: estimate, evaluations and checkpoints left out.
    """

    step: int
    steps: int
    phase: str
    loss: float | None = None
    bits_per_byte: float | None = None
    heldout: float | None = None
    source: float | None = None
    tokens_per_second: float | None = None
    seconds_left: float | None = None


class Recorder:
    """Writes a line a step and keeps what the run needs of the lines before."""

    def __init__(
        self, path: Path, *, steps: int, rows: int, writes: bool, progress: Callable[[AdaptProgress], None] | None,
        lines: Sequence[dict[str, Any]] = (),
    ) -> None:  # fmt: skip
        """Args: metrics.jsonl, steps of the run, rows of the vocabulary, whether this process writes, lines kept so far."""
        self.path, self.steps, self.writes, self.progress = path, steps, writes, progress
        self.uniform = math.log(max(rows, 2))
        self.lines = list(lines)
        self.heldout: float | None = None
        self.source: float | None = None
        for line in self.lines:
            self.heldout = line.get("heldout_bits_per_byte", self.heldout)
            self.source = line.get("source_bits_per_byte", self.source)
        self.tokens = max((line.get("tokens", 0) for line in self.lines), default=0)
        self.bytes = max((line.get("bytes", 0.0) for line in self.lines), default=0.0)
        self._firsts: dict[str, float] = {}
        for line in self.lines:
            self._note(line)
        self._since = time.perf_counter()
        self._pace: float | None = None
        self._file: Any = None
        self._board: Any = None

    def step(self, line: dict[str, Any], *, tokens: int, size: float) -> None:
        """Take in a finished step: what the line says, predicted tokens and bytes of text behind them."""
        now = time.perf_counter()
        spent = now - self._since
        self.tokens += tokens
        self.bytes += size
        pace = tokens / max(spent, 1e-9)
        self._pace = pace if self._pace is None else 0.9 * self._pace + 0.1 * pace
        self._last = {
            **line, "bits_per_byte": _bits(line["loss"] * tokens, size), "tokens": self.tokens, "bytes": self.bytes,
            "seconds": round(spent, 4), "tokens_per_second": round(pace, 1),
        }  # fmt: skip
        self._left = (self.steps - line["step"]) * tokens / self._pace

    def write(self, extra: dict[str, Any] | None = None, last: Path | None = None) -> None:
        """Write the step's line with what an evaluation has added, and report.

        Raises:
            InputError: the disk is full; names the last checkpoint.
            BackendError: the file cannot be written otherwise.
        """
        line = {**self._last, **(extra or {})}
        self.heldout = line.get("heldout_bits_per_byte", self.heldout)
        self.source = line.get("source_bits_per_byte", self.source)
        self.lines.append(line)
        self._note(line)
        if self.writes:
            with checkpoint_errors(self.path.parent, last):
                self._append(line)
        if self.progress and self.writes:
            self.progress(
                AdaptProgress(
                    step=line["step"],
                    steps=self.steps,
                    phase=line["phase"],
                    loss=line.get("loss"),
                    bits_per_byte=line.get("bits_per_byte"),
                    heldout=self.heldout,
                    source=self.source,
                    tokens_per_second=self._pace,
                    seconds_left=self._left,
                )
            )
        self._since = time.perf_counter()

    def begin(self, phase: str, extra: dict[str, Any]) -> None:
        """Write the line of step 0."""
        self._last, self._left = {"step": 0, "phase": phase}, None
        self.write(extra)

    def restart_clock(self) -> None:
        """Do not count the time before now to the next step."""
        self._since = time.perf_counter()

    def check(self, loss: float, step: int, phase: str, last: Path | None) -> None:
        """Stop a run that has diverged, before its step spoils the weights.

        Raises:
            BackendError: the loss is not finite, or far above that of guessing; names the last good checkpoint.
        """
        if not math.isfinite(loss):
            raise diverged(step, f"the loss is {loss}", last)
        lately = self.lines[1 - DIVERGED_STEPS :]
        recent = [*(line["loss"] for line in lately if "loss" in line and line["phase"] == phase), loss]
        limit = DIVERGED_TIMES * max(self.uniform, self._firsts.get(phase, 0.0))
        mean = sum(recent) / len(recent)
        if len(recent) == DIVERGED_STEPS and mean > limit:
            raise diverged(
                step,
                f"a mean loss of {mean:.2f} over {DIVERGED_STEPS} steps, where guessing costs {self.uniform:.2f}",
                last,
            )

    def _note(self, line: dict[str, Any]) -> None:
        if "loss" in line:
            self._firsts.setdefault(line["phase"], line["loss"])

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files."""
        for file in (self._file, self._board):
            if file is not None:
                # Each line is on its way already; a full disk would be told of a second time, in place of the first.
                with contextlib.suppress(OSError):
                    file.close()
        self._file = self._board = None

    def _append(self, line: dict[str, Any]) -> None:
        if self._file is None:
            self._file = self.path.open("a", encoding="utf-8")
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()
        self._to_board(line)

    def _to_board(self, line: dict[str, Any]) -> None:
        if importlib.util.find_spec("tensorboard") is None:
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # tensorboard's own dependencies are being deprecated under it
            if self._board is None:
                from torch.utils.tensorboard import SummaryWriter

                # What lies beyond the step is what a killed run had got to: TensorBoard is told to forget it.
                self._board = SummaryWriter(str(self.path.parent / "tensorboard"), purge_step=line["step"])
            for name, value in line.items():
                if name not in ("step", "phase", "tokens", "bytes", "seconds") and isinstance(value, float):
                    self._board.add_scalar(name, value, line["step"])


def diverged(step: int, found: str, last: Path | None) -> BackendError:
    """The end of a run that trains no more: what was found after which step, and the checkpoint that is still good."""
    where = f"the last good checkpoint is {last}" if last else "no checkpoint had been written"
    return BackendError(f"step {step}: {found}; {where}; start over with lower learning rates or a longer warm-up")


def _bits(nats: float, size: float) -> float | None:
    return nats / math.log(2) / size if size > 0 else None


def draw_curve(lines: Sequence[dict[str, Any]], path: Path, *, original: float | None = None) -> bool:
    """A picture of a run: bits per byte by step, phases shaded; ``False`` without matplotlib.

    Args:
        lines: of metrics.jsonl.
        path: PNG file to write.
        original: bits per byte of the source model with its own tokenizer, drawn as a line to get below.
    """
    if importlib.util.find_spec("matplotlib") is None:
        return False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 4.5), layout="constrained")
        axes = figure.subplots()
        trained = [(line["step"], line["bits_per_byte"]) for line in lines if line.get("bits_per_byte") is not None]
        if trained:
            steps, values = zip(*trained, strict=True)
            axes.plot(steps, values, color="0.75", linewidth=0.8, label="training text, step by step")
        for key, label, color in (
            ("heldout_bits_per_byte", "held-out text, target language", "tab:blue"),
            ("source_bits_per_byte", "held-out text, source language", "tab:orange"),
        ):
            points = [(line["step"], line[key]) for line in lines if key in line]
            if points:
                axes.plot(*zip(*points, strict=True), color=color, marker="o", markersize=3, label=label)
        if original is not None:
            axes.axhline(original, color="tab:green", linestyle="--", label="source model, its own tokenizer")
        _phases(axes, lines)
        axes.set_xlabel("step")
        axes.set_ylabel("bits per byte")
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
        axes.grid(alpha=0.3)
        figure.savefig(path, dpi=120)
    return True


def _phases(axes: Any, lines: Sequence[dict[str, Any]]) -> None:
    starts: list[tuple[str, int]] = []
    for line in lines:
        if not starts or starts[-1][0] != line["phase"]:
            starts.append((line["phase"], max(line["step"] - 1, 0)))
    for name, step in starts if len(starts) > 1 else []:
        axes.axvline(step, color="0.6", linewidth=0.8)
        axes.text(step, 1.0, f" {name}", transform=axes.get_xaxis_transform(), va="bottom", fontsize="small")
