"""Reports of a run: metrics.jsonl, TensorBoard and the progress callback."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from ..environment import is_installed
from ..errors import BackendError
from .checkpoints import checkpoint_errors

# A run has diverged when its mean loss over DIVERGED_STEPS steps is above DIVERGED_FACTOR times the larger of two losses: that
# of the uniform distribution over the vocabulary, and that of the phase's first step.
DIVERGED_STEPS, DIVERGED_FACTOR = 10, 2.0
HELDOUT, SOURCE = "heldout_bits_per_byte", "source_bits_per_byte"
# Not drawn by TensorBoard: these rise steadily or are no figures.
_NOT_DRAWN = ("step", "phase", "tokens", "bytes", "seconds")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdaptProgress:
    """The state of a run after a step.

    Attributes:
        step: number of finished steps, in [0, steps].
        steps: number of steps of all phases.
        phase: name of the phase.
        loss: mean cross-entropy of the step's predicted tokens, in nats per token (in row distillation: the relative error
            of the hidden states); ``None`` before the first step.
        bits_per_byte: of the step's training text; ``None`` before the first step.
        heldout: the newest bits per byte of the held-out text in the target language; ``None`` without such text.
        source: the same for the source language.
        tokens_per_second: predicted tokens per second, a moving average over steps; ``None`` before the first step.
        seconds_left: estimated seconds of the remaining steps, without evaluations and checkpoints; ``None`` before the
            first step.
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
    """Writes one line of metrics per step, reports the progress, and recognizes a run that has diverged.

    Attributes:
        lines: the metrics so far, one dictionary per line of metrics.jsonl.
        tokens: number of tokens predicted so far.
        bytes: bytes of text of these tokens.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        steps: int,
        rows: int,
        writes: bool,
        progress: Callable[[AdaptProgress], None] | None,
        lines: Sequence[dict[str, Any]] = (),
    ) -> None:
        """Create a recorder; files are opened with the first line.

        Args:
            path: metrics.jsonl; TensorBoard's files go into ``tensorboard`` beside it. ``None`` writes no files.
            steps: number of steps of all phases.
            rows: number of rows of the vocabulary.
            writes: whether this process writes the files and calls ``progress``.
            progress: called after each step; ``None`` for no callback.
            lines: the lines that metrics.jsonl holds already, if the run was resumed.
        """
        self.path, self.steps, self.writes, self.progress = path, steps, writes, progress
        self.uniform_loss = math.log(max(rows, 2))
        self.lines = list(lines)
        self.heldout: float | None = None
        self.source: float | None = None
        self.tokens = max((line.get("tokens", 0) for line in self.lines), default=0)
        self.bytes = max((line.get("bytes", 0.0) for line in self.lines), default=0.0)
        self._first_losses: dict[str, float] = {}  # by phase
        for line in self.lines:
            self._update(line)
        self._step_start = time.perf_counter()
        self._tokens_per_second: float | None = None
        self._line: dict[str, Any] = {}
        self._seconds_left: float | None = None
        self._file: TextIO | None = None
        self._tensorboard: Any = None

    def step(self, line: dict[str, Any], *, tokens: int, size: float) -> None:
        """Take the metrics of a finished step; :meth:`write` writes them.

        Args:
            line: ``step``, ``phase``, ``loss`` and further metrics.
            tokens: number of tokens predicted in the step.
            size: bytes of text of these tokens; 0 if not known.
        """
        seconds = time.perf_counter() - self._step_start
        self.tokens += tokens
        self.bytes += size
        rate = tokens / max(seconds, 1e-9)
        average = rate if self._tokens_per_second is None else 0.9 * self._tokens_per_second + 0.1 * rate
        self._tokens_per_second = average
        self._line = {
            **line,
            "bits_per_byte": _bits_per_byte(line["loss"] * tokens, size),
            "tokens": self.tokens,
            "bytes": self.bytes,
            "seconds": round(seconds, 4),
            "tokens_per_second": round(rate, 1),
        }
        self._seconds_left = (self.steps - line["step"]) * tokens / average

    def write(self, extra: Mapping[str, Any] | None = None, last: Path | None = None) -> None:
        """Write the line of the step that :meth:`step` was given, and report the progress.

        Args:
            extra: metrics of an evaluation after the step.
            last: the last checkpoint, for messages.

        Raises:
            InputError: the disk is full; the message names the last checkpoint.
            BackendError: another failure of the file system.
        """
        line = {**self._line, **(extra or {})}
        self.lines.append(line)
        self._update(line)
        if self.writes and self.path is not None:
            with checkpoint_errors(self.path.parent, last):
                self._append(line, self.path)
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
                    tokens_per_second=self._tokens_per_second,
                    seconds_left=self._seconds_left,
                )
            )
        self.restart_clock()

    def begin(self, phase: str, extra: Mapping[str, Any]) -> None:
        """Write the line of step 0.

        Args:
            phase: name of the first phase.
            extra: metrics of the evaluation before the first step.
        """
        self._line, self._seconds_left = {"step": 0, "phase": phase}, None
        self.write(extra)

    def restart_clock(self) -> None:
        """Start the time of the next step now."""
        self._step_start = time.perf_counter()

    def check(self, loss: float, step: int, phase: str, last: Path | None) -> None:
        """Stop a run that has diverged, before the step changes the weights.

        Args:
            loss: of the step.
            step: number of the step, from 1.
            phase: name of the phase.
            last: the last checkpoint, for the message.

        Raises:
            BackendError: the loss is not finite, or the mean loss of the last steps is far above that of a uniform guess.
        """
        if not math.isfinite(loss):
            raise divergence_error(step, f"the loss is {loss}", last)
        recent = [
            line["loss"] for line in self.lines[1 - DIVERGED_STEPS :] if "loss" in line and line["phase"] == phase
        ]
        losses = [*recent, loss]
        mean = sum(losses) / len(losses)
        limit = DIVERGED_FACTOR * max(self.uniform_loss, self._first_losses.get(phase, 0.0))
        if len(losses) == DIVERGED_STEPS and mean > limit:
            raise divergence_error(
                step,
                f"a mean loss of {mean:.2f} over {DIVERGED_STEPS} steps, where guessing costs {self.uniform_loss:.2f}",
                last,
            )

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files."""
        for file in (self._file, self._tensorboard):
            if file is not None:
                # Every line has been flushed. On a full disk closing fails again, and that error would replace the first one.
                with contextlib.suppress(OSError):
                    file.close()
        self._file = self._tensorboard = None

    def _update(self, line: Mapping[str, Any]) -> None:
        """Remember the figures of a line that later lines are compared with or reported with."""
        self.heldout = line.get(HELDOUT, self.heldout)
        self.source = line.get(SOURCE, self.source)
        if "loss" in line:
            self._first_losses.setdefault(line["phase"], line["loss"])

    def _append(self, line: Mapping[str, Any], path: Path) -> None:
        if self._file is None:
            self._file = path.open("a", encoding="utf-8")
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()
        if is_installed("tensorboard"):
            self._append_to_tensorboard(line, path.parent / "tensorboard")

    def _append_to_tensorboard(self, line: Mapping[str, Any], folder: Path) -> None:
        with _ignored_warnings():  # of deprecations in the packages that TensorBoard uses
            if self._tensorboard is None:
                from torch.utils.tensorboard import SummaryWriter

                # A killed run may have written events beyond the checkpoint: TensorBoard drops events from this step on.
                self._tensorboard = SummaryWriter(str(folder), purge_step=line["step"])
            for name, value in line.items():
                if name not in _NOT_DRAWN and isinstance(value, float):
                    self._tensorboard.add_scalar(name, value, line["step"])


def divergence_error(step: int, symptom: str, last: Path | None) -> BackendError:
    """The error that ends a run whose training has failed.

    Args:
        step: number of the step.
        symptom: what was observed.
        last: the last checkpoint, which holds weights from before.
    """
    where = f"the last good checkpoint is {last}" if last else "no checkpoint had been written"
    return BackendError(f"step {step}: {symptom}; {where}; start over with lower learning rates or a longer warm-up")


def _bits_per_byte(nats: float, size: float) -> float | None:
    return nats / math.log(2) / size if size > 0 else None


@contextlib.contextmanager
def _ignored_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
