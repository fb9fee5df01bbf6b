"""One phase on transformers' Trainer: what is different from the stock one, and why."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import SequentialSampler
from transformers import PrinterCallback, Trainer, TrainingArguments

from ..errors import input_error
from .after_step import AfterStep
from .checkpoints import RunFolder
from .chunked_loss import ChunkedLM
from .config import AdaptConfig
from .distillation import Pieces, Teacher, collate_pieces
from .metrics import Recorder
from .packing import Mixture, Stream, collate
from .phases import (
    DISTILL,
    MASKED,
    Phase,
    parameter_groups,
    rate_factor,
    set_trained,
    vocabulary_parameters,
)
from .processes import Processes, one_device
from .row_mask import RowMask
from .sharding import groups, load_optimizer, load_state, shard, whole_optimizer, whole_state

OPTIMIZER, SCHEDULER = "optimizer.pt", "scheduler.pt"  # as Trainer names them
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
        best: lowest held-out bits per byte, ``best_step`` and ``worse`` evaluations since; kept with early stopping alone.
        ended: whether early stopping has ended the run.
        stop: asks for a checkpoint and an end after the current step, as signals do.
        stopped: whether all processes have agreed to that.
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
    stopped: bool = False

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
        self._agreed = False
        super().__init__(
            model=run.model, args=arguments, train_dataset=dataset, callbacks=[AfterStep(self)],
            data_collator=collate if teacher is None else collate_pieces,
        )  # fmt: skip
        self.model_accepts_loss_kwargs = True  # the forward takes num_items_in_batch, whatever its signature looks like
        self.remove_callback(PrinterCallback)
        self.sharded = bool(groups(run.model))
        if self.sharded:  # it is spread over the processes already: no DDP around it
            self.accelerator.prepare_model = functools.partial(_prepared_sharded, self.accelerator.prepare_model)

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
            wrapped = _inner(self.optimizer if optimizer is None else optimizer)
            self.lr_scheduler = LambdaLR(wrapped, rate_factor(self.run.config, self.phase.steps))
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """Trainer's, with the bytes behind the block set aside."""
        if self.teacher is not None:
            states = self.teacher.states(inputs.pop("teacher_input_ids")).flatten(0, 1)
            inputs["wanted_states"] = states[inputs.pop("teacher_places")]
            self._items = self._items + len(inputs["places"])
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
        self._agreed = sums[2] > 0
        self._sums, self._items = [0.0, 0.0], 0
        self.step_rates = {group["name"]: float(group["lr"]) for group in self.optimizer.param_groups}
        self.run.recorder.check(sums[0], self.step_done + 1, self.phase.name, self.run.folder.last())

    @property
    def must_stop(self) -> bool:
        """Whether to end after this step.

        Among several processes it is what they agreed on within the step: a signal that has come to one of them since would
        leave it alone in a checkpoint, waiting for the others for ever.
        """
        return self.run.stop if self.args.world_size == 1 else self._agreed

    @property
    def step_done(self) -> int:
        """Steps done since the start of the run."""
        return self.phase.start + self.state.global_step

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Trainer's; a sharded model is gathered first."""
        if not self.sharded:
            super().save_model(output_dir, _internal_call)
            return
        state = whole_state(self.model, keep=self.args.should_save)
        if self.args.should_save:
            self._save(output_dir, state_dict=state)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.sharded:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        state = whole_optimizer(_inner(self.optimizer), keep=self.args.should_save)
        if self.args.should_save:
            torch.save(state, Path(output_dir) / OPTIMIZER)
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or not self.sharded:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        state = torch.load(Path(checkpoint) / OPTIMIZER, map_location="cpu", weights_only=True, mmap=True)
        load_optimizer(_inner(self.optimizer), state)
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER, weights_only=True))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_weights(self.model if model is None else model, Path(resume_from_checkpoint))

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


def _inner(optimizer: Any) -> torch.optim.Optimizer:
    """The optimizer without what accelerate has put around it."""
    return getattr(optimizer, "optimizer", optimizer)


def _prepared_sharded(stock: Callable[..., Any], model: Any, **options: Any) -> Any:
    """Accelerate's preparation (autocast) of a model that needs neither a device nor a wrapper."""
    return stock(model, device_placement=False, evaluation_mode=True)


def load_weights(model: Any, checkpoint: Path) -> None:
    """Put the weights of a checkpoint into a model of the same kind.

    Raises:
        InputError: some are missing.
    """
    from safetensors.torch import load_file

    missing: set[str] | None = None
    for file in sorted(checkpoint.glob("*.safetensors")):
        keys = load_state(model, load_file(file))
        missing = keys if missing is None else missing & keys
    tied = {id(parameter) for parameter in vocabulary_parameters(model).values()}
    named = dict(model.named_parameters(remove_duplicate=False))
    if missing is None or any(id(named.get(key)) not in tied for key in missing if key in named):
        raise input_error(f"checkpoint {checkpoint}", "weights missing", "all of them", "remove it and resume again")


def train_phase(run: Run, arguments: dict[str, Any], resume: Path | None) -> None:
    """Run the current phase, or the rest of it.

    Args:
        run: its ``phase`` says which.
        arguments: more keyword arguments of ``TrainingArguments``.
        resume: a checkpoint of this phase to go on from; the model's weights are read from it.
    """
    config, phase = run.config, run.phases[run.phase]
    set_trained(run.model, phase)
    settings = one_device(TrainingArguments(
        output_dir=str(run.folder.checkpoints), max_steps=phase.steps, per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.accumulate, max_grad_norm=config.max_grad_norm or 0.0, seed=config.seed,
        logging_strategy="steps", logging_steps=1, logging_nan_inf_filter=False, save_strategy="no", report_to="none",
        disable_tqdm=True, remove_unused_columns=False, average_tokens_across_devices=True,
        ddp_find_unused_parameters=False, **arguments,
    ))  # fmt: skip
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


def prepare_model(model: Any, config: AdaptConfig, this: Processes) -> ChunkedLM:
    """Give a model its chunked loss, recomputation, compilation and sharding, in place."""
    model.config.use_cache = False
    chunked = ChunkedLM(model, config.loss_chunk)
    if config.gradient_checkpointing:
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable()
    if config.compile:
        chunked.compile()
    if config.sharding != "none":
        shard(model, this.device, this.count)
    return chunked
