"""A model, its text and its devices, checked and made ready; then phase after phase until done or stopped."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import input_error
from ..evaluation.evaluate import evaluate
from ..model.causal_lm import CausalLM, load_causal_lm, resolve_length, within_positions
from .checkpoints import RunFolder
from .chunked_loss import ChunkedLM
from .config import SEQ_LENGTH, AdaptConfig
from .distillation import Pieces, Teacher, load_teacher
from .metrics import Recorder
from .packing import Packer, Stream
from .phases import vocabulary_parameters
from .processes import Processes, polite_signals, training_arguments
from .row_mask import RowMask, new_rows
from .sharding import gathered_root
from .training import Run, load_weights, prepare_model, train_phase


@dataclasses.dataclass(kw_only=True)
class Job:
    """A loaded model with all that its training needs.

    Attributes:
        lm: the model, on its device, in float32; ``chunked`` gives it its loss.
        folder: where it was read from.
        config: the options.
        streams: of blocks, with their shares.
        heldout: documents in the target language, ``source`` in the source language.
        source_model: for row distillation, else ``None``.
        trained: bool [T'], rows that the phase ``rows`` trains; ``None`` where no phase needs to know.
    """

    lm: CausalLM
    chunked: ChunkedLM
    folder: Path
    config: AdaptConfig
    streams: Sequence[Stream]
    shares: Sequence[float]
    heldout: Sequence[str]
    source: Sequence[str]
    trained: np.ndarray | None
    source_model: Teacher | None = None

    def evaluate(self) -> dict[str, float]:
        """Held-out bits per byte, as ``saltlm.evaluate`` finds them."""
        parts = {"heldout_bits_per_byte": self.heldout, "source_bits_per_byte": self.source}
        pair = (self.lm.model, self.lm.tokenizer)
        with self.chunked.unwrapped(), gathered_root(self.lm.model):
            return {name: evaluate(pair, documents=text).bits_per_byte for name, text in parts.items() if text}

    def mask(self, weight_decay: float) -> RowMask:
        """The mask of the phase ``rows``."""
        parameters = vocabulary_parameters(self.lm.model).values()
        return RowMask(parameters, self.trained, weight_decay)

    def teacher(self, count: int) -> tuple[Teacher, Pieces]:
        """The source model, and so many pieces of the training text."""
        pieces = Pieces(
            self.streams[0].documents, (self.lm.tokenizer, self.source_model.lm.tokenizer),
            (self.lm.start_id, self.source_model.lm.start_id), count=count, seed=self.config.seed,
            length=within_positions(self.config.seq_length, self.source_model.lm.max_positions),
        )  # fmt: skip
        return self.source_model, pieces

    def train(self, folder: RunFolder, recorder: Recorder, checkpoint: Path | None, state: Mapping[str, Any]) -> int:
        """Run all phases that are left.

        Returns:
            The step whose weights the model has now: the last one, or the best one where early stopping looks for it.

        Raises:
            KeyboardInterrupt: a signal came; the last step is in a checkpoint.
        """
        run = Run(
            config=self.config, model=self.lm.model, chunked=self.chunked, streams=self.streams, shares=self.shares,
            folder=folder, recorder=recorder, evaluate=self.evaluate, phases=self.config.schedule_of_phases, mask=self.mask,
            teacher=self.teacher,
        )  # fmt: skip
        for name in ("phase", "best", "best_step", "worse", "ended"):
            setattr(run, name, state.get(name, getattr(run, name)))
        resume = checkpoint
        if checkpoint is None:
            recorder.begin(run.phases[0].name, self.evaluate())
        elif state["step"] == run.phases[run.phase].start + run.phases[run.phase].steps:
            load_weights(self.lm.model, checkpoint)
            run.phase, resume = run.phase + 1, None
        arguments = training_arguments(self.config)
        with polite_signals(run):
            while run.phase < len(run.phases) and not run.ended:
                train_phase(run, arguments, resume)
                if run.stopped:
                    raise KeyboardInterrupt(f"saved as {folder.last()}; the same command with --resume goes on")
                run.phase, resume = run.phase + 1, None
        done = recorder.lines[-1]["step"]
        if run.best_step is None or run.best_step == done:
            return done
        load_weights(self.lm.model, folder.checkpoints / f"step-{run.best_step}")
        return run.best_step

    def close(self) -> None:
        """Stop reading ahead."""
        for stream in self.streams:
            stream.close()


def load_job(
    folder: Path, name: str, config: AdaptConfig, this: Processes, *, streams: Callable[[Packer], list[Stream]],
    shares: Sequence[float], heldout: Sequence[str], source: Sequence[str],
) -> Job:  # fmt: skip
    """Load and check a model with its text.

    Raises:
        InputError: it is no causal LM, its tokenizer disagrees, blocks are longer than it can take, it lets documents in a
            block see each other, it does not say which rows are new though a phase asks, or the text fills no block.
    """
    trained = new_rows(folder) if config.needs_new_rows else None
    lm = load_causal_lm(str(folder), device="cpu", dtype="float32", trust_remote_code=config.trust_remote_code)
    what = f"model {name!r}"
    if trained is not None and len(trained) != lm.rows:
        raise input_error(
            what,
            f"{lm.rows} rows and a provenance of {len(trained)}",
            "as many",
            "transfer again, or leave the phase rows out",
        )
    if trained is not None and not trained.any():
        raise input_error(what, "no row that was not copied", "new rows for the phase rows", "leave that phase out")
    length = resolve_length("seq_length", config.seq_length, SEQ_LENGTH, lm.max_positions, what)
    config = dataclasses.replace(config, seq_length=length)
    if config.sharding == "none":  # else it goes there in slices
        lm.model.to(this.device)
    if not config.cross_documents and not keeps_apart(lm):
        raise input_error(
            what, "documents in one block that see each other", "a model whose attention follows position ids",
            "add --cross-documents to let them",
        )  # fmt: skip
    source_model = load_teacher(folder, config, lm, this.device) if config.distill_rows else None
    chunked = prepare_model(lm.model, config, this)
    made = streams(Packer(lm.tokenizer, rows=lm.rows, length=config.seq_length, name=name))
    job = Job(
        lm=lm, chunked=chunked, folder=folder, config=config, streams=made, shares=shares, heldout=heldout, source=source,
        trained=trained, source_model=source_model,
    )  # fmt: skip
    try:
        for stream in made:
            stream.block(stream.marks[-1][3] if stream.marks else 0)
    except BaseException:
        job.close()
        raise
    return job


def keeps_apart(lm: CausalLM) -> bool:
    """Whether a document gets the same states behind another one in a block as it gets alone."""
    first, second = (torch.arange(low, low + 6, device=lm.device)[None] % lm.rows for low in (0, 3))
    places = torch.arange(6, device=lm.device)[None]
    lm.model.eval()
    with torch.no_grad():
        try:
            both = lm.model(
                input_ids=torch.cat([first, second], 1), position_ids=torch.cat([places, places], 1), use_cache=False
            )
        except TypeError:  # it knows no position ids
            return False
        alone = lm.model(input_ids=second, position_ids=places, use_cache=False)
    return torch.allclose(both.logits[:, 6:], alone.logits, rtol=1e-3, atol=1e-3 * float(alone.logits.abs().max()))
