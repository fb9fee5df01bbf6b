"""The options of an adaptation, documented once and used by the Python API and the command line alike."""

from __future__ import annotations

import dataclasses
import math

from ..config import DTYPES, _number, _one_of, _whole
from ..errors import input_error
from .phases import Phase, parse_phases

SCHEDULES = ("cosine", "wsd", "constant")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
SPLITS = ("blank-line", "line")
SHARDINGS = ("none", "fsdp2")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdaptConfig:
    """How a model is trained further on text.

    Attributes:
        steps: optimizer steps of the one phase ``all``, in [1, inf); not used when ``phases`` is given.
        phases: what is trained, in order, as ``NAME:STEPS[@RATE[/EMBEDDINGS_RATE]]`` parted by commas. Names: ``rows`` (only
            rows that were not copied), ``embeddings`` (all embedding and head rows), ``all`` (every weight).
        seq_length: tokens in a block, in [8, the model's positions]; documents are packed into blocks and never see each other.
        batch_size: blocks on one device at once, in [1, inf).
        accumulate: batches summed up before a step, in [1, inf).
        learning_rate: peak rate of the weights that are no vocabulary rows, in (0, inf).
        embedding_learning_rate: peak rate of embedding and head rows, in (0, inf).
        schedule: course of the rates in each phase: ``cosine`` to zero, ``wsd`` (flat, then linear to zero) or ``constant``.
        warmup_steps: steps of linear rise at the start of each phase, in [0, inf); ``None`` is a tenth of the phase.
        decay_share: last part of a phase in which ``wsd`` falls, in (0, 1].
        weight_decay: decoupled decay of matrices, in [0, inf); never applied to frozen rows.
        adam_beta2: decay of AdamW's second moment, in (0, 1).
        max_grad_norm: gradients are scaled down to this norm, in (0, inf); ``None`` leaves them.
        precision: ``fp32``, ``bf16`` or ``fp16`` arithmetic over float32 weights; ``auto`` is bf16 on a GPU that
            has it, else fp32.
        gradient_checkpointing: recompute activations in the backward pass: less memory, about a third slower.
        compile: compile the body of the model by torch.compile.
        loss_chunk: tokens whose logits are held at once, in [1, inf); ``None`` takes as many as fit 2**25 logits.
        heldout: share of documents kept back for evaluation when no held-out text is given, in [0, 0.5].
        eval_steps: steps between evaluations on held-out text, in [1, inf); ``None`` is a tenth of all steps.
        eval_bytes: held-out text is cut to about this many bytes, in [1, inf).
        early_stop: stop after this many evaluations without a better one, and write the best weights however the run ends, in
            [1, inf); ``None`` never stops and writes the last. Row distillation does not count.
        save_steps: steps between checkpoints, in [1, inf).
        keep_checkpoints: checkpoints kept, the newest ones, in [1, inf).
        text_column: column or key that holds the text in jsonl, parquet and datasets.
        split_at: what parts documents in plain text: ``blank-line`` or ``line``.
        shuffle_documents: documents shuffled together at a time, in [1, inf).
        drop_overlap: leave training documents out that share text with the held-out text, rather than refuse.
        cross_documents: let documents in a block see each other, for models that cannot keep them apart.
        seed: seed of data order and dropout, in [0, 2**32).
        device: where training runs: ``auto``, ``cpu`` or ``cuda``.
        sharding: what each process of torchrun or accelerate launch holds: ``none`` is the whole model, ``fsdp2`` a slice of
            every weight and of its optimizer state.
        distill_rows: before the phases, train the new rows so that hidden states match those of the source model on the same
            text (Token Distillation); needs the source model.
        distill_steps: steps of that, in [1, inf).
        distill_source: folder or hub name of the source model; ``None`` takes the one that ``saltlm.json`` names.
        dtype: dtype of the written weights, one of :data:`DTYPES`; ``None`` keeps the checkpoint's own.
        trust_remote_code: let transformers run code that a checkpoint brings along.
        force: replace an existing output folder.

    Raises:
        InputError: a value is out of its range or not one of the names.
    """

    steps: int = 1000
    phases: str | None = None
    seq_length: int = 512
    batch_size: int = 1
    accumulate: int = 1
    learning_rate: float = 1e-4
    embedding_learning_rate: float = 1e-3
    schedule: str = "cosine"
    warmup_steps: int | None = None
    decay_share: float = 0.2
    weight_decay: float = 0.0
    adam_beta2: float = 0.95
    max_grad_norm: float | None = 1.0
    precision: str = "auto"
    gradient_checkpointing: bool = False
    compile: bool = False
    loss_chunk: int | None = None
    heldout: float = 0.01
    eval_steps: int | None = None
    eval_bytes: int = 100_000
    early_stop: int | None = None
    save_steps: int = 200
    keep_checkpoints: int = 2
    text_column: str = "text"
    split_at: str = "blank-line"
    shuffle_documents: int = 10_000
    drop_overlap: bool = False
    cross_documents: bool = False
    seed: int = 0
    device: str = "auto"
    sharding: str = "none"
    distill_rows: bool = False
    distill_steps: int = 200
    distill_source: str | None = None
    dtype: str | None = None
    trust_remote_code: bool = False
    force: bool = False

    def __post_init__(self) -> None:
        _one_of("schedule", self.schedule, SCHEDULES)
        _one_of("precision", self.precision, PRECISIONS)
        _one_of("split_at", self.split_at, SPLITS)
        _one_of("sharding", self.sharding, SHARDINGS)
        _one_of("device", self.device, ("auto", "cpu", "cuda"))
        if self.dtype is not None:
            _one_of("dtype", self.dtype, DTYPES)
        smallest = {"seq_length": 8, "warmup_steps": 0}
        for name in (
            "steps", "seq_length", "batch_size", "accumulate", "warmup_steps", "loss_chunk", "eval_steps", "eval_bytes",
            "early_stop", "save_steps", "keep_checkpoints", "shuffle_documents", "distill_steps",
        ):  # fmt: skip
            value, least = getattr(self, name), smallest.get(name, 1)
            if value is not None and not _whole(value, least, math.inf):
                raise input_error(name, repr(value), f"a whole number >= {least}", "choose another")
        for name in ("learning_rate", "embedding_learning_rate", "max_grad_norm"):
            value = getattr(self, name)
            if value is not None and not (_number(value) and value > 0):
                raise input_error(name, repr(value), "a finite number > 0", "choose another")
        for name, low, high in (
            ("weight_decay", 0, math.inf),
            ("heldout", 0, 0.5),
            ("decay_share", 1e-6, 1),
            ("adam_beta2", 1e-6, 1 - 1e-9),
        ):
            value = getattr(self, name)
            if not (_number(value) and low <= value <= high):
                raise input_error(name, repr(value), f"a number in [{low:g}, {high:g}]", "choose another")
        if not _whole(self.seed, 0, 2**32 - 1):
            raise input_error("seed", repr(self.seed), "a whole number in [0, 2**32)", "choose another seed")
        parse_phases(self)

    @property
    def schedule_of_phases(self) -> tuple[Phase, ...]:
        """The phases, in order."""
        return parse_phases(self)

    @property
    def needs_new_rows(self) -> bool:
        """Whether it must be known which rows were not copied."""
        return self.distill_rows or any(phase.name == "rows" for phase in self.schedule_of_phases)

    def to_json(self) -> dict[str, object]:
        """Plain values of all options, as saved in ``saltlm.json``."""
        return dataclasses.asdict(self)
