"""One phase on transformers' Trainer: what is different from the stock one, and why."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import SequentialSampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from .adapt_config import AdaptConfig
from .chunked_loss import ChunkedLM
from .distill_rows import Pieces, Teacher, collate_pieces
from .metrics import Recorder
from .packing import Mixture, Stream, collate
from .phases import DISTILL, MASKED, Phase, parameter_groups, rate_factor, set_trained
from .resume import RunFolder
from .row_mask import RowMask

Evaluate = Callable[[], dict[str, float]]


@dataclasses.dataclass(kw_only=True)
class Run:
    """What the phases of one run share.

    Attributes:
        config: the options.
        model: a causal LM, ``chunked`` what gives it its forward.
        streams: of blocks, the text first, then replays; ``shares`` of the blocks, sum 1.
        folder: where checkpoints go.
        recorder: takes the metrics.
        evaluate: held-out bits per byte by name of the metric; empty without held-out text.
        mask: makes a row mask with a weight decay; ``teacher`` a teacher and so many pieces of text.
        phases: in order; ``phase`` is the current one's place.
        best: lowest held-out bits per byte, ``best_step`` and ``worse`` evaluations since.
        ended: whether early stopping has ended the run.
        stop: asks for a checkpoint and an end after the current step, as signals do.
    """

    config: AdaptConfig
    model: Any
    chunked: ChunkedLM
    streams: Sequence[Stream]
    shares: Sequence[float]
    folder: RunFolder
    recorder: Recorder
    evaluate: Evaluate
    phases: Sequence[Phase]
    mask: Callable[[float], RowMask] | None = None
    teacher: Callable[[int], tuple[Teacher, Pieces]] | None = None
    phase: int = 0
    best: float | None = None
    best_step: int | None = None
    worse: int = 0
    ended: bool = False
    stop: bool = False

    @property
    def steps(self) -> int:
        """Steps of all phases."""
        return sum(phase.steps for phase in self.phases)

    def state(self, step: int) -> dict[str, Any]:
        """What a checkpoint must hold besides Trainer's own."""
        return {
            "phase": self.phase, "step": step, "best": self.best, "best_step": self.best_step, "worse": self.worse,
            "ended": self.ended, "marks": [stream.marks for stream in self.streams],
        }  # fmt: skip


class AdaptTrainer(Trainer):
    """Trainer with exact row masks, rates by group, whole checkpoints, and losses counted over all processes."""

    def __init__(
        self, run: Run, dataset: Mixture | Pieces, arguments: TrainingArguments, teacher: Teacher | None = None
    ) -> None:
        self.run, self.phase, self.teacher = run, run.phases[run.phase], teacher
        self.row_mask: RowMask | None = None
        self._sums = [0.0, 0.0]
        self._items = 0
        super().__init__(
            model=run.model, args=arguments, train_dataset=dataset, callbacks=[_Steps(self)],
            data_collator=collate if teacher is None else collate_pieces,
        )  # fmt: skip
        self.model_accepts_loss_kwargs = True  # the forward takes num_items_in_batch, whatever its signature looks like
        self.remove_callback(PrinterCallback)

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        # Blocks are shuffled already, by a rule that any process can follow from any place.
        return SequentialSampler(self.train_dataset if train_dataset is None else train_dataset)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """AdamW over the phase's groups."""
        if self.optimizer is None:
            config = self.run.config
            groups = parameter_groups(self.model if model is None else model, self.phase, config.weight_decay)
            # One pass over memory instead of a dozen: on a CPU, too, twelve times faster than torch's default.
            self.optimizer = torch.optim.AdamW(groups, betas=(0.9, config.adam_beta2), fused=True)
            if self.phase.name in MASKED:
                self.row_mask = self.run.mask(config.weight_decay)
                self.row_mask.attach(self.optimizer)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> LambdaLR:
        """The same course for every group, each from its own peak."""
        if self.lr_scheduler is None:
            wrapped = self.optimizer if optimizer is None else optimizer
            self.lr_scheduler = LambdaLR(
                getattr(wrapped, "optimizer", wrapped), rate_factor(self.run.config, self.phase.steps)
            )
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """Trainer's, with the bytes behind the block set aside."""
        if self.teacher is not None:
            states = self.teacher.states(inputs.pop("teacher_input_ids")).flatten(0, 1)
            inputs["wanted_states"] = states[inputs.pop("teacher_places")]
            self._items = len(inputs["places"])
            return super().compute_loss(model, inputs, *args, **kwargs)
        self._sums[1] = self._sums[1] + inputs.pop("bytes").sum()
        items = kwargs.get("num_items_in_batch")
        self._items = 0 if items is None else items
        return super().compute_loss(model, inputs, *args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Trainer's; with the last batch of a step come the mask, the step's loss over all processes and its check."""
        loss = super().training_step(*args, **kwargs)
        self._sums[0] = self._sums[0] + loss
        if self.accelerator.sync_gradients:
            if self.row_mask is not None:
                self.row_mask.zero_frozen_gradients()
            self._finish_step()
        return loss

    def _finish_step(self) -> None:
        # Each process has its part of the loss, scaled up so that the mean over processes is the whole.
        mean, size = (torch.as_tensor(value, device=self.args.device, dtype=torch.float64) for value in self._sums)
        sums = torch.stack([mean / self.args.world_size, size, torch.as_tensor(float(self.run.stop)).to(mean)])
        sums = self.accelerator.reduce(sums, reduction="sum").tolist()
        self.step_loss, self.step_bytes, self.step_tokens = sums[0], sums[1], int(self._items)
        self.run.stop = sums[2] > 0  # in one process is in all
        self._sums = [0.0, 0.0]
        self.step_rates = {group["name"]: float(group["lr"]) for group in self.optimizer.param_groups}
        self.run.recorder.check(sums[0], self.step_done + 1, self.phase.name, self.run.folder.last())

    @property
    def step_done(self) -> int:
        """Steps done since the start of the run."""
        return self.phase.start + self.state.global_step

    def _save_checkpoint(self, model: Any, trial: Any = None) -> None:
        step = self.step_done
        stock = super()._save_checkpoint

        def write(temporary: Path) -> Path:
            self.args.output_dir = str(temporary)
            stock(model, trial)
            return temporary / f"checkpoint-{self.state.global_step}"

        home = self.args.output_dir
        try:
            self.run.folder.save(
                step, self.run.state(step), write, keep=self.run.config.keep_checkpoints,
                best=self.run.best_step if self.run.config.early_stop else None,
            )  # fmt: skip
        finally:
            self.args.output_dir = home
        self.run.recorder.restart_clock()


class _Steps(TrainerCallback):
    """Metrics, evaluations, checkpoints and ends, after each step."""

    def __init__(self, trainer: AdaptTrainer) -> None:
        self.trainer = trainer

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> Any:
        trainer, run = self.trainer, self.trainer.run
        state.log_history = []  # metrics.jsonl keeps it; here it would grow with every checkpoint
        if not logs or "loss" not in logs:
            return control
        step, config = trainer.step_done, run.config
        line: dict[str, Any] = {"step": step, "phase": trainer.phase.name, "loss": trainer.step_loss}
        line["learning_rates"] = trainer.step_rates
        line["gradient_norm"] = float(logs.get("grad_norm") or 0.0)
        line["pass"] = run.streams[0].passes
        run.recorder.step(line, tokens=trainer.step_tokens, size=trainer.step_bytes)
        last = state.global_step == trainer.phase.steps
        every = config.eval_steps or max(1, run.steps // 10)
        found = run.evaluate() if last or step % every == 0 else {}
        run.recorder.write(found)
        control.should_save = last or step % config.save_steps == 0 or run.stop
        self._early_stop(found.get("heldout_bits_per_byte"), step, control)
        if run.stop or run.ended:
            control.should_training_stop = control.should_save = True
        return control

    def _early_stop(self, value: float | None, step: int, control: Any) -> None:
        run = self.trainer.run
        if value is None or run.config.early_stop is None:
            return
        if run.best is None or value < run.best:
            run.best, run.best_step, run.worse = value, step, 0
            control.should_save = True
        else:
            run.worse += 1
            run.ended = run.worse >= run.config.early_stop


def train_phase(run: Run, arguments: dict[str, Any], resume: Path | None) -> None:
    """Run the current phase, or the rest of it.

    Args:
        run: its ``phase`` says which.
        arguments: more keyword arguments of ``TrainingArguments``.
        resume: a checkpoint of this phase to go on from; the model's weights are read from it.
    """
    config, phase = run.config, run.phases[run.phase]
    set_trained(run.model, phase)
    settings = TrainingArguments(
        output_dir=str(run.folder.checkpoints), max_steps=phase.steps, per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.accumulate, max_grad_norm=config.max_grad_norm or 0.0, seed=config.seed,
        logging_strategy="steps", logging_steps=1, logging_nan_inf_filter=False, save_strategy="no", report_to="none",
        disable_tqdm=True, remove_unused_columns=False, average_tokens_across_devices=True,
        ddp_find_unused_parameters=False, **arguments,
    )  # fmt: skip
    blocks = config.batch_size * config.accumulate * settings.world_size
    teacher = None
    if phase.name == DISTILL:
        teacher, dataset = run.teacher(phase.steps * blocks)
    else:
        first = phase.start - sum(other.steps for other in run.phases if other.name == DISTILL)
        dataset = Mixture(
            run.streams, run.shares, offset=first * blocks, length=phase.steps * blocks,
            cross_documents=config.cross_documents,
        )  # fmt: skip
    trainer = AdaptTrainer(run, dataset, settings, teacher)
    run.recorder.restart_clock()
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    run.chunked.unwrap()


@dataclasses.dataclass(frozen=True)
class Processes:
    """This process among those of the run: its number, how many there are, and its device."""

    number: int
    count: int
    device: torch.device

    @property
    def main(self) -> bool:
        """Whether this is the process that writes."""
        return self.number == 0

    def barrier(self) -> None:
        """Wait for the others."""
        if self.count > 1:
            torch.distributed.barrier()


def find_processes(config: AdaptConfig) -> Processes:
    """Join the processes that torchrun or accelerate launch has started, if any."""
    arguments = TrainingArguments(output_dir="unused", report_to="none", **training_arguments(config))
    return Processes(arguments.process_index, arguments.world_size, arguments.device)


def training_arguments(config: AdaptConfig) -> dict[str, Any]:
    """Device and precision for :func:`train_phase`."""
    cuda = config.device != "cpu" and torch.cuda.is_available()
    precision = config.precision
    if precision == "auto":
        precision = "bf16" if cuda and torch.cuda.is_bf16_supported() else "fp32"
    found: dict[str, Any] = {"bf16": precision == "bf16", "fp16": precision == "fp16", "dataloader_pin_memory": cuda}
    if not cuda:
        found["use_cpu"] = True
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            found["ddp_backend"] = "gloo"
    return found


@contextlib.contextmanager
def polite_signals(run: Run) -> Iterator[None]:
    """The first SIGTERM or SIGINT asks for a checkpoint after the current step; a second one ends at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(number: int, frame: FrameType | None) -> None:
        if run.stop:
            raise KeyboardInterrupt
        run.stop = True

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def prepare_model(model: Any, config: AdaptConfig) -> ChunkedLM:
    """Give a model its chunked loss, recomputation and compilation, in place."""
    model.config.use_cache = False
    chunked = ChunkedLM(model, config.loss_chunk)
    if config.gradient_checkpointing:
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable()
    if config.compile and chunked.body is not None:
        chunked.body.compile(dynamic=False)
    return chunked
