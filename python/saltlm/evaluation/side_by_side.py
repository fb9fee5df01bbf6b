"""Everything ``saltlm evaluate`` measures, for several models on the same inputs, each model loaded once."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import input_error
from ..options import documented, is_whole_number, option
from ..text.documents import read_documents
from .evaluate import Evaluation, evaluate
from .intervals import Intervals, check_numbers, intervals
from .self_check_record import read_heldout

if TYPE_CHECKING:
    from .harness.tasks import TaskScore

# Characters of a document that are shown as a prompt, to the last whole word.
PROMPT_CHARACTERS = 80
# Headings of the command line.
STATISTICS, CONTINUATIONS, TASKS, WINDOWS = "statistics", "continuations", "tasks", "scoring windows"


@documented
@dataclasses.dataclass(frozen=True, kw_only=True)
class MeasureConfig:
    """What is measured beside bits per byte, and how.

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
        for name, least in (
            ("samples", 0),
            ("new_tokens", 1),
            ("shots", 0),
            ("limit", 1),
            ("max_length", 2),
            ("stride", 1),
        ):
            value = getattr(self, name)
            if value is not None and not is_whole_number(value, least):
                raise input_error(name, repr(value), f"a whole number >= {least}", "leave it out for the default")
        if self.stride is not None and self.stride >= self.max_length:
            raise input_error(
                "stride", f"{self.stride}", f"less than max_length {self.max_length}", "leave it out for half"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """What was found for one model.

    Attributes:
        text: bits per byte on the text.
        retention: bits per byte on text of the source language, if there was any.
        samples: (prompt, continuation) pairs.
        tasks: task -> result.
    """

    text: Evaluation
    retention: Evaluation | None = None
    samples: tuple[tuple[str, str], ...] = ()
    tasks: Mapping[str, TaskScore] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SideBySide:
    """What was found for several models.

    Attributes:
        models: name -> what was found.
        intervals: of the bits per byte on the text.
        retention: intervals on the text of the source language.
    """

    models: Mapping[str, Measured]
    intervals: Intervals
    retention: Intervals

    def to_json(self) -> dict[str, Any]:
        """Model -> plain values.

        They are those of its evaluation, with ``bits_per_byte_interval`` and ``comparisons`` (with each other model on the
        same documents), ``retention`` (the same on the source language's text, or ``None``), ``samples`` and ``tasks``.
        """
        plain = {}
        for name, found in self.models.items():
            kept = found.retention
            plain[name] = {
                **_with_interval(found.text, name, self.intervals),
                "retention": None if kept is None else _with_interval(kept, name, self.retention),
                "samples": [{"prompt": prompt, "continuation": text} for prompt, text in found.samples],
                "tasks": {task: score.to_json() for task, score in found.tasks.items()},
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
    progress: Callable[[str, int, int], None] | None = None,
) -> SideBySide:
    """Measure models on the same text: bits per byte with intervals, retention, continuations and tasks.

    Args:
        models: folders or hub names.
        texts: UTF-8 text files, as for :func:`saltlm.evaluate`.
        config: what else to measure, and how.
        retention: text files of the source language.
        prompts: texts to continue, before the beginnings of documents that ``config.samples`` asks for.
        tasks: as for :func:`saltlm.evaluation.harness.tasks.load_tasks`.
        device: as for :func:`saltlm.evaluate`.
        dtype: as for :func:`saltlm.evaluate`.
        gguf_file: name of the GGUF file inside the folders, for models that are one.
        revision: of the models on the hub.
        trust_remote_code: let transformers run code that a checkpoint brings along.
        progress: called with (stage, done, total).

    Returns:
        The results, in the order of the models.

    Raises:
        InputError: as :func:`saltlm.evaluate`, :func:`saltlm.evaluation.generate.continuations` and :func:`saltlm.evaluation.harness.tasks.load_tasks`;
            text and tasks are read before the first model is.
    """
    documents = read_documents(texts)
    kept = read_documents(retention) if retention else []
    beginnings = [beginning(document) for document in documents[: config.samples]]
    names = list(dict.fromkeys(map(str, models)))
    for name in names:
        read_heldout(name)  # a broken report is said before anything runs
    report = progress or (lambda stage, done, total: None)
    found: dict[str, Measured] = {}
    with contextlib.ExitStack() as stack:
        ready = None
        if tasks:
            from .harness.tasks import load_tasks

            report("tasks", 0, 0)
            ready = stack.enter_context(load_tasks(tasks))
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
            found[name] = _measure(lm, documents, kept, (prompts, beginnings), ready, config, report)
            del lm
    options = {"confidence": config.confidence, "seed": config.seed}
    return SideBySide(
        models=found,
        intervals=intervals({name: m.text for name, m in found.items()}, **options),
        retention=intervals({name: m.retention for name, m in found.items() if m.retention}, **options),
    )


def beginning(document: str, characters: int = PROMPT_CHARACTERS) -> str:
    """The first words of a document, at most half of it, without white space at the end.

    Args:
        document: some text.
        characters: at most this many, in [1, inf).

    Returns:
        Its beginning, cut at white space where there is some.

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
    lm: Any,
    documents: list[str],
    kept: list[str],
    prompts: tuple[Sequence[str], Sequence[str]],
    tasks: Any,
    config: MeasureConfig,
    report: Any,
) -> Measured:
    """Everything that is measured of one model; ``prompts`` are those given, and beginnings of documents."""
    from .generate import continuations

    def stage(words: str) -> Callable[[int, int], None]:
        return lambda done, total: report(f"{lm.name}{words}", done, total)

    windows = {"max_length": config.max_length, "stride": config.stride}
    text = evaluate(lm, documents=documents, **windows, progress=stage(""))
    retained = None
    if kept:
        retained = evaluate(lm, documents=kept, **windows, progress=stage(": source language"))
    samples: list[tuple[str, str]] = []
    drawn = {"seed": config.seed, "temperature": config.temperature} if config.temperature else {}
    for texts, shorten in zip(prompts, (False, True), strict=True):
        if texts:
            written = continuations(
                lm, texts, config.new_tokens, shorten=shorten, **drawn, progress=stage(": continuations")
            )
            samples += zip(texts, written, strict=True)
    scores: Mapping[str, TaskScore] = {}
    if tasks is not None:
        from .harness.tasks import run_tasks

        options = {"shots": config.shots, "limit": config.limit, "seed": config.seed}
        scores = run_tasks(lm, tasks, **options, progress=stage(": tasks"))
    return Measured(text=text, retention=retained, samples=tuple(samples), tasks=scores)


def _with_interval(evaluation: Evaluation, name: str, found: Intervals) -> dict[str, Any]:
    plain = evaluation.to_json()
    interval = found.models.get(name)
    plain["bits_per_byte_interval"] = None if interval is None else interval.to_json()
    plain["comparisons"] = [pair.to_json(name) for pair in found.of(name)]
    return plain
