"""All measurements of ``saltlm evaluate`` for several models on the same inputs; each model is loaded once."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import input_error
from ..options import documented, is_whole_number, option
from ..progress import Progress, StageProgress
from ..text.documents import read_documents
from .config import WINDOWS, EvaluateConfig, check_windows
from .evaluate import Evaluation, evaluate, read_heldout
from .intervals import Intervals, check_numbers, intervals

if TYPE_CHECKING:
    from ..model.causal_lm import CausalLM
    from .harness.tasks import Tasks, TaskScore

# Maximum length of a prompt that is the beginning of a document, in characters.
PROMPT_CHARACTERS = 80
# Headings of the command line.
STATISTICS, CONTINUATIONS, TASKS = "statistics", "continuations", "tasks"


@documented
@dataclasses.dataclass(frozen=True, kw_only=True)
class MeasureConfig:
    """What is measured in addition to bits per byte, and how.

    Raises:
        InputError: a number is out of range.
    """

    confidence: float = option(
        0.95, "Confidence level of the intervals over documents, a number in (0, 1).", group=STATISTICS
    )
    seed: int = option(
        0,
        "Seed of the bootstrap resamples behind the intervals, of continuations drawn with --temperature, and of the choice "
        "of solved examples for tasks, an integer >= 0.",
        group=STATISTICS,
    )
    samples: int = option(
        0,
        "Show how each model continues the beginnings of the first N documents, an integer >= 0.",
        group=CONTINUATIONS,
    )
    new_tokens: int = option(40, "Maximum length of a continuation in tokens, an integer >= 1.", group=CONTINUATIONS)
    temperature: float = option(
        0.0,
        "Sampling temperature of continuations, a number >= 0; 0 takes the most probable token at each step.",
        group=CONTINUATIONS,
    )
    shots: int | None = option(
        None,
        "Number of solved examples before each item of a task, an integer >= 0. Default: the number that the task defines.",
        group=TASKS,
    )
    limit: int | None = option(
        None, "Score only the first N items of each task, an integer >= 1. Default: all items.", group=TASKS
    )
    max_length: int = option(1024, "Length of a scoring window in tokens, an integer >= 2.", group=WINDOWS)
    stride: int | None = option(
        None,
        "Number of tokens by which the scoring window moves, an integer from 1 to --max-length - 1. "
        "Default: half of --max-length.",
        group=WINDOWS,
    )

    def __post_init__(self) -> None:
        check_numbers(self.confidence, self.seed)
        if not 0 <= self.temperature < float("inf"):
            raise input_error(
                "temperature", repr(self.temperature), "a finite number >= 0", "0 takes the likeliest token"
            )
        for name, minimum in (("samples", 0), ("new_tokens", 1), ("shots", 0), ("limit", 1)):
            value = getattr(self, name)
            if value is not None and not is_whole_number(value, minimum):
                raise input_error(name, repr(value), f"a whole number >= {minimum}", "leave it out for the default")
        check_windows(self.max_length, self.stride)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """The measurements of one model.

    Attributes:
        text: bits per byte on the text.
        retention: bits per byte on text in the source language; ``None`` if no such text was given.
        samples: (prompt, continuation) pairs.
        tasks: name of a task -> result.
    """

    text: Evaluation
    retention: Evaluation | None = None
    samples: tuple[tuple[str, str], ...] = ()
    tasks: Mapping[str, TaskScore] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SideBySide:
    """The measurements of several models.

    Attributes:
        models: name of a model -> its measurements.
        intervals: intervals of the bits per byte on the text.
        retention: intervals of the bits per byte on the text in the source language.
    """

    models: Mapping[str, Measured]
    intervals: Intervals
    retention: Intervals

    def to_json(self) -> dict[str, Any]:
        """Name of a model -> values that :mod:`json` can write.

        The values of a model are those of :meth:`Evaluation.to_json`, with ``bits_per_byte_interval`` and ``comparisons``
        (with each other model on the same documents), ``retention`` (the same values for the text in the source language,
        or ``None``), ``samples`` and ``tasks``.
        """
        plain = {}
        for name, measured in self.models.items():
            retention = measured.retention
            plain[name] = {
                **_with_interval(measured.text, name, self.intervals),
                "retention": None if retention is None else _with_interval(retention, name, self.retention),
                "samples": [{"prompt": prompt, "continuation": text} for prompt, text in measured.samples],
                "tasks": {task: score.to_json() for task, score in measured.tasks.items()},
            }
        return plain


def evaluate_models(
    models: Sequence[str | Path],
    texts: Sequence[str | Path],
    config: MeasureConfig = MeasureConfig(),
    *,
    retention: Sequence[str | Path] = (),
    prompts: Sequence[str] = (),
    tasks: Sequence[str] = (),
    device: str = "auto",
    dtype: str | None = None,
    gguf_file: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    progress: StageProgress | None = None,
) -> SideBySide:
    """Measure models on the same text: bits per byte with intervals, retention, continuations and tasks.

    Args:
        models: folders or hub names; a repeated one is measured once.
        texts: UTF-8 text files, as for :func:`saltlm.evaluate`.
        config: what to measure in addition to bits per byte, and how.
        retention: text files in the source language.
        prompts: texts to continue; the beginnings of ``config.samples`` documents are continued after them.
        tasks: as for :func:`saltlm.evaluation.harness.tasks.load_tasks`.
        device: as for :func:`saltlm.evaluate`.
        dtype: as for :func:`saltlm.evaluate`.
        gguf_file: name of the GGUF file in each model folder; ``None`` for models with safetensors weights.
        revision: revision of models on the hub.
        trust_remote_code: let transformers run code that a checkpoint contains.
        progress: called with (stage, done, total).

    Returns:
        The measurements, in the order of the models.

    Raises:
        InputError: as :func:`saltlm.evaluate`, :func:`saltlm.evaluation.generate.continuations` and
            :func:`saltlm.evaluation.harness.tasks.load_tasks`. Text and tasks are read before the first model is loaded.
    """
    documents = read_documents(texts)
    source_documents = read_documents(retention) if retention else []
    beginnings = [beginning(document) for document in documents[: config.samples]]
    names = list(dict.fromkeys(map(str, models)))
    for name in names:
        read_heldout(name)  # a broken saltlm.json is refused before the first model is loaded
    report: StageProgress = progress or (lambda stage, done, total: None)
    measured: dict[str, Measured] = {}
    with contextlib.ExitStack() as stack:
        loaded_tasks = None
        if tasks:
            from .harness.tasks import load_tasks

            report("tasks", 0, 0)
            loaded_tasks = stack.enter_context(load_tasks(tasks))
        for name in names:
            from ..model.causal_lm import load_causal_lm

            report(name, 0, 0)
            lm = load_causal_lm(
                name,
                device=device,
                dtype=dtype,
                gguf_file=gguf_file,
                revision=revision,
                trust_remote_code=trust_remote_code,
            )
            measured[name] = _measure(
                lm, documents, source_documents, (prompts, beginnings), loaded_tasks, config, report
            )
            del lm  # frees the memory before the next model is loaded
    texts_by_model = {name: one.text for name, one in measured.items()}
    retention_by_model = {name: one.retention for name, one in measured.items() if one.retention is not None}
    return SideBySide(
        models=measured,
        intervals=intervals(texts_by_model, confidence=config.confidence, seed=config.seed),
        retention=intervals(retention_by_model, confidence=config.confidence, seed=config.seed),
    )


def beginning(document: str, characters: int = PROMPT_CHARACTERS) -> str:
    """The first words of a document, at most half of the document, without white space at the end.

    Args:
        document: a text.
        characters: maximum length of the beginning, in [1, inf).

    Returns:
        The beginning, cut between words if it contains white space.

    Example:
        >>> beginning("Metsän keskellä oli vanha talo, jossa ei asunut kukaan.")
        'Metsän keskellä oli vanha'
    """
    length = min(characters, max(1, len(document) // 2))
    start = document[:length]
    if not document[length : length + 1].isspace() and len(words := start.rsplit(maxsplit=1)) == 2:
        start = words[0]
    return start.rstrip()


def _measure(
    lm: CausalLM,
    documents: list[str],
    source_documents: list[str],
    prompts: tuple[Sequence[str], Sequence[str]],
    tasks: Tasks | None,
    config: MeasureConfig,
    report: StageProgress,
) -> Measured:
    """Take all measurements of one model.

    Args:
        lm: the loaded model.
        documents: the text.
        source_documents: the text in the source language; empty for none.
        prompts: the prompts of the caller, and the beginnings of documents. Only a beginning may be shortened to fit.
        tasks: loaded tasks; ``None`` for none.
        config: the options.
        report: called with (stage, done, total).
    """
    from .generate import continuations

    def stage(suffix: str) -> Progress:
        return lambda done, total: report(f"{lm.name}{suffix}", done, total)

    windows = EvaluateConfig(max_length=config.max_length, stride=config.stride)
    text = evaluate(lm, config=windows, documents=documents, progress=stage(""))
    retention = None
    if source_documents:
        retention = evaluate(lm, config=windows, documents=source_documents, progress=stage(": source language"))
    samples: list[tuple[str, str]] = []
    for texts, shorten in zip(prompts, (False, True), strict=True):
        if texts:
            written = continuations(
                lm,
                texts,
                config.new_tokens,
                shorten=shorten,
                # Temperature 0 stands for greedy decoding, which continuations() selects by seed None.
                seed=config.seed if config.temperature else None,
                temperature=config.temperature or 1.0,
                progress=stage(": continuations"),
            )
            samples += zip(texts, written, strict=True)
    scores: Mapping[str, TaskScore] = {}
    if tasks is not None:
        from .harness.tasks import run_tasks

        scores = run_tasks(
            lm, tasks, shots=config.shots, limit=config.limit, seed=config.seed, progress=stage(": tasks")
        )
    return Measured(text=text, retention=retention, samples=tuple(samples), tasks=scores)


def _with_interval(evaluation: Evaluation, name: str, all_intervals: Intervals) -> dict[str, Any]:
    plain = evaluation.to_json()
    interval = all_intervals.models.get(name)
    plain["bits_per_byte_interval"] = None if interval is None else interval.to_json()
    plain["comparisons"] = [pair.to_json(name) for pair in all_intervals.of(name)]
    return plain
