"""What follows each step of a training: its metrics, evaluations, checkpoints, and the end of the run."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from ..errors import InputError
from .metrics import diverged

if TYPE_CHECKING:
    from .training import AdaptTrainer


class AfterStep(TrainerCallback):
    """Metrics, evaluations, checkpoints and ends, after each step."""

    def __init__(self, trainer: AdaptTrainer) -> None:
        """Args: the trainer whose steps are watched."""
        self.trainer = trainer

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> Any:
        """Called with the step's losses."""
        trainer, run = self.trainer, self.trainer.run
        state.log_history = []  # metrics.jsonl keeps it; here it would grow with every checkpoint
        if not logs or "loss" not in logs:
            return control
        step, config = trainer.step_done, run.config
        line: dict[str, Any] = {"step": step, "phase": trainer.phase.name, "loss": trainer.step_loss}
        line["learning_rates"] = trainer.step_rates
        line["gradient_norm"] = self._norm(logs, step, fp16=args.fp16)
        line["pass"] = run.streams[0].passes
        run.recorder.step(line, tokens=trainer.step_tokens, size=trainer.step_bytes)
        last = state.global_step == trainer.phase.steps
        every = config.eval_steps or max(1, run.steps // 10)
        found = self._evaluate(step) if last or step % every == 0 else {}
        run.recorder.write(found, run.folder.last())
        run.stopped = trainer.must_stop
        control.should_save = last or step % config.save_steps == 0 or run.stopped
        self._early_stop(found.get("heldout_bits_per_byte"), step, control)
        if run.stopped or run.ended:
            control.should_training_stop = control.should_save = True
        return control

    def _norm(self, logs: dict[str, Any], step: int, *, fp16: bool) -> float | None:
        """The gradient's norm; ``None`` where fp16 has overflowed: such a step is left out, and the scale lowered."""
        norm = float(logs.get("grad_norm") or 0.0)
        if math.isfinite(norm):
            return norm
        if fp16:
            return None
        # The loss was finite, but the weights are spoilt: no checkpoint may hold them.
        raise diverged(step, f"the gradient's norm is {norm}", self.trainer.run.folder.last())

    def _evaluate(self, step: int) -> dict[str, float]:
        run = self.trainer.run
        try:
            return run.evaluate()
        except InputError as error:  # of weights that have moved: text and tokenizer were good enough at step 0
            raise diverged(
                step, f"held-out text cannot be scored: {str(error).split(';')[0]}", run.folder.last()
            ) from error

    def _early_stop(self, value: float | None, step: int, control: Any) -> None:
        run = self.trainer.run
        if value is None or run.config.early_stop is None or self.trainer.teacher is not None:
            return
        if run.best is None or value < run.best:
            run.best, run.best_step, run.worse = value, step, 0
            control.should_save = True
        else:
            run.worse += 1
            run.ended = run.worse >= run.config.early_stop
