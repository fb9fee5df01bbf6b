"""One probe: a transfer into a scratch folder, then the adaptation that it is, in this process and without a checkpoint."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..adaptation.config import SEQ_LENGTH, SHORTEST_SEQ_LENGTH, AdaptConfig
from ..adaptation.metrics import Recorder
from ..adaptation.packing import Packer, Stream
from ..adaptation.text import TrainingText, open_streams
from ..config import TransferConfig
from ..errors import BackendError, InputError, input_error
from ..evaluation.evaluate import Evaluation, evaluate
from ..model.causal_lm import resolve_length
from ..rows.tune_text import LEAST_BYTES, READ_BYTES, TEXT_BYTES, digest_of_rows, sample, size_of
from ..text.corpus import Overlap, take_bytes, training_documents
from ..text.documents import read_documents
from .config import Cell

Report = Callable[[str, int, int], None]
HELDOUT = "heldout_bits_per_byte"
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


class TooLittleText(InputError):
    """The text does not fill the blocks of a probe.

    Attributes:
        ratio: tokens of the source's own tokenizer by tokens of the new one, on the text there is.
    """

    ratio: float = 1.0


@dataclasses.dataclass(frozen=True)
class Blocks:
    """How the training text falls into blocks under both tokenizers.

    Attributes:
        length: tokens in a block of the new tokenizer.
        original: tokens in a block of the source's own, which holds as many bytes on average.
        needed: blocks that a probe takes.
        tokens_per_byte: of the new tokenizer and of the source's, on the text that was read for this, start and end tokens
            included.
    """

    length: int
    original: int
    needed: int
    tokens_per_byte: tuple[float, float]


def fitted_blocks(
    text: TrainingText, tokenizers: tuple[Any, Any], config: AdaptConfig, steps: int, positions: int | None
) -> Blocks:
    """The blocks of :func:`measure_blocks` under both tokenizers, none longer than the source model takes.

    Args:
        text: of the probes.
        tokenizers: the new one, and the source's own.
        config: sizes of batches; its ``seq_length`` must fit where it is given, and is chosen where it is not.
        steps: of a probe.
        positions: the longest input that the source model takes; ``None`` is no limit.

    Raises:
        InputError: the length given is too long, or the text would have to be seen more than once.
    """
    length = resolve_length("seq_length", config.seq_length, SEQ_LENGTH, positions, "the source model")
    while True:
        try:
            blocks = measure_blocks(text, tokenizers, dataclasses.replace(config, seq_length=length), steps)
            original, ratio, fault = blocks.original, blocks.original / blocks.length, None
        except TooLittleText as error:  # shorter blocks may do, where these must be shortened anyway
            original, ratio, fault = round(length * error.ratio), error.ratio, error
        if positions is None or original <= positions:
            if fault is not None:
                raise fault
            return blocks
        if config.seq_length is not None or length == SHORTEST_SEQ_LENGTH:
            raise input_error(
                "seq_length",
                f"{length}, {original} tokens with the source's own tokenizer",
                f"at most the {positions} positions of the source model",
                "choose less, or leave it out",
            )
        length = max(SHORTEST_SEQ_LENGTH, min(length - 1, int(positions / ratio)))


def measure_blocks(text: TrainingText, tokenizers: tuple[Any, Any], config: AdaptConfig, steps: int) -> Blocks:
    """Read as much text as a probe takes, as the probe will read it, and count its tokens by both tokenizers.

    Args:
        text: of the probes.
        tokenizers: the new one, and the source's own.
        config: length of blocks, which it must name, and sizes of batches.
        steps: of a probe.

    Raises:
        TooLittleText: the text would have to be seen more than once.
    """
    packers = [Packer(tokenizer, rows=2**31, length=config.seq_length) for tokenizer in tokenizers]
    reader = Stream(
        training_documents(text.corpora[0], text.keep[0]), packers[0], seed=0, window_documents=config.shuffle_documents
    )
    needed = steps * config.batch_size * config.accumulate
    totals, size, read, blocks, length = np.zeros(2), 0, 0, 0, 0
    windows: list[int] = []
    try:
        while window := reader.read_window(0, read):
            read += len(window)
            size += sum(len(document.encode(errors="surrogatepass")) for document in window)
            counts = [sum(map(len, packer.encode(window))) for packer in packers]
            totals += counts
            windows.append(counts[1])
            blocks += counts[0] // config.seq_length
            if not length and blocks >= needed:
                length = max(8, round(config.seq_length * totals[1] / totals[0]))
            if length and sum(count // length for count in windows) >= needed:
                return Blocks(config.seq_length, length, needed, (totals[0] / size, totals[1] / size))
    finally:
        reader.close()
    if length:
        found = f"{sum(count // length for count in windows):,} blocks of {length} tokens of the source's own tokenizer"
    else:
        found = f"{blocks:,} blocks of {config.seq_length} tokens"
    fault = input_error(
        "text",
        f"{size:,} bytes to train on, {found}",
        f"the {needed:,} blocks that {steps:,} steps take, none of them twice",
        "give more text, or fewer --probe-steps, or a shorter --seq-length",
    )
    error = TooLittleText(str(fault))
    error.ratio = float(totals[1] / totals[0]) if totals[0] else 1.0
    raise error


class NoCheckpoints:
    """Stands where an adaptation has its folder of checkpoints: a probe that is cut off starts anew."""

    def __init__(self, scratch: Path) -> None:
        self.checkpoints = scratch / "trainer"

    def last(self) -> None:
        """No checkpoint."""

    def save(self, *arguments: Any, **options: Any) -> None:
        """Nothing."""


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
    report: Report,
) -> dict[str, Any]:
    """Transfer and probe.

    Args:
        cell: what to build; the original model is probed as it is.
        seed: of drawn rows; that of the probe is in ``config``.
        inputs: source, target and auxiliary vectors of the transfer.
        original: folder of the source model.
        text: of the probe.
        config: the adaptation that the probe is.
        scratch: an empty folder; what is left in it is the caller's to remove.
        earlier: runs of this cell with other seeds; step 0 of one with the same rows, bit for bit, is taken over, and so are
            the options that a text has chosen for the first.
        others: runs of other cells; the probe of one with the same seed and the same rows, bit for bit, is taken over.
        report: called with (stage, done, total).

    Returns:
        Plain values: ``bits_per_byte`` [[step, value]], ``source_bits_per_byte`` likewise for first and last step, costs of
        the held-out documents at the end, ``rows`` (a hash of those built), ``tuning`` (what a text or the self-check chose),
        ``self_check``, ``training_bytes``, ``seconds``, what stopped a probe that diverged, and ``same_as``, the other cell
        whose probe this one is.
    """
    from ..pipeline import transfer

    began = time.perf_counter()
    folder, rows, summary = original, "", {}
    if cell.config is not None:
        folder = scratch / "model"
        options = dataclasses.replace(_tuned(cell, text, earlier, scratch), seed=seed)
        made = transfer(*inputs, folder, options, progress=lambda *_: report("transfer", 0, 0))
        rows, summary = digest_of_rows(made), made.summary
        del made  # the matrices need not lie beside the model that is about to be loaded
    chosen = (summary.get("tuning") or {}).get("choice")
    if earlier and cell.config is not None and _reads_text(cell):
        chosen = earlier[0]["tuning"]
    built = time.perf_counter()
    start = next((run for run in earlier if run["rows"] == rows), None)
    same = next((run for run in others if rows and (run["rows"], run["seed"]) == (rows, seed)), None)
    if same is None:
        found = probe(folder, cell.label, text, config, scratch, start, report)
    else:
        found = {name: same[name] for name in PROBED}
    return {
        **found,
        "rows": rows,
        "tuning": chosen,
        "same_as": None if same is None else same["method"],
        **{name: summary.get(key) for name, key in (("self_check", "heldout"), ("counts", "counts"))},
        "warnings": summary.get("warnings", []),
        "transfer_seconds": round(built - began, 3),
        "seconds": round(time.perf_counter() - began, 3),
    }


def _reads_text(cell: Cell) -> bool:
    return cell.tunes or cell.config.tune_text is not None


def _tuned(cell: Cell, text: TrainingText, earlier: Sequence[Mapping[str, Any]], scratch: Path) -> TransferConfig:
    """With a text to tune by that holds nothing of what is measured on, or with what the first seed's run has chosen."""
    config = cell.config
    if not _reads_text(cell):
        return config
    if earlier:
        return dataclasses.replace(config, tune_text=None, **earlier[0]["tuning"])
    documents = text_at_hand(text) if cell.tunes else tuning_documents(config.tune_text, text)
    clean = scratch / "tune.txt"
    clean.write_text("\n\n".join(documents) + "\n", encoding="utf-8")
    return dataclasses.replace(config, tune_text=str(clean))


def text_at_hand(text: TrainingText) -> list[str]:
    """The documents that the probes train on, those at the beginning of a large text; none where they are too little."""
    held = Overlap(text.heldout)
    first = take_bytes(training_documents(text.corpora[0], text.keep[0])(), READ_BYTES)
    documents = [document for document in first if not held(document)]
    return documents if size_of(documents) >= LEAST_BYTES else []


def tuning_documents(path: str, text: TrainingText) -> list[str]:
    """The documents of a text to tune by that are not held out.

    Raises:
        InputError: too little of it is left.
    """
    held = Overlap(text.heldout)
    kept = (document for document in read_documents(path, READ_BYTES) if text.keep[0](document))
    documents = [document for document in kept if not held(document)]
    if not documents:
        raise input_error(
            "tune_text",
            f"nothing in {path} that is not held out",
            "text beside the held-out one",
            "give another file, e.g. the training text",
        )
    sample(documents, TEXT_BYTES)
    return documents


def probe(
    folder: Path,
    name: str,
    text: TrainingText,
    config: AdaptConfig,
    scratch: Path,
    start: Mapping[str, Any] | None,
    report: Report,
) -> dict[str, Any]:
    """The steps of an adaptation and its evaluations; nothing is kept but their figures."""
    from ..adaptation.processes import find_processes
    from ..adaptation.session import load_session
    from ..environment import quiet_transformers

    steps = sum(phase.steps for phase in config.schedule_of_phases)
    with quiet_transformers():
        job = load_session(
            folder,
            name,
            config,
            find_processes(config),
            streams=lambda packer: open_streams(text, packer, config),
            shares=text.shares,
            heldout=text.heldout,
            source=text.source,
        )
        taker = _Evaluations(job, start)
        recorder = Recorder(
            None,
            steps=steps,
            rows=job.lm.rows,
            writes=True,
            progress=lambda found: report("probe", found.step, found.steps),
        )
        diverged = None
        try:
            with recorder:
                job.train(NoCheckpoints(scratch), recorder, None, {}, evaluate=taker)
            taker.finish()
        except BackendError as error:  # of the loss: there is no file that could fail
            diverged = str(error).split(";")[0]
        finally:
            job.close()
    return {
        "bits_per_byte": [[line["step"], line[HELDOUT]] for line in recorder.lines if HELDOUT in line],
        "source_bits_per_byte": [[step, value] for step, value in zip((0, steps), taker.source, strict=False)],
        **taker.costs(whole=diverged is None),
        "diverged": diverged,
        "seq_length": config.seq_length,
        "training_bytes": round(recorder.bytes),
        "training_tokens": recorder.tokens,
        "step_seconds": round(sum(line.get("seconds", 0) for line in recorder.lines), 3),
    }


class _Evaluations:
    """Held-out text after steps; source-language text before the first and after the last alone, since it costs as much."""

    def __init__(self, job: Any, start: Mapping[str, Any] | None) -> None:
        self.job, self.start = job, start
        self.last: Evaluation | None = None
        self.source: list[float] = []
        self._begun = False

    def __call__(self) -> dict[str, float]:
        begun, self._begun = self._begun, True
        if not begun and self.start is not None:
            self.source = [value for _, value in self.start["source_bits_per_byte"][:1]]
            return {HELDOUT: self.start["bits_per_byte"][0][1]}
        if not begun:
            self._measure_source()
        self.last = self._measure(self.job.heldout)
        return {HELDOUT: self.last.bits_per_byte}

    def finish(self) -> None:
        """After the last step."""
        self._measure_source()

    def costs(self, *, whole: bool) -> dict[str, Any]:
        """Costs of the held-out documents at the end, and what the tokenizer makes of them."""
        if self.last is None:
            return {name: self.start[name] for name in ("tokens_per_byte", "notes")} | {
                "document_nats": None,
                "document_bytes": None,
            }
        return {
            "document_nats": self.last.document_nats.tolist() if whole else None,
            "document_bytes": self.last.document_bytes.tolist(),
            "tokens_per_byte": self.last.tokens_per_byte,
            "notes": [note.partition(": ")[2] for note in self.last.notes],  # by the label, not the kind of model
        }

    def _measure_source(self) -> None:
        if self.job.source:
            self.source.append(self._measure(self.job.source).bits_per_byte)

    def _measure(self, documents: Sequence[str]) -> Evaluation:
        with self.job.chunked.unwrapped():
            return evaluate((self.job.lm.model, self.job.lm.tokenizer), documents=documents)
