"""Continual pre-training of a causal LM on text: the recipe (step 7)."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import input_error
from ..files.hashing import sampled_digest
from ..text.corpus import Corpus, Overlap, is_heldout, take_bytes, training_documents
from .checkpoints import RunFolder, config_identity, read_metrics
from .config import SEQ_LENGTH, AdaptConfig
from .metrics import AdaptProgress, Recorder

Sources = str | Path | Iterable[str | Path]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adaptation:
    """A finished adaptation.

    Attributes:
        out: the written model folder.
        steps: optimizer steps done, fewer than asked for after an early stop.
        kept_step: the step whose weights were written: the best one with early stopping, else the last.
        tokens: predicted tokens trained on.
        bytes: bytes of text behind them.
        heldout: [(step, bits per byte)] of held-out text in the target language.
        source: the same in the source language; empty without such text.
        seconds: of the steps.
        main: whether this process is the one, among those of torchrun, that speaks.
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

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``--json``."""
        plain = {**dataclasses.asdict(self), "out": str(self.out)}
        del plain["main"]
        return plain


@dataclasses.dataclass(frozen=True)
class _Text:
    """The text of a run: corpora with their shares, and what is held out."""

    corpora: Sequence[Corpus]
    shares: Sequence[float]
    keep: Sequence[Callable[[str], bool]]
    heldout: Sequence[str]
    source: Sequence[str]
    identity: Mapping[str, Any]


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

    While it runs, ``out`` holds ``run.json``, ``metrics.jsonl`` (a line a step) and whole checkpoints. A run that was killed
    goes on with ``resume`` from the last one; on a CPU its metrics and weights are then those of a run that was not. At the
    end ``out`` becomes the model folder, with ``metrics.jsonl`` and a picture of the curve, and without the checkpoints.

    Under torchrun or accelerate launch every process calls this; the first one writes.

    Args:
        model: folder or hub name of a causal LM, such as :func:`~saltlm.transfer` wrote.
        texts: training text, see :class:`~saltlm.text.corpus.Corpus`.
        out: folder to write.
        config: the options; ``None`` is all defaults.
        eval_texts: held-out text in the target language; ``None`` keeps a share of the documents of ``texts`` back.
        source_eval_texts: held-out text in the source language; ``None`` keeps a share of the replayed documents back.
        replay: text to mix in, with its share of all blocks, each in (0, 1) and together below 1.
        resume: go on with the run in ``out``; starts one if there is none yet.
        progress: called after each step.

    Returns:
        What was done; the weights are in ``out``.

    Raises:
        InputError: a text, the model, the output or an option is bad; nothing has been written then, or the last checkpoint
            is safe.
        BackendError: the training diverged, or the file system failed; names the last checkpoint.
        KeyboardInterrupt: a signal came; a checkpoint was written first.
    """
    config = config or AdaptConfig()
    _need_accelerate()
    from ..environment import quiet_transformers

    with quiet_transformers():
        return _adapt(
            model, texts, Path(out).expanduser(), config, (eval_texts, source_eval_texts), replay, resume, progress
        )


def _adapt(
    model: str | Path, texts: Sources, out: Path, config: AdaptConfig, held_out: tuple[Sources | None, Sources | None],
    replay: Mapping[str | Path, float] | None, resume: bool, progress: Callable[[AdaptProgress], None] | None,
) -> Adaptation:  # fmt: skip
    from .processes import find_processes
    from .session import load_job
    from .sharding import whole_state

    source = _folder_of(model)
    this = find_processes(config)
    folder = RunFolder(out, main=this.main, barrier=this.barrier)
    folder.check(resume=resume, force=config.force, protected=[source])
    text = _read_text(texts, *held_out, replay, config)
    config = _sized(config, source, str(model))
    identity = {
        "model": model_identity(source), **text.identity, "config": config_identity(config), "processes": this.count,
    }  # fmt: skip
    checkpoint = folder.find(identity) if resume else None
    if resume and folder.finished:
        return read_finished(folder)
    state = {} if checkpoint is None else folder.state(checkpoint)
    job = load_job(
        source, str(model), config, this, streams=lambda packer: _streams(text, packer, config, state.get("marks", ())),
        shares=text.shares, heldout=text.heldout, source=text.source,
    )  # fmt: skip
    try:
        folder.start(identity, checkpoint)
        lines = folder.cut_metrics(-1 if checkpoint is None else state["step"])
        with Recorder(
            folder.metrics, steps=sum(phase.steps for phase in config.schedule_of_phases), rows=job.lm.rows,
            writes=this.main, progress=progress, lines=lines,
        ) as recorder:  # fmt: skip
            kept = _train(job, folder, recorder, checkpoint, state)
        weights = whole_state(job.lm.model, keep=this.main)
        if this.main:
            _finish(job, weights, folder, identity, str(model), kept)
        this.barrier()
    finally:
        job.close()
        folder.release()
    return read_finished(folder)


def _sized(config: AdaptConfig, folder: Path, name: str) -> AdaptConfig:
    """The options with the length of blocks that this model gets, which is part of what the run is."""
    from ..model.causal_lm import positions_in, resolve_length

    what = f"model {name!r}"
    positions = positions_in(folder, what, trust_remote_code=config.trust_remote_code)
    length = resolve_length("seq_length", config.seq_length, SEQ_LENGTH, positions, what)
    return dataclasses.replace(config, seq_length=length)


def _train(
    job: Any, folder: RunFolder, recorder: Recorder, checkpoint: Path | None, state: Mapping[str, Any]
) -> int:  # fmt: skip
    try:
        return job.train(folder, recorder, checkpoint, state)
    except KeyboardInterrupt as stopped:
        if stopped.args:
            raise
        # Not between two steps: during the first evaluation, or a second signal.
        last = folder.last()
        where = f"from {last.name}" if last else "from the beginning"
        raise KeyboardInterrupt(f"the same command with --resume goes on {where}") from None


def read_finished(folder: RunFolder) -> Adaptation:
    """What a finished run left in its folder."""
    record = json.loads((folder.out / "saltlm.json").read_bytes())["adapted"]
    pairs = {name: [(step, value) for step, value in record[name]] for name in ("heldout", "source")}
    numbers = {name: record[name] for name in ("steps", "tokens", "bytes", "seconds")}
    kept = record.get("kept_step", record["steps"])
    return Adaptation(out=folder.out, main=folder.main, kept_step=kept, **numbers, **pairs)


def _finish(
    job: Any, weights: Mapping[str, Any], folder: RunFolder, identity: Mapping[str, Any], name: str, kept: int
) -> None:  # fmt: skip
    from .. import __version__
    from ..environment import versions
    from .output import write_adapted

    lines = read_metrics(folder.metrics)
    phases = ",".join(f"{phase.name}:{phase.steps}" for phase in job.config.schedule_of_phases)
    record = {
        "saltlm_version": __version__, "model": name, "phases": phases, "config": job.config.to_json(),
        **{part: identity[part] for part in ("text", "replay", "evaluation", "processes")}, "steps": lines[-1]["step"],
        "kept_step": kept,
        "tokens": max(line.get("tokens", 0) for line in lines), "bytes": round(max(line.get("bytes", 0) for line in lines)),
        "seconds": round(sum(line.get("seconds", 0) for line in lines), 1), "environment": versions(),
    }  # fmt: skip
    for part in ("heldout", "source"):
        key = f"{part}_bits_per_byte"
        record[part] = [[line["step"], line[key]] for line in lines if key in line]
    write_adapted(
        folder.out, job.folder, job.lm.model, weights, dtype=job.config.dtype, record=record, identity=identity
    )


def model_identity(folder: Path) -> dict[str, str]:
    """Name -> sha256 of the files that make a model and its tokenizer."""
    names = ("*.safetensors", "config.json", "tokenizer*", "*.model", "vocab*", "merges.txt", "saltlm.json")
    return {
        path.name: sampled_digest(path)
        for path in sorted({p for name in names for p in folder.glob(name)})
        if path.is_file()
    }


def _folder_of(model: str | Path) -> Path:
    from ..model.locate import resolve_model

    return resolve_model(str(model), f"model {str(model)!r}", None, None)[0]


def _need_accelerate() -> None:
    if importlib.util.find_spec("accelerate") is None:
        raise input_error(
            "adapt", "no module 'accelerate'", "what training needs to be installed", 'run pip install "saltlm[adapt]"'
        )


def _read_text(
    texts: Sources, eval_texts: Sources | None, source_eval_texts: Sources | None,
    replay: Mapping[str | Path, float] | None, config: AdaptConfig,
) -> _Text:  # fmt: skip
    """Open the text, set the held-out part aside and refuse what overlaps."""
    how = {"column": config.text_column, "split_at": config.split_at}
    corpora = [Corpus(texts, **how)]
    ratios = _ratios(replay or {})
    corpora += [Corpus(path, **how) for path in ratios]
    heldout, keep_text = _held_out("text", corpora[:1], eval_texts, config, how)
    source, keep_replay = _held_out("replay", corpora[1:], source_eval_texts, config, how)
    # Each kind is kept off its own held-out text by how that was chosen; off the other's by what they share.
    keep_text, keep_replay = _without(keep_text, Overlap(source)), _without(keep_replay, Overlap(heldout))
    shares = [1 - sum(ratios.values()), *ratios.values()]
    given = [
        Corpus(paths, **how).fingerprint() if paths is not None else None for paths in (eval_texts, source_eval_texts)
    ]
    return _Text(
        corpora=corpora, shares=shares, keep=[keep_text, *[keep_replay] * len(ratios)], heldout=heldout, source=source,
        identity={
            "text": corpora[0].fingerprint(),
            "replay": [[*corpus.fingerprint(), share] for corpus, share in zip(corpora[1:], shares[1:], strict=True)],
            "evaluation": given,
        },
    )  # fmt: skip


def _ratios(replay: Mapping[str | Path, float]) -> dict[str, float]:
    ratios = {str(path): float(share) for path, share in replay.items()}
    if any(not 0 < share < 1 for share in ratios.values()) or sum(ratios.values()) >= 1:
        raise input_error(
            "replay", ", ".join(f"{path}:{share:g}" for path, share in ratios.items()),
            "shares of all text in (0, 1), together below 1", "write e.g. --replay english.txt:0.1",
        )  # fmt: skip
    return ratios


def _held_out(
    what: str, corpora: Sequence[Corpus], given: Sources | None, config: AdaptConfig, how: Mapping[str, str]
) -> tuple[list[str], Callable[[str], bool]]:
    """Held-out documents, and which documents may be trained on."""
    if given is not None:
        documents = take_bytes(Corpus(given, **how), config.eval_bytes)
        overlap = Overlap(documents)
        if not config.drop_overlap:
            _refuse_overlap(what, corpora, overlap)
        return documents, lambda document: not overlap(document)
    share = config.heldout
    if not corpora or not share:
        return [], lambda document: True

    def keep(document: str) -> bool:
        return not is_heldout(document, share)

    kept_back = (document for corpus in corpora for document in corpus if not keep(document))
    documents = take_bytes(kept_back, config.eval_bytes)
    if not documents and what == "text":
        raise input_error(
            "text", f"no document that falls into the held-out share {share:g}", "at least one",
            "give --eval-text, a larger --heldout, or --heldout 0 to train without evaluation",
        )  # fmt: skip
    return documents, keep


def _without(keep: Callable[[str], bool], overlap: Overlap) -> Callable[[str], bool]:
    return lambda document: keep(document) and not overlap(document)


def _refuse_overlap(what: str, corpora: Sequence[Corpus], overlap: Overlap) -> None:
    """Look for held-out text in text that can be read twice; from a stream, such documents are left out as they come."""
    count, first = 0, ""
    for corpus in corpora:
        for document in corpus if corpus.local else ():
            if overlap(document):
                count, first = count + 1, first or document
    if count:
        raise input_error(
            f"held-out {what}", f"{count} training documents that share text with it ({first[:40]!r}...)",
            "held-out text that is not trained on", "remove them, or leave them out of training by --drop-overlap",
        )  # fmt: skip


def _streams(text: _Text, packer: Any, config: AdaptConfig, marks: Sequence[Any]) -> list[Any]:
    """A stream of blocks for each corpus, at the place that the marks of a checkpoint say."""
    from .packing import Stream

    return [
        Stream(
            training_documents(corpus, keep), packer, seed=config.seed + place, window_documents=config.shuffle_documents,
            name=", ".join(corpus.sources), marks=marks[place] if marks else (),
        )
        for place, (corpus, keep) in enumerate(zip(text.corpora, text.keep, strict=True))
    ]  # fmt: skip
