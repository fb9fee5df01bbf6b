"""One probe: a transfer into a scratch folder, then a short adaptation in this process that writes no checkpoint."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..adaptation.config import AdaptConfig
from ..adaptation.metrics import HELDOUT, Recorder
from ..adaptation.text import TrainingText, open_streams
from ..config import TransferConfig
from ..errors import BackendError, input_error
from ..evaluation.evaluate import Evaluation, evaluate
from ..files.summary_file import Summary
from ..progress import StageProgress
from ..rows.tune_text import LEAST_BYTES, READ_BYTES, TEXT_BYTES, digest_of_rows, sample, size_of
from ..text.corpus import Overlap, take_bytes, training_documents
from ..text.documents import read_documents
from .config import Cell

if TYPE_CHECKING:
    from ..adaptation.session import Session

# Figures that a run takes over from a run of another cell with the same rows.
PROBED = (
    "bits_per_byte",
    "source_bits_per_byte",
    "document_nats",
    "document_bytes",
    "tokens_per_byte",
    "notes",
    "diverged",
    "seq_length",
    "training_bytes",
    "training_tokens",
    "step_seconds",
)


class NoCheckpoints:
    """A checkpoint folder that stores nothing: an interrupted probe starts again from step 0."""

    def __init__(self, scratch: Path) -> None:
        """Name a folder in the scratch folder, in which the trainer may write files of its own.

        Args:
            scratch: the scratch folder of the probe.
        """
        self.checkpoints = scratch / "trainer"

    def last(self) -> None:
        """No checkpoint."""

    def save(self, *arguments: Any, **options: Any) -> None:
        """Write nothing."""


def run_cell(
    cell: Cell,
    seed: int,
    *,
    inputs: tuple[Any, Any, Any],
    original: Path,
    text: TrainingText,
    config: AdaptConfig,
    scratch: Path,
    earlier: Sequence[Mapping[str, Any]],
    others: Sequence[Mapping[str, Any]],
    report: StageProgress,
) -> dict[str, Any]:
    """Transfer by the method of a cell and probe the result.

    Args:
        cell: the method; the cell of the original model is probed without a transfer.
        seed: seed of drawn rows. The seed of the probe is in ``config``.
        inputs: source, target and auxiliary vectors of the transfer.
        original: folder of the source model.
        text: text of the probe.
        config: the options of the adaptation.
        scratch: an empty folder; the caller removes the files in it.
        earlier: runs of this cell with other seeds. If one has the same rows, bit for bit, its evaluation at step 0 is
            reused. The options that a text chose in the first of them are reused too.
        others: runs of other cells. If one has the same seed and the same rows, bit for bit, its probe is reused.
        report: called with (stage, done, total).

    Returns:
        Values that :mod:`json` can write: ``bits_per_byte`` as [[step, value]]; ``source_bits_per_byte`` likewise, for the
        first and the last step; the costs of the held-out documents at the end; ``rows``, a digest of the built rows;
        ``tuning``, the options that a text or the self-check chose; ``self_check``; ``training_bytes``; ``seconds``;
        ``diverged``, the reason why the probe stopped early, or ``None``; ``same_as``, the label of the cell whose probe was
        reused, or ``None``.
    """
    from ..pipeline import transfer

    start_time = time.perf_counter()
    folder, rows = original, ""
    summary: Summary | None = None
    reads_text = False
    if cell.config is not None:
        folder = scratch / "model"
        reads_text = cell.tunes or cell.config.tune_text is not None
        options = cell.config
        if reads_text:
            options = _tuned(cell, cell.config, text, earlier, scratch)
        options = dataclasses.replace(options, seed=seed)
        result = transfer(*inputs, folder, options, progress=lambda *_: report("transfer", 0, 0))
        rows, summary = digest_of_rows(result), result.summary
        del result  # frees the matrices before the model is loaded
    tuning = None if summary is None else summary["tuning"]
    chosen = None if tuning is None else tuning["choice"]
    if earlier and reads_text:
        chosen = earlier[0]["tuning"]
    transfer_end = time.perf_counter()
    start = next((run for run in earlier if run["rows"] == rows), None)
    same = next((run for run in others if rows and (run["rows"], run["seed"]) == (rows, seed)), None)
    if same is None:
        figures = probe(folder, cell.label, text, config, scratch, start, report)
    else:
        figures = {name: same[name] for name in PROBED}
    return {
        **figures,
        "rows": rows,
        "tuning": chosen,
        "same_as": None if same is None else same["method"],
        "self_check": None if summary is None else summary["heldout"],
        "counts": None if summary is None else summary["counts"],
        "warnings": [] if summary is None else summary["warnings"],
        "transfer_seconds": round(transfer_end - start_time, 3),
        "seconds": round(time.perf_counter() - start_time, 3),
    }


def _tuned(
    cell: Cell, config: TransferConfig, text: TrainingText, earlier: Sequence[Mapping[str, Any]], scratch: Path
) -> TransferConfig:
    """The options of a transfer whose cell has options that a text chooses.

    Args:
        cell: the cell.
        config: its options.
        text: text of the probes.
        earlier: runs of the cell with other seeds; the first one fixes the options for all seeds.
        scratch: folder for the tuning text without its held-out documents.
    """
    if earlier:
        return dataclasses.replace(config, tune_text=None, **earlier[0]["tuning"])
    if cell.tunes or config.tune_text is None:
        documents = training_text(text)
    else:
        documents = tuning_documents(config.tune_text, text)
    clean = scratch / "tune.txt"
    clean.write_text("\n\n".join(documents) + "\n", encoding="utf-8")
    return dataclasses.replace(config, tune_text=str(clean))


def training_text(text: TrainingText) -> list[str]:
    """The first documents that the probes train on, for tuning.

    Args:
        text: text of the probes.

    Returns:
        Documents of up to :data:`READ_BYTES` bytes without those that overlap held-out text; empty if they have fewer than
        :data:`LEAST_BYTES` bytes.
    """
    overlaps_heldout = Overlap(text.heldout)
    first = take_bytes(training_documents(text.corpora[0], text.keep[0])(), READ_BYTES)
    documents = [document for document in first if not overlaps_heldout(document)]
    return documents if size_of(documents) >= LEAST_BYTES else []


def tuning_documents(path: str, text: TrainingText) -> list[str]:
    """The documents of a tuning text that are not held out.

    Args:
        path: file of the tuning text.
        text: text of the probes.

    Raises:
        InputError: the file cannot be read, or the documents that are not held out are too short.
    """
    overlaps_heldout = Overlap(text.heldout)
    documents = [
        document
        for document in read_documents(path, READ_BYTES)
        if text.keep[0](document) and not overlaps_heldout(document)
    ]
    if not documents:
        raise input_error(
            "tune_text",
            f"nothing in {path} that is not held out",
            "text beside the held-out one",
            "give another file, e.g. the training text",
        )
    sample(documents, TEXT_BYTES)  # raises where they are too short
    return documents


def probe(
    folder: Path,
    name: str,
    text: TrainingText,
    config: AdaptConfig,
    scratch: Path,
    start: Mapping[str, Any] | None,
    report: StageProgress,
) -> dict[str, Any]:
    """Adapt a model for the steps of a probe and evaluate it; the trained weights are dropped.

    Args:
        folder: the model folder.
        name: the label of the cell, for messages.
        text: text of the probe.
        config: the options of the adaptation.
        scratch: folder for files of the trainer.
        start: a run that begins with the same rows, whose evaluation at step 0 is reused; ``None`` for none.
        report: called with (stage, done, total).

    Returns:
        The figures named in :data:`PROBED`.
    """
    from ..adaptation.processes import find_processes
    from ..adaptation.session import load_session
    from ..environment import quiet_transformers

    steps = sum(phase.steps for phase in config.schedule_of_phases)
    with quiet_transformers():
        session = load_session(
            folder,
            name,
            config,
            find_processes(config),
            streams=lambda packer: open_streams(text, packer, config),
            shares=text.shares,
            heldout=text.heldout,
            source=text.source,
        )
        evaluations = _Evaluations(session, start)
        recorder = Recorder(
            None,
            steps=steps,
            rows=session.lm.rows,
            writes=True,
            progress=lambda state: report("probe", state.step, state.steps),
        )
        diverged = None
        try:
            with recorder:
                session.train(NoCheckpoints(scratch), recorder, None, {}, evaluate=evaluations)
            evaluations.finish()
        except BackendError as error:  # the loss is not finite; the recorder and the checkpoints write no file
            diverged = str(error).split(";")[0]
        finally:
            session.close()
    return {
        "bits_per_byte": [[line["step"], line[HELDOUT]] for line in recorder.lines if HELDOUT in line],
        "source_bits_per_byte": [[step, value] for step, value in zip((0, steps), evaluations.source, strict=False)],
        **evaluations.costs(whole=diverged is None),
        "diverged": diverged,
        "seq_length": config.seq_length,
        "training_bytes": round(recorder.bytes),
        "training_tokens": recorder.tokens,
        "step_seconds": round(sum(line.get("seconds", 0) for line in recorder.lines), 3),
    }


class _Evaluations:
    """Evaluates the model of a session during a probe and keeps the figures.

    Held-out text in the target language is evaluated at each call; text in the source language, which takes as long, only
    before the first and after the last step.

    Attributes:
        last: the last evaluation of the held-out text; ``None`` if there was none but a reused one.
        source: bits per byte on text in the source language, before the first and after the last step.
    """

    def __init__(self, session: Session, start: Mapping[str, Any] | None) -> None:
        """Prepare the evaluations; nothing is evaluated yet.

        Args:
            session: the model with its text.
            start: a run whose evaluation at step 0 is reused; ``None`` for none.
        """
        self.session, self.start = session, start
        self.last: Evaluation | None = None
        self.source: list[float] = []
        self._started = False

    def __call__(self) -> dict[str, float]:
        """Evaluate the held-out text; called before the first step and after some of the steps."""
        if not self._started:
            self._started = True
            if self.start is not None:
                self.source = [value for _, value in self.start["source_bits_per_byte"][:1]]
                return {HELDOUT: self.start["bits_per_byte"][0][1]}
            self._measure_source()
        self.last = self._measure(self.session.heldout)
        return {HELDOUT: self.last.bits_per_byte}

    def finish(self) -> None:
        """Evaluate the text in the source language after the last step."""
        self._measure_source()

    def costs(self, *, whole: bool) -> dict[str, Any]:
        """The costs of the held-out documents in the last evaluation.

        Args:
            whole: the probe has run to its end; the costs of one that diverged are ``None``.

        Returns:
            ``document_nats``, ``document_bytes``, ``tokens_per_byte`` and ``notes``.
        """
        if self.last is None:
            if self.start is None:
                raise ValueError("a probe without any evaluation has no costs")
            return {
                "document_nats": None,
                "document_bytes": None,
                "tokens_per_byte": self.start["tokens_per_byte"],
                "notes": self.start["notes"],
            }
        return {
            "document_nats": self.last.document_nats.tolist() if whole else None,
            "document_bytes": self.last.document_bytes.tolist(),
            "tokens_per_byte": self.last.tokens_per_byte,
            # Without the class of the model, by which a loaded model is named: the reports name the cell.
            "notes": [note.partition(": ")[2] for note in self.last.notes],
        }

    def _measure_source(self) -> None:
        if self.session.source:
            self.source.append(self._measure(self.session.source).bits_per_byte)

    def _measure(self, documents: Sequence[str]) -> Evaluation:
        with self.session.chunked.unwrapped():
            return evaluate((self.session.lm.model, self.session.lm.tokenizer), documents=documents)
