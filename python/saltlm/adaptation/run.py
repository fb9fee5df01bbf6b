"""Continual pre-training of a causal LM on text: the recipe (step 7)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..environment import quiet_transformers, require, versions
from ..files.hashing import sampled_digest
from ..files.json_files import read_json
from ..files.summary_file import SUMMARY, AdaptationRun, AdaptedSummary
from .checkpoints import RunFolder, config_identity, read_metrics
from .config import SEQ_LENGTH, AdaptConfig
from .metrics import HELDOUT, SOURCE, AdaptProgress, Recorder
from .text import Sources, open_streams, read_text

if TYPE_CHECKING:
    from .session import Session

# Files that make a model and its tokenizer.
MODEL_FILES = ("*.safetensors", "config.json", "tokenizer*", "*.model", "vocab*", "merges.txt", SUMMARY)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adaptation:
    """The result of a finished adaptation.

    Attributes:
        out: the written model folder.
        steps: number of finished optimizer steps; fewer than asked for after an early stop.
        kept_step: the step whose weights were written: the best one with early stopping, else the last one.
        tokens: number of predicted tokens in training.
        bytes: bytes of training text of these tokens.
        heldout: (step, bits per byte) of held-out text in the target language.
        source: the same in the source language; empty without such text.
        seconds: of all steps, without evaluations and checkpoints.
        main: whether this process wrote the files, among the processes of torchrun.
        warnings: sentences for the user, such as on damaged checkpoints.
    """

    out: Path
    steps: int
    kept_step: int
    tokens: int
    bytes: int
    heldout: Sequence[tuple[int, float]]
    source: Sequence[tuple[int, float]]
    seconds: float
    main: bool = True
    warnings: Sequence[str] = ()

    def _repr_html_(self) -> str:
        """What the training reached, and its curves, for notebooks."""
        from ..inspection.notebook import adaptation_html

        return adaptation_html(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values for ``--json``."""
        values = {**dataclasses.asdict(self), "out": str(self.out)}
        del values["main"], values["warnings"]  # the command writes the warnings to stderr
        return values


def adapt(
    model: str | Path,
    texts: Sources,
    out: str | Path,
    config: AdaptConfig | None = None,
    *,
    eval_texts: Sources | None = None,
    source_eval_texts: Sources | None = None,
    replay: Mapping[str | Path, float] | None = None,
    resume: bool = False,
    progress: Callable[[AdaptProgress], None] | None = None,
) -> Adaptation:
    """Train a causal LM further on text, in phases, and write the result as a model folder.

    During the run, ``out`` holds ``run.json``, ``metrics.jsonl`` (one line per step) and whole checkpoints. A run that was
    killed continues from its last checkpoint with ``resume``; on a CPU its metrics and weights are then bit for bit those of an
    uninterrupted run. At the end ``out`` becomes the model folder, with ``metrics.jsonl`` and a chart, without checkpoints.

    Under torchrun or accelerate launch every process calls this function; the first process writes.

    Args:
        model: folder or hub name of a causal LM, such as :func:`~saltlm.transfer` wrote.
        texts: training text, see :class:`~saltlm.text.corpus.Corpus`.
        out: folder to write.
        config: the options; ``None`` is all defaults.
        eval_texts: held-out text in the target language; ``None`` holds out a share of the documents of ``texts``.
        source_eval_texts: held-out text in the source language; ``None`` holds out a share of the replayed documents.
        replay: text to mix in, with its share of all blocks, each in (0, 1) and together below 1.
        resume: continue the run in ``out``, or start one if there is none.
        progress: called after each step.

    Returns:
        The figures of the run; the weights are in ``out``.

    Raises:
        InputError: a text, the model, the output or an option is bad, or no checkpoint to resume from is whole, and nothing has
            been written; or the disk is full, and the last checkpoint is safe.
        BackendError: the training diverged, or the file system failed; the message names the last checkpoint.
        KeyboardInterrupt: a signal came; a checkpoint was written first.
    """
    require("accelerate", "adapt", "adapt")
    with quiet_transformers():
        return _adapt(
            model,
            texts,
            Path(out).expanduser(),
            config or AdaptConfig(),
            (eval_texts, source_eval_texts),
            replay,
            resume,
            progress,
        )


def _adapt(
    model: str | Path,
    texts: Sources,
    out: Path,
    config: AdaptConfig,
    evaluation_texts: tuple[Sources | None, Sources | None],
    replay: Mapping[str | Path, float] | None,
    resume: bool,
    progress: Callable[[AdaptProgress], None] | None,
) -> Adaptation:
    from ..model.locate import resolve_model
    from .processes import find_processes
    from .session import load_session
    from .sharding import full_state

    source = resolve_model(str(model), f"model {str(model)!r}", None, None)[0]
    processes = find_processes(config)
    folder = RunFolder(out, main=processes.main, barrier=processes.barrier)
    folder.check(resume=resume, force=config.force, protected=[source])
    text = read_text(texts, *evaluation_texts, replay, config)
    config = _with_seq_length(config, source, str(model))
    identity = {
        "model": model_identity(source),
        **text.identity,
        "config": config_identity(config),
        "processes": processes.count,
    }
    checkpoint = folder.find(identity) if resume else None
    if resume and folder.finished:
        return read_finished(folder)
    state = {} if checkpoint is None else folder.state(checkpoint)
    session = load_session(
        source,
        str(model),
        config,
        processes,
        streams=lambda packer: open_streams(text, packer, config, state.get("marks", ())),
        shares=text.shares,
        heldout=text.heldout,
        source=text.source,
    )
    try:
        folder.start(identity, checkpoint)
        lines = folder.cut_metrics(-1 if checkpoint is None else state["step"])
        with Recorder(
            folder.metrics,
            steps=sum(phase.steps for phase in config.schedule_of_phases),
            rows=session.lm.rows,
            writes=processes.main,
            progress=progress,
            lines=lines,
        ) as recorder:
            kept_step = _train(session, folder, recorder, checkpoint, state)
        weights = full_state(session.lm.model, keep=processes.main)
        if processes.main:
            _finish(session, weights, folder, identity, str(model), kept_step)
        processes.barrier()
    finally:
        session.close()
        folder.release()
    return read_finished(folder)


def _with_seq_length(config: AdaptConfig, folder: Path, name: str) -> AdaptConfig:
    """The options with a ``seq_length`` that fits the model; it is part of the run's identity.

    Raises:
        InputError: the given ``seq_length`` is above the number of the model's positions.
    """
    from ..model.causal_lm import positions_in, resolve_length

    what = f"model {name!r}"
    positions = positions_in(folder, what, trust_remote_code=config.trust_remote_code)
    length = resolve_length("seq_length", config.seq_length, SEQ_LENGTH, positions, what)
    return dataclasses.replace(config, seq_length=length)


def _train(
    session: Session, folder: RunFolder, recorder: Recorder, checkpoint: Path | None, state: Mapping[str, Any]
) -> int:
    """Train; an interrupt says where the run can be resumed."""
    try:
        return session.train(folder, recorder, checkpoint, state)
    except KeyboardInterrupt as interrupt:
        if interrupt.args:
            raise
        # Not between two steps, but during the first evaluation, or by a second signal.
        last = folder.last()
        where = f"from {last.name}" if last else "from the beginning"
        raise KeyboardInterrupt(f"the same command with --resume goes on {where}") from None


def read_finished(folder: RunFolder) -> Adaptation:
    """The result of the finished run in a folder.

    Raises:
        InputError: ``saltlm.json`` is missing or broken.
    """
    summary = cast(AdaptedSummary, read_json(folder.out / SUMMARY))
    record = summary["adapted"]
    return Adaptation(
        out=folder.out,
        steps=record["steps"],
        kept_step=record.get("kept_step", record["steps"]),
        tokens=record["tokens"],
        bytes=record["bytes"],
        heldout=[(step, value) for step, value in record["heldout"]],  # JSON has lists for tuples
        source=[(step, value) for step, value in record["source"]],
        seconds=record["seconds"],
        main=folder.main,
        warnings=tuple(folder.warnings),
    )


def _finish(
    session: Session,
    weights: Mapping[str, Any],
    folder: RunFolder,
    identity: Mapping[str, Any],
    name: str,
    kept_step: int,
) -> None:
    """Write the model folder, with the record of the run."""
    from .. import __version__
    from .output import write_adapted

    lines, config = read_metrics(folder.metrics), session.config
    record: AdaptationRun = {
        "saltlm_version": __version__,
        "model": name,
        "phases": ",".join(f"{phase.name}:{phase.steps}" for phase in config.schedule_of_phases),
        "config": config.to_json(),
        "text": identity["text"],
        "replay": identity["replay"],
        "evaluation": identity["evaluation"],
        "processes": identity["processes"],
        "steps": lines[-1]["step"],
        "kept_step": kept_step,
        "tokens": max(line.get("tokens", 0) for line in lines),
        "bytes": round(max(line.get("bytes", 0) for line in lines)),
        "seconds": round(sum(line.get("seconds", 0) for line in lines), 1),
        "environment": versions(),
        "heldout": [(line["step"], line[HELDOUT]) for line in lines if HELDOUT in line],
        "source": [(line["step"], line[SOURCE]) for line in lines if SOURCE in line],
    }
    write_adapted(
        folder.out,
        session.folder,
        session.lm.model,
        weights,
        dtype=config.dtype,
        record=record,
        identity=identity,
        trust_remote_code=config.trust_remote_code,
    )


def model_identity(folder: Path) -> dict[str, str]:
    """File name -> digest of the files that make a model and its tokenizer.

    Args:
        folder: the model folder.

    Raises:
        InputError: a weight file is damaged. Its header is checked first: hashing a sparse file of a terabyte takes hours.
    """
    from ..model.safetensors_header import read_header

    paths = sorted({path for pattern in MODEL_FILES for path in folder.glob(pattern)})
    for path in paths:
        if path.suffix == ".safetensors" and path.is_file():
            read_header(path)
    return {path.name: sampled_digest(path) for path in paths if path.is_file()}
