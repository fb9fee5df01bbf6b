"""A loaded model with its text and devices: checks them, trains phase after phase, and resumes from a checkpoint."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainingArguments

from ..errors import first_line, input_error
from ..evaluation.evaluate import evaluate
from ..files.json_files import read_json
from ..model.body_and_head import close
from ..model.causal_lm import CausalLM, load_causal_lm, resolve_length, within_positions
from ..model.quantization import refuse_training
from ..protocols import LanguageModel
from .checkpoints import CheckpointFolder
from .chunked_loss import ChunkedLM
from .config import DISTILL, SEQ_LENGTH, AdaptConfig
from .distillation import AlignedTexts, Teacher, load_teacher
from .metrics import HELDOUT, SOURCE, Recorder
from .optimizer import set_trained, text_part, train_all_input_rows, vocabulary_parameters
from .packing import Mixture, Packer, Stream
from .processes import Processes, stop_on_signal, training_arguments, use_one_device
from .row_mask import RowMask, new_rows
from .sharding import load_weights, shard, unsharded_root
from .training import AdaptTrainer, Evaluate, Run


@dataclasses.dataclass(kw_only=True)
class Session:
    """A loaded model with everything that its training needs.

    Attributes:
        lm: the model, on its device, in float32.
        chunked: its chunked loss.
        folder: the folder that the model was read from.
        config: the options; ``seq_length`` is set.
        seq_length: number of tokens in a block.
        streams: of blocks: the training text, then each replayed text.
        shares: share of all blocks that each stream fills, sum 1.
        heldout: held-out documents in the target language; may be empty.
        source: held-out documents in the source language; may be empty.
        new_rows: bool [T'], ``True`` for rows that were not copied; ``None`` where no phase trains them alone.
        source_model: the teacher of row distillation; ``None`` without row distillation.
        first_position: position id of the first token of a text.
    """

    lm: CausalLM
    chunked: ChunkedLM
    folder: Path
    config: AdaptConfig
    seq_length: int
    streams: Sequence[Stream]
    shares: Sequence[float]
    heldout: Sequence[str]
    source: Sequence[str]
    new_rows: np.ndarray | None
    source_model: Teacher | None = None
    first_position: int = 0

    def evaluate(self) -> dict[str, float]:
        """Bits per byte of the held-out texts, as ``saltlm.evaluate`` measures them, by name of the metric."""
        texts = {HELDOUT: self.heldout, SOURCE: self.source}
        pair = (self.lm.model, self.lm.tokenizer)
        with self.chunked.unwrapped(), unsharded_root(self.lm.model):
            return {name: evaluate(pair, documents=text).bits_per_byte for name, text in texts.items() if text}

    def row_mask(self, weight_decay: float) -> RowMask:
        """The mask that lets only the new rows be trained.

        Args:
            weight_decay: decoupled weight decay of the new rows, in [0, inf).
        """
        if self.new_rows is None:
            raise ValueError("no phase of this session trains the new rows alone")
        return RowMask(vocabulary_parameters(self.lm.model).values(), self.new_rows, weight_decay)

    def distillation(self, count: int) -> tuple[Teacher, AlignedTexts]:
        """The source model, and training texts that both models read.

        Args:
            count: number of texts, in [1, inf).
        """
        if self.source_model is None:
            raise ValueError("this session has no source model for row distillation")
        texts = AlignedTexts(
            self.streams[0].documents,
            (self.lm.tokenizer, self.source_model.lm.tokenizer),
            (self.lm.start_id, self.source_model.lm.start_id),
            length=within_positions(self.seq_length, self.source_model.lm.max_positions),
            count=count,
            seed=self.config.seed,
        )
        return self.source_model, texts

    def train(
        self,
        folder: CheckpointFolder,
        recorder: Recorder,
        checkpoint: Path | None,
        state: Mapping[str, Any],
        evaluate: Evaluate | None = None,
    ) -> int:
        """Train all phases, or those that are left.

        Args:
            folder: where checkpoints are written.
            recorder: takes the metrics.
            checkpoint: a checkpoint to resume from; ``None`` starts at the beginning.
            state: the state that the checkpoint was saved with; not read without a checkpoint.
            evaluate: measures the held-out text; ``None`` takes :meth:`evaluate`.

        Returns:
            The step whose weights the model has now: the last step or, with early stopping, the best one.

        Raises:
            KeyboardInterrupt: a signal came; a checkpoint of the last step was written.
            InputError: the text cannot be read, or the disk is full.
            BackendError: the training has diverged, or the file system failed.
        """
        run = Run(
            config=self.config,
            model=self.lm.model,
            chunked=self.chunked,
            streams=self.streams,
            shares=self.shares,
            folder=folder,
            recorder=recorder,
            evaluate=evaluate or self.evaluate,
            phases=self.config.schedule_of_phases,
            row_mask=self.row_mask,
            distillation=self.distillation,
            first_position=self.first_position,
        )
        resume = checkpoint
        if checkpoint is None:
            recorder.begin(run.phase.name, run.evaluate())
        else:
            run.restore(state)
            if state["step"] == run.phase.start + run.phase.steps:  # saved at the end of a phase: start the next one
                load_weights(self.lm.model, checkpoint)
                run.phase_index, resume = run.phase_index + 1, None
        arguments = training_arguments(self.config)
        with stop_on_signal(run):
            while run.phase_index < len(run.phases) and not run.ended:
                train_phase(run, arguments, resume)
                if run.stopped:
                    raise KeyboardInterrupt(f"saved as {folder.last()}; the same command with --resume goes on")
                run.phase_index, resume = run.phase_index + 1, None
        last_step = recorder.lines[-1]["step"]
        if run.best_step is None or run.best_step == last_step:
            return last_step
        load_weights(self.lm.model, folder.checkpoints / f"step-{run.best_step}")
        return run.best_step

    def close(self) -> None:
        """Stop the threads that read ahead."""
        for stream in self.streams:
            stream.close()


def load_session(
    folder: Path,
    name: str,
    config: AdaptConfig,
    processes: Processes,
    *,
    streams: Callable[[Packer], list[Stream]],
    shares: Sequence[float],
    heldout: Sequence[str],
    source: Sequence[str],
) -> Session:
    """Load a model, and check it with its text.

    Args:
        folder: the model folder.
        name: of the model, for messages.
        config: the options.
        processes: this process among those of the run.
        streams: opens the streams of blocks, given a packer.
        shares: share of all blocks that each stream fills, sum 1.
        heldout: held-out documents in the target language.
        source: held-out documents in the source language.

    Returns:
        The session; the caller closes it.

    Raises:
        InputError: the model is no causal LM, its tokenizer has ids without a row, blocks are longer than its positions,
            documents in a block see each other, the folder does not record which rows are new though a phase trains them
            alone, or the text fills no block.
    """
    refuse_training(read_json(folder / "config.json"), folder, f"model {name!r}")
    rows = new_rows(folder) if config.needs_new_rows else None
    lm = load_causal_lm(
        str(folder), device="cpu", dtype="float32", trust_remote_code=config.trust_remote_code, whole=True
    )
    what = f"model {name!r}"
    if rows is not None and len(rows) != lm.rows:
        raise input_error(
            what,
            f"{lm.rows} rows and a provenance of {len(rows)}",
            "as many",
            "transfer again, or leave the phase rows out",
        )
    if rows is not None and not rows.any():
        raise input_error(what, "no row that was not copied", "new rows for the phase rows", "leave that phase out")
    train_all_input_rows(lm.model)
    seq_length = resolve_length("seq_length", config.seq_length, SEQ_LENGTH, lm.max_positions, what)
    config = dataclasses.replace(config, seq_length=seq_length)
    _refuse_without_text(lm, what)
    if config.sharding == "none":  # otherwise shard() moves the shards to the device
        lm.model.to(processes.device)
    first = first_position(lm)
    if not config.cross_documents and not isolates_documents(lm, first):
        raise input_error(
            what,
            "documents in one block that see each other",
            "a model whose attention follows position ids",
            "add --cross-documents to let them",
        )
    source_model = load_teacher(folder, config, lm, processes.device) if config.distill_rows else None
    chunked = prepare_model(lm.model, config, processes)
    session = Session(
        lm=lm,
        chunked=chunked,
        folder=folder,
        config=config,
        seq_length=seq_length,
        streams=streams(Packer(lm.tokenizer, rows=lm.rows, length=seq_length, name=name)),
        shares=shares,
        heldout=heldout,
        source=source,
        new_rows=rows,
        source_model=source_model,
        first_position=first,
    )
    try:
        for stream in session.streams:  # so that text that fills no block is refused before anything is written
            stream.block(stream.marks[-1][3] if stream.marks else 0)
    except BaseException:
        session.close()
        raise
    return session


def _refuse_without_text(lm: CausalLM, what: str) -> None:
    """Refuse a model of several parts whose class, in the installed transformers, does not run on text alone.

    Raises:
        InputError: it does not run.
    """
    if text_part(lm.model) is lm.model:
        return
    try:
        with torch.no_grad():
            lm.model(input_ids=torch.zeros(1, 2, dtype=torch.int64), use_cache=False)
    except Exception as error:  # each class has checks of its own, with errors of any type
        found = f"{type(lm.model).__name__}, which fails on text without an image ({first_line(error)})"
        advice = "use another version of transformers, or train its text part alone"
        raise input_error(what, found, "a model that runs on text alone", advice) from error


def train_phase(run: Run, arguments: Mapping[str, Any], resume: Path | None) -> None:
    """Train the run's current phase, or the rest of it.

    Args:
        run: the run.
        arguments: device and precision, as keyword arguments of ``TrainingArguments``.
        resume: a checkpoint of this phase to resume from; ``None`` starts the phase with the model's weights.

    Raises:
        InputError: the text cannot be read, or the disk is full.
        BackendError: the training has diverged, or the file system failed.
    """
    config, phase = run.config, run.phase
    set_trained(run.model, phase)
    trainer_arguments = use_one_device(
        TrainingArguments(
            output_dir=str(run.folder.checkpoints),
            max_steps=phase.steps,
            per_device_train_batch_size=config.batch_size,
            gradient_accumulation_steps=config.accumulate,
            max_grad_norm=config.max_grad_norm or 0.0,
            seed=config.seed,
            logging_strategy="steps",
            logging_steps=1,
            logging_nan_inf_filter=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            average_tokens_across_devices=True,
            ddp_find_unused_parameters=False,
            **arguments,
        )
    )
    blocks_per_step = config.batch_size * config.accumulate * trainer_arguments.world_size
    teacher: Teacher | None = None
    dataset: Mixture | AlignedTexts
    if phase.name == DISTILL:
        teacher, dataset = run.distillation(phase.steps * blocks_per_step)
    else:
        first_step = phase.start - sum(other.steps for other in run.phases if other.name == DISTILL)
        dataset = Mixture(
            run.streams,
            run.shares,
            offset=first_step * blocks_per_step,
            length=phase.steps * blocks_per_step,
            cross_documents=config.cross_documents,
            first_position=run.first_position,
        )
    trainer = AdaptTrainer(run, dataset, trainer_arguments, teacher)
    run.recorder.restart_clock()
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    run.chunked.unwrap()


def prepare_model(model: LanguageModel, config: AdaptConfig, processes: Processes) -> ChunkedLM:
    """Give a model its chunked loss, recomputation of activations, compilation and sharding, in place.

    Args:
        model: a transformers causal LM.
        config: ``loss_chunk``, ``gradient_checkpointing``, ``compile`` and ``sharding`` are read.
        processes: this process among those of the run.

    Returns:
        The chunked loss.

    Raises:
        InputError: the model cannot be sharded.
    """
    model.config.use_cache = False
    chunked = ChunkedLM(model, config.loss_chunk)
    if config.gradient_checkpointing:
        switch: Any = model  # gradient_checkpointing_enable is its name in older versions
        enable = getattr(switch, "activation_checkpointing_enable", None) or switch.gradient_checkpointing_enable
        enable()
    if config.compile:
        chunked.compile()
    if config.sharding != "none":
        shard(model, processes.device, processes.count)
    return chunked


def first_position(lm: CausalLM) -> int:
    """Position id of the first token of a text: 0, or the padding id plus 1 in the RoBERTa kind.

    It is the one with which the model gives the logits that it gives without position ids. A model that takes no position ids
    gets 0.
    """
    ids = torch.arange(8, device=lm.device)[None] % lm.rows
    pad = getattr(lm.model.config, "pad_token_id", None)
    if pad is None:
        return 0
    ids = ids[ids != pad][None]
    lm.model.eval()
    with torch.no_grad(), contextlib.suppress(TypeError, ValueError, IndexError, RuntimeError):
        logits = lm.model(input_ids=ids, use_cache=False).logits
        for first in (0, pad + 1):
            positions = first + torch.arange(ids.shape[1], device=lm.device)[None]
            if close(lm.model(input_ids=ids, position_ids=positions, use_cache=False).logits, logits):
                return first
    return 0


def isolates_documents(lm: CausalLM, first_position: int = 0) -> bool:
    """Whether a document gets the same logits after another document in its block as it gets alone.

    Args:
        lm: the model.
        first_position: position id of the first token of a text.
    """
    first, second = (torch.arange(start, start + 6, device=lm.device)[None] % lm.rows for start in (0, 3))
    positions = first_position + torch.arange(6, device=lm.device)[None]
    lm.model.eval()
    with torch.no_grad():
        try:
            packed = lm.model(
                input_ids=torch.cat([first, second], 1),
                position_ids=torch.cat([positions, positions], 1),
                use_cache=False,
            )
        except TypeError:  # the model takes no position ids
            return False
        alone = lm.model(input_ids=second, position_ids=positions, use_cache=False)
    return torch.allclose(packed.logits[:, 6:], alone.logits, rtol=1e-3, atol=1e-3 * float(alone.logits.abs().max()))
