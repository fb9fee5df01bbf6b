"""The options of an adaptation and its training phases. The Python API and the command line read both from here."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Literal

from ..config import INPUTS, OUTPUT, RUN, DTypeName
from ..errors import input_error
from ..options import check_choices, documented, is_number, is_whole_number, option

Schedule = Literal["cosine", "wsd", "constant"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Split = Literal["blank-line", "line"]
Sharding = Literal["none", "fsdp2"]
DeviceName = Literal["auto", "cpu", "cuda"]
PhaseName = Literal["rows", "embeddings", "all", "distill"]

# Default and minimum of seq_length, in tokens. A model with fewer positions than the default has another default.
SEQ_LENGTH, SHORTEST_SEQ_LENGTH = 512, 8

# Headings of the command line.
TEXT, STEPS, OPTIMIZER, EVALUATION = "training text", "training steps", "optimizer", "evaluation while training"
DISTILLATION, MEMORY = "row distillation", "speed and memory"

# The phase of row distillation. It precedes the phases that --phases names, and --phases cannot name it.
DISTILL: PhaseName = "distill"
# Phases that train the new rows alone.
NEW_ROWS_ONLY: tuple[PhaseName, ...] = ("rows", DISTILL)
_PHASE_NAMES: dict[str, PhaseName] = {"rows": "rows", "embeddings": "embeddings", "all": "all"}
_PHASE = re.compile(r"(?P<name>[a-z]+):(?P<steps>\d+)(@(?P<rate>[^/]+)(/(?P<embeddings>.+))?)?")


@dataclasses.dataclass(frozen=True)
class Phase:
    """A sequence of steps in which the same weights are trained.

    Attributes:
        name: which weights are trained: ``rows`` (rows that were not copied), ``embeddings`` (all embedding and head rows),
            ``all`` (every weight) or ``distill`` (rows that were not copied, by row distillation).
        steps: number of optimizer steps, in [1, inf).
        start: number of optimizer steps of all earlier phases.
        learning_rate: peak learning rate of the body's weights.
        embedding_learning_rate: peak learning rate of embedding and head rows.
    """

    name: PhaseName
    steps: int
    start: int
    learning_rate: float
    embedding_learning_rate: float


@documented
@dataclasses.dataclass(frozen=True, kw_only=True)
class AdaptConfig:
    """Options of continual pre-training.

    Raises:
        InputError: a value is out of its range, or is not one of the names that the option accepts.
    """

    steps: int = option(
        1000,
        "Number of optimizer steps in which every weight is trained, an integer >= 1. Not used with --phases.",
        group=STEPS,
    )
    phases: str | None = option(
        None,
        "Training phases in order, as NAME:STEPS[@RATE[/EMBEDDINGS_RATE]] separated by commas. NAME is rows (trains only the "
        "rows that were not copied), embeddings (all embedding and head rows) or all (every weight). "
        "Default: one phase all with --steps steps.",
        group=STEPS,
        metavar="PHASES",
    )
    seq_length: int | None = option(
        None,
        "Length of a block in tokens, an integer from 8 to the model's number of positions. Documents are packed into blocks; "
        "tokens attend only to tokens of the same document. Default: 512, or the number of positions if it is smaller.",
        group=STEPS,
    )
    batch_size: int = option(1, "Number of blocks per batch on one device, an integer >= 1.", group=STEPS)
    accumulate: int = option(
        1, "Number of batches whose gradients are summed for one optimizer step, an integer >= 1.", group=STEPS
    )
    learning_rate: float = option(
        1e-4, "Peak learning rate of all weights except embedding and head rows, a number > 0.", group=OPTIMIZER
    )
    embedding_learning_rate: float = option(
        1e-3, "Peak learning rate of embedding and head rows, a number > 0.", group=OPTIMIZER
    )
    schedule: Schedule = option(
        "cosine",
        "Learning rate schedule of each phase: cosine (decay to zero), wsd (flat, then linear decay to zero) or constant.",
        group=OPTIMIZER,
    )
    warmup_steps: int | None = option(
        None,
        "Number of steps at the start of each phase in which the learning rate rises linearly, an integer >= 0. "
        "Default: a tenth of the phase.",
        group=OPTIMIZER,
    )
    decay_share: float = option(
        0.2, "Share of a phase, at its end, in which schedule wsd decays, a number in (0, 1].", group=OPTIMIZER
    )
    weight_decay: float = option(
        0.0, "Decoupled weight decay of matrices, a number >= 0. Frozen rows are never decayed.", group=OPTIMIZER
    )
    adam_beta2: float = option(0.95, "Decay rate of AdamW's second moment, a number in (0, 1).", group=OPTIMIZER)
    max_grad_norm: float | None = option(
        1.0,
        "Scale gradients down to this norm, a number > 0.",
        group=OPTIMIZER,
    )
    precision: Precision = option(
        "auto",
        "Arithmetic over the float32 weights: fp32, bf16, fp16 or auto (bf16 on a GPU that supports it, else fp32).",
        group=MEMORY,
    )
    gradient_checkpointing: bool = option(
        False,
        "Recompute activations in the backward pass: takes less memory and about a third more time.",
        group=MEMORY,
    )
    compile: bool = option(False, "Compile the model body with torch.compile.", group=MEMORY)
    loss_chunk: int | None = option(
        None,
        "Number of tokens whose logits are in memory at once, an integer >= 1. Default: as many as fit 2**25 logits.",
        group=MEMORY,
    )
    heldout: float = option(
        0.01,
        "Share of the training documents kept back for evaluation when no held-out text is given, a number in [0, 0.5]; 0 "
        "trains without evaluation.",
        group=EVALUATION,
    )
    eval_steps: int | None = option(
        None,
        "Number of steps between evaluations on held-out text, an integer >= 1. Default: a tenth of all steps.",
        group=EVALUATION,
    )
    eval_bytes: int = option(100_000, "Cut held-out text to about this many bytes, an integer >= 1.", group=EVALUATION)
    early_stop: int | None = option(
        None,
        "Stop after this many evaluations in a row without a lower loss, an integer >= 1, and write the best weights, also "
        "when training runs to its end. Row distillation does not count. Default: never stop early, write the last weights.",
        group=EVALUATION,
    )
    save_steps: int = option(200, "Number of steps between checkpoints, an integer >= 1.", group=OUTPUT)
    keep_checkpoints: int = option(2, "Number of newest checkpoints to keep, an integer >= 1.", group=OUTPUT)
    text_column: str = option("text", "Column or key that holds the text in jsonl, parquet and datasets.", group=TEXT)
    split_at: Split = option(
        "blank-line", "Separator of documents in plain text files: blank-line or line.", group=TEXT
    )
    shuffle_documents: int = option(
        10_000, "Shuffle documents in windows of this many documents, an integer >= 1.", group=TEXT
    )
    drop_overlap: bool = option(
        False,
        "Leave out training documents that share text with the held-out text, instead of refusing to train.",
        group=TEXT,
    )
    cross_documents: bool = option(
        False,
        "Let tokens attend to other documents of the same block, for models that cannot isolate documents.",
        group=TEXT,
    )
    seed: int = option(0, "Seed of data order and dropout, an integer in [0, 2**32).", group=RUN)
    device: DeviceName = option(
        "auto", "Device that trains the model: auto (a GPU where there is one), cpu or cuda.", group=RUN
    )
    sharding: Sharding = option(
        "none",
        "What each process of torchrun or accelerate launch holds: none (the whole model) or fsdp2 (a slice of every weight "
        "and of its optimizer state).",
        group=MEMORY,
    )
    distill_rows: bool = option(
        False,
        "Before the phases, train the new rows so that hidden states match those of the source model on the same text (Token "
        "Distillation). Needs the source model.",
        group=DISTILLATION,
    )
    distill_steps: int = option(
        200, "Number of optimizer steps of --distill-rows, an integer >= 1.", group=DISTILLATION
    )
    distill_source: str | None = option(
        None,
        "Source model of --distill-rows: a local folder or a hub name. Default: the source named in the model's saltlm.json.",
        group=DISTILLATION,
        metavar="MODEL",
    )
    dtype: DTypeName | None = option(
        None, "Data type of the written weights. Default: the data type of the checkpoint.", group=OUTPUT
    )
    trust_remote_code: bool = option(
        False, "Allow transformers to run Python code that comes with a checkpoint.", group=INPUTS
    )
    force: bool = option(False, "Replace an existing output folder.", group=OUTPUT)

    def __post_init__(self) -> None:
        check_choices(self)
        lowest = {"seq_length": SHORTEST_SEQ_LENGTH, "warmup_steps": 0}
        for name in (
            "steps",
            "seq_length",
            "batch_size",
            "accumulate",
            "warmup_steps",
            "loss_chunk",
            "eval_steps",
            "eval_bytes",
            "early_stop",
            "save_steps",
            "keep_checkpoints",
            "shuffle_documents",
            "distill_steps",
        ):
            value, low = getattr(self, name), lowest.get(name, 1)
            if value is not None and not is_whole_number(value, low):
                raise input_error(name, repr(value), f"a whole number >= {low}", "choose another")
        for name in ("learning_rate", "embedding_learning_rate", "max_grad_norm"):
            value = getattr(self, name)
            if value is not None and not (is_number(value) and value > 0):
                raise input_error(name, repr(value), "a finite number > 0", "choose another")
        ranges = {
            "weight_decay": (0, math.inf),
            "heldout": (0, 0.5),
            "decay_share": (1e-6, 1),
            "adam_beta2": (1e-6, 1 - 1e-9),
        }
        for name, (least, most) in ranges.items():
            value = getattr(self, name)
            if not (is_number(value) and least <= value <= most):
                raise input_error(name, repr(value), f"a number in [{least:g}, {most:g}]", "choose another")
        if not is_whole_number(self.seed, 0, 2**32 - 1):
            raise input_error("seed", repr(self.seed), "a whole number in [0, 2**32)", "choose another seed")
        parse_phases(self)

    @property
    def schedule_of_phases(self) -> tuple[Phase, ...]:
        """The phases in training order, at least one."""
        return parse_phases(self)

    @property
    def needs_new_rows(self) -> bool:
        """Whether a phase trains the new rows alone, so that the model folder must record which rows were not copied."""
        return any(phase.name in NEW_ROWS_ONLY for phase in self.schedule_of_phases)

    def to_json(self) -> dict[str, object]:
        """All options as plain JSON values, as saved in ``saltlm.json``."""
        return dataclasses.asdict(self)


def parse_phases(config: AdaptConfig) -> tuple[Phase, ...]:
    """The phases of a configuration.

    In ``NAME:STEPS@RATE`` the rate holds for all weights that the phase trains; in ``NAME:STEPS@RATE/EMBEDDINGS_RATE`` the
    first rate holds for the body and the second for embedding and head rows.

    Args:
        config: its ``phases`` are parsed, or one phase ``all`` of ``steps`` steps where ``phases`` is ``None``; with
            ``distill_rows`` the phase ``distill`` comes first.

    Returns:
        At least one phase.

    Raises:
        InputError: a phase has another form, another name, no step, or a rate that is not a positive number.
    """
    phases: list[Phase] = []
    start = 0
    if config.distill_rows:
        rate = config.embedding_learning_rate
        phases.append(Phase(DISTILL, config.distill_steps, 0, rate, rate))
        start = config.distill_steps
    for part in (config.phases if config.phases is not None else f"all:{config.steps}").split(","):
        match = _PHASE.fullmatch(part.strip())
        if not match or match["name"] not in _PHASE_NAMES or int(match["steps"]) < 1:
            raise input_error(
                "phases",
                repr(part),
                f"NAME:STEPS[@RATE[/EMBEDDINGS_RATE]] with NAME one of {', '.join(_PHASE_NAMES)} and STEPS >= 1",
                "write e.g. --phases rows:100,embeddings:200,all:1000@1e-4",
            )
        body_rate = _parse_rate(match["rate"], part) if match["rate"] else None
        embeddings_rate = _parse_rate(match["embeddings"], part) if match["embeddings"] else body_rate
        phase = Phase(
            name=_PHASE_NAMES[match["name"]],
            steps=int(match["steps"]),
            start=start,
            learning_rate=body_rate or config.learning_rate,
            embedding_learning_rate=embeddings_rate or config.embedding_learning_rate,
        )
        phases.append(phase)
        start += phase.steps
    return tuple(phases)


def _parse_rate(text: str, part: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if not (math.isfinite(rate) and rate > 0):
        raise input_error("phases", f"rate {text!r} in {part!r}", "a finite number > 0", "write e.g. all:1000@1e-4")
    return rate
