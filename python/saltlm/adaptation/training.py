"""The training steps of one phase, by transformers' Trainer with several of its methods overridden."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import SequentialSampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from ..errors import InputError
from ..protocols import LanguageModel
from .checkpoints import CheckpointFolder
from .chunked_loss import ChunkedLM
from .config import NEW_ROWS_ONLY, AdaptConfig, Phase
from .distillation import AlignedTexts, Teacher, collate_aligned
from .metrics import HELDOUT, Recorder, divergence_error
from .optimizer import parameter_groups, rate_factor
from .packing import Mixture, Stream, collate
from .row_mask import RowMask
from .sharding import fsdp_modules, full_optimizer_state, full_state, load_full_optimizer_state, load_weights

# Names of other libraries on which this module relies. A release that changes one of them changes the training.
# Overridden methods of Trainer, all documented: create_optimizer, create_scheduler, compute_loss, training_step, save_model.
# Overridden private methods of Trainer:
#   _get_train_sampler               the blocks keep their order, so that a resumed run continues at the right block
#   _save_checkpoint                 a checkpoint is written whole or not at all
#   _save                            the weights have the names of the model class
#   _save_optimizer_and_scheduler    shards of the optimizer state are gathered
#   _load_optimizer_and_scheduler    ... and distributed
#   _load_from_checkpoint            the weights of a sharded model are loaded
# Called or set: Trainer._created_lr_scheduler (the schedule advances by it), Trainer.model_accepts_loss_kwargs,
# TrainingArguments._n_gpu (in processes.py), Accelerator.prepare_model, AcceleratedOptimizer.optimizer, and the marks
# _original_forward and _is_accelerate_prepared of a prepared model (in chunked_loss.py).
# Files in a checkpoint, as Trainer names them:
OPTIMIZER, SCHEDULER, ARGUMENTS = "optimizer.pt", "scheduler.pt", "training_args.bin"
Evaluate = Callable[[], dict[str, float]]


@dataclasses.dataclass(kw_only=True)
class Run:
    """The state that the phases of one run share.

    Attributes:
        config: the options.
        model: a causal LM.
        chunked: its chunked loss.
        streams: of blocks: the training text, then each replayed text.
        shares: share of all blocks that each stream fills, sum 1.
        folder: where checkpoints are written.
        recorder: takes the metrics.
        evaluate: measures bits per byte of the held-out text, by name of the metric; an empty result without such text.
        phases: in training order.
        row_mask: makes the mask of the new rows with a weight decay; called in phases that train new rows alone.
        distillation: makes the teacher and a number of texts; called in the phase ``distill``.
        first_position: position id of the first token of a text.
        phase_index: index of the current phase.
        best: lowest bits per byte of held-out text so far, used for early stopping; ``None`` before the first evaluation.
        best_step: the step of ``best``.
        worse: number of evaluations since ``best``.
        ended: whether early stopping has ended the run.
        stop: whether this process was asked to write a checkpoint and end after the current step, as signals ask.
        stopped: whether all processes have agreed to do so.
    """

    config: AdaptConfig
    model: LanguageModel
    chunked: ChunkedLM
    streams: Sequence[Stream]
    shares: Sequence[float]
    folder: CheckpointFolder
    recorder: Recorder
    evaluate: Evaluate
    phases: Sequence[Phase]
    row_mask: Callable[[float], RowMask]
    distillation: Callable[[int], tuple[Teacher, AlignedTexts]]
    first_position: int = 0
    phase_index: int = 0
    best: float | None = None
    best_step: int | None = None
    worse: int = 0
    ended: bool = False
    stop: bool = False
    stopped: bool = False

    @property
    def phase(self) -> Phase:
        """The current phase."""
        return self.phases[self.phase_index]

    @property
    def steps(self) -> int:
        """Number of steps of all phases."""
        return sum(phase.steps for phase in self.phases)

    def state(self, step: int) -> dict[str, Any]:
        """What a checkpoint holds in addition to Trainer's own files, as plain JSON values.

        Args:
            step: number of finished steps.
        """
        return {
            "phase": self.phase_index,
            "step": step,
            "best": self.best,
            "best_step": self.best_step,
            "worse": self.worse,
            "ended": self.ended,
            "marks": [stream.marks for stream in self.streams],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over the :meth:`state` of a checkpoint, except the marks, which the streams were opened with."""
        self.phase_index = state.get("phase", 0)
        self.best, self.best_step = state.get("best"), state.get("best_step")
        self.worse, self.ended = state.get("worse", 0), state.get("ended", False)


class AdaptTrainer(Trainer):
    """Trainer with row masks, learning rates by group, whole checkpoints, and losses summed over all processes.

    Attributes:
        run: the run.
        phase: the phase that is trained.
        teacher: the source model in row distillation, else ``None``.
        row_mask: the mask in a phase that trains new rows alone, else ``None``.
        sharded: whether the model is sharded over the processes.
        step_loss: loss of the last finished step, over all processes.
        step_bytes: bytes of text of its predicted tokens.
        step_tokens: number of its predicted tokens.
        step_rates: its learning rates by name of the parameter group.
    """

    # Set by Trainer; accelerate wraps both.
    optimizer: Any
    lr_scheduler: Any

    def __init__(
        self,
        run: Run,
        dataset: Mixture | AlignedTexts,
        arguments: TrainingArguments,
        teacher: Teacher | None = None,
    ) -> None:
        """Create the trainer of a run's current phase.

        Args:
            run: the run.
            dataset: the blocks of the phase, or its texts in row distillation.
            arguments: Trainer's options.
            teacher: the source model in row distillation.
        """
        self.run, self.phase, self.teacher = run, run.phase, teacher
        self.row_mask: RowMask | None = None
        # Sums over the batches of a step: floats at first, then tensors on the device.
        self._loss_sum: Any = 0.0
        self._bytes_sum: Any = 0.0
        self._items: Any = 0
        self._stop_agreed = False
        super().__init__(
            model=run.model,
            args=arguments,
            train_dataset=dataset,
            callbacks=[AfterStep(self)],
            data_collator=collate if teacher is None else collate_aligned,
        )
        # Trainer would infer it from the signature of the forward; the chunked forward takes num_items_in_batch.
        self.model_accepts_loss_kwargs = True
        self.remove_callback(PrinterCallback)
        self.sharded = bool(fsdp_modules(run.model))
        if self.sharded:  # FSDP2 distributes the model already, so accelerate must not wrap it in DDP
            prepare = self.accelerator.prepare_model
            self.accelerator.prepare_model = functools.partial(_prepare_sharded, prepare)

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        # Streams shuffle the documents, in an order that every process can compute for any block.
        return SequentialSampler(self.train_dataset if train_dataset is None else train_dataset)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """AdamW over the parameter groups of the phase."""
        if self.optimizer is None:
            config = self.run.config
            groups = parameter_groups(self.model if model is None else model, self.phase, config.weight_decay)
            # The fused form passes over memory once instead of a dozen times: on a CPU twelve times faster than the default.
            self.optimizer = torch.optim.AdamW(groups, betas=(0.9, config.adam_beta2), fused=True)
            if self.phase.name in NEW_ROWS_ONLY:
                self.row_mask = self.run.row_mask(config.weight_decay)
                self.row_mask.attach(self.optimizer)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> LambdaLR:
        """One schedule for all groups; each group has its own peak learning rate."""
        if self.lr_scheduler is None:
            unwrapped = _unwrap(self.optimizer if optimizer is None else optimizer)
            self.lr_scheduler = LambdaLR(unwrapped, rate_factor(self.run.config, self.phase.steps))
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """The loss of a batch. In row distillation, also compute the teacher's states; else, also sum the bytes."""
        if self.teacher is not None:
            states = self.teacher.states(inputs.pop("teacher_input_ids")).flatten(0, 1)
            inputs["teacher_states"] = states[inputs.pop("teacher_positions")]
            self._items = self._items + len(inputs["positions"])
            return super().compute_loss(model, inputs, *args, **kwargs)
        self._bytes_sum = self._bytes_sum + inputs.pop("bytes").sum()
        items = kwargs.get("num_items_in_batch")
        self._items = 0 if items is None else items
        return super().compute_loss(model, inputs, *args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Forward and backward pass of a batch; after the last batch of a step, also mask rows and check the loss."""
        loss = super().training_step(*args, **kwargs)
        self._loss_sum = self._loss_sum + loss
        if self.accelerator.sync_gradients:
            if self.row_mask is not None:
                self.row_mask.zero_frozen_gradients()
            self._finish_step()
        return loss

    def _finish_step(self) -> None:
        # Each process holds its part of the loss times the number of processes, so that the mean over processes is the loss.
        loss, size = (
            torch.as_tensor(value, device=self.args.device, dtype=torch.float64)
            for value in (self._loss_sum, self._bytes_sum)
        )
        sums = torch.stack([loss / self.args.world_size, size, torch.as_tensor(float(self.run.stop)).to(loss)])
        sums = self.accelerator.reduce(sums, reduction="sum").tolist()
        self.step_loss, self.step_bytes, self.step_tokens = sums[0], sums[1], int(self._items)
        self._stop_agreed = sums[2] > 0
        self._loss_sum, self._bytes_sum, self._items = 0.0, 0.0, 0
        self.step_rates = {group["name"]: float(group["lr"]) for group in self.optimizer.param_groups}
        self.run.recorder.check(self.step_loss, self.step_done + 1, self.phase.name, self.run.folder.last())

    @property
    def must_stop(self) -> bool:
        """Whether to end after this step.

        Among several processes, this is what they agreed on during the step. A process that acted on its own signal alone
        would wait in its checkpoint for the others forever.
        """
        return self.run.stop if self.args.world_size == 1 else self._stop_agreed

    @property
    def step_done(self) -> int:
        """Number of finished steps since the start of the run."""
        return self.phase.start + self.state.global_step

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the weights; a sharded model is gathered first."""
        if not self.sharded:
            super().save_model(output_dir, _internal_call)
            return
        state = full_state(self.model, keep=self.args.should_save)
        if self.args.should_save:
            self._save(output_dir, state_dict=state)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Write the weights under the names that they have in the model, by which a checkpoint is loaded into it again.

        By default transformers writes them under the names of the model's published checkpoints.
        """
        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            self.model.save_pretrained(folder, state_dict=state_dict, save_original_format=False)
            torch.save(self.args, folder / ARGUMENTS)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.sharded:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        state = full_optimizer_state(_unwrap(self.optimizer), keep=self.args.should_save)
        if self.args.should_save:
            torch.save(state, Path(output_dir) / OPTIMIZER)
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or not self.sharded:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        state = torch.load(Path(checkpoint) / OPTIMIZER, map_location="cpu", weights_only=True, mmap=True)
        load_full_optimizer_state(_unwrap(self.optimizer), state)
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER, weights_only=True))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_weights(self.model if model is None else model, Path(resume_from_checkpoint))

    def _save_checkpoint(self, model: Any, trial: Any = None) -> None:
        step, output_dir = self.step_done, self.args.output_dir
        save_checkpoint = super()._save_checkpoint

        def write(temporary: Path) -> Path:
            self.args.output_dir = str(temporary)
            save_checkpoint(model, trial)
            return temporary / f"checkpoint-{self.state.global_step}"

        config = self.run.config
        best = self.run.best_step if config.early_stop else None
        try:
            self.run.folder.save(step, self.run.state(step), write, keep=config.keep_checkpoints, best=best)
        finally:
            self.args.output_dir = output_dir
        self.run.recorder.restart_clock()


class AfterStep(TrainerCallback):
    """After each step: writes the metrics, evaluates, asks for checkpoints, and ends the run."""

    def __init__(self, trainer: AdaptTrainer) -> None:
        """Create the callback.

        Args:
            trainer: the trainer that calls it.
        """
        self.trainer = trainer

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> Any:
        """Called by Trainer after each step, with the gradient norm."""
        trainer, run = self.trainer, self.trainer.run
        state.log_history = []  # metrics.jsonl holds the history; in Trainer's state it would grow with every checkpoint
        if not logs or "loss" not in logs:
            return control
        step, config = trainer.step_done, run.config
        line: dict[str, Any] = {"step": step, "phase": trainer.phase.name, "loss": trainer.step_loss}
        line["learning_rates"] = trainer.step_rates
        line["gradient_norm"] = self.gradient_norm(logs, step, fp16=args.fp16)
        line["pass"] = run.streams[0].passes
        run.recorder.step(line, tokens=trainer.step_tokens, size=trainer.step_bytes)
        is_last = state.global_step == trainer.phase.steps
        eval_steps = config.eval_steps or max(1, run.steps // 10)
        evaluation = self._evaluate(step) if is_last or step % eval_steps == 0 else {}
        run.recorder.write(evaluation, run.folder.last())
        run.stopped = trainer.must_stop
        control.should_save = is_last or step % config.save_steps == 0 or run.stopped
        self._early_stop(evaluation.get(HELDOUT), step, control)
        if run.stopped or run.ended:
            control.should_training_stop = control.should_save = True
        return control

    def gradient_norm(self, logs: Mapping[str, Any], step: int, *, fp16: bool) -> float | None:
        """The norm of the step's gradient; ``None`` if it is infinite in fp16.

        In fp16 such an overflow is normal: the gradient scaler skips the step and lowers its scale.

        Args:
            logs: Trainer's figures of the step.
            step: number of the step.
            fp16: whether the precision is fp16.

        Raises:
            BackendError: the norm is not finite in another precision, so the weights are spoilt, although the loss was
                finite; no checkpoint is written of them.
        """
        norm = float(logs.get("grad_norm") or 0.0)
        if math.isfinite(norm):
            return norm
        if fp16:
            return None
        raise divergence_error(step, f"the gradient's norm is {norm}", self.trainer.run.folder.last())

    def _evaluate(self, step: int) -> dict[str, float]:
        run = self.trainer.run
        try:
            return run.evaluate()
        except InputError as error:  # text and tokenizer passed the evaluation at step 0, so the weights are the cause
            symptom = f"held-out text cannot be scored: {str(error).split(';')[0]}"
            raise divergence_error(step, symptom, run.folder.last()) from error

    def _early_stop(self, bits_per_byte: float | None, step: int, control: Any) -> None:
        """Keep the best evaluation; end the run after ``early_stop`` worse ones. Row distillation does not count."""
        run = self.trainer.run
        if bits_per_byte is None or run.config.early_stop is None or self.trainer.teacher is not None:
            return
        if run.best is None or bits_per_byte < run.best:
            run.best, run.best_step, run.worse = bits_per_byte, step, 0
            control.should_save = True
        else:
            run.worse += 1
            run.ended = run.worse >= run.config.early_stop


def _unwrap(optimizer: Any) -> torch.optim.Optimizer:
    """The optimizer inside accelerate's wrapper; an optimizer without a wrapper is returned as it is."""
    return getattr(optimizer, "optimizer", optimizer)


def _prepare_sharded(prepare: Callable[..., Any], model: Any, **options: Any) -> Any:
    """Preparation by accelerate of a sharded model: autocast, but neither a move to the device nor DDP."""
    return prepare(model, device_placement=False, evaluation_mode=True)
