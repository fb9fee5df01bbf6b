"""Tasks of lm-evaluation-harness on a loaded model: by name, by preset, or from a folder of task files with local data."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import logging
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...environment import require
from ...errors import InputError, input_error
from .files import localize
from .presets import FOLDERS, paper_tasks
from .squad import squad_metrics

if TYPE_CHECKING:
    from ...model.causal_lm import CausalLM

PAPER = "paper"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tasks:
    """Tasks that are ready to run: their data is loaded.

    Attributes:
        names: of the tasks and groups.
        loaded: the harness's own objects, in the order of the names.
    """

    names: tuple[str, ...]
    loaded: tuple[Any, ...] = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskScore:
    """A model's result on one task or group.

    Attributes:
        items: items scored; 0 for a group.
        shots: solved examples put before each item.
        metrics: name -> {``value``, ``stderr`` (``None`` where the harness gives none), ``higher_is_better``}.
    """

    items: int
    shots: int
    metrics: Mapping[str, Mapping[str, Any]]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"items": self.items, "shots": self.shots, "metrics": {k: dict(v) for k, v in self.metrics.items()}}


@contextlib.contextmanager
def load_tasks(wanted: Sequence[str]) -> Iterator[Tasks]:
    """Find tasks and load their data, so that whatever is missing is known before a model runs.

    Args:
        wanted: names of lm-evaluation-harness (tasks, groups or tags); ``paper:LANGUAGE`` for the SALT paper's suite in a
            language; folders with task files (YAML of the harness), of which all tasks are taken. Data files that a task file
            names are relative to it. A task in a folder stands in for the harness's task of the same name, so local data can
            take the place of a download. Python functions that a task file refers to are run.

    Yields:
        The tasks.

    Raises:
        InputError: lm-eval is not installed, there is no such task or folder, a task file is broken, or the data is neither
            here nor to be had.
    """
    require("lm_eval", "eval", "tasks")
    folders = [Path(name) for name in wanted if _is_folder(name)]
    names: list[str] = []
    for name in wanted:
        preset, _, language = name.partition(":")
        if preset == PAPER:
            names += paper_tasks(language)
        elif not _is_folder(name):
            names.append(name)
    with tempfile.TemporaryDirectory(prefix="saltlm-tasks-", ignore_cleanup_errors=True) as scratch, _quiet():
        with squad_metrics():
            manager = _manager(folders, builtin=_builtin(wanted))
            for folder in folders:
                names += localize(manager, folder, scratch)
            names = list(dict.fromkeys(names))
            loaded = tuple(_load(manager, names))
        yield Tasks(names=tuple(names), loaded=loaded)


def run_tasks(
    lm: CausalLM,
    tasks: Tasks,
    *,
    shots: int | None = None,
    limit: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, TaskScore]:
    """Score a model on tasks, as lm-evaluation-harness does it for a Hugging Face model.

    Args:
        lm: the model.
        tasks: of :func:`load_tasks`.
        shots: solved examples before each item, in [0, inf); ``None`` is what the task says.
        limit: score the first items of each task only, in [1, inf); ``None`` scores all.
        batch_size: requests in a batch; ``None`` is 4 on a CPU and 16 elsewhere.
        seed: chooses the solved examples.
        progress: called with (answered requests, all requests so far).

    Returns:
        name -> result.

    Raises:
        InputError: an option out of range, or a tokenizer without a token to stand before an empty text.
    """
    check_numbers(shots, limit)
    if lm.start_id is None:
        expected = "a bos, eos or cls token, which the harness puts before an empty text"
        raise input_error(
            f"tokenizer of model {lm.name!r}", "no start token", expected, "give it one, or leave tasks out"
        )
    import torch

    with (
        _quiet() as warnings,
        _no_bars(),
        torch.random.fork_rng(devices=[lm.device] if lm.device.type == "cuda" else []),
    ):
        from lm_eval import simple_evaluate

        try:
            found = simple_evaluate(
                _harness_model(lm, batch_size or (4 if lm.device.type == "cpu" else 16), progress),
                tasks=list(tasks.loaded),
                # Any manager does: the tasks are loaded already.
                task_manager=_manager([], builtin=()),
                num_fewshot=shots,
                limit=limit,
                bootstrap_iters=1000,
                log_samples=False,
                random_seed=None,
                numpy_random_seed=None,
                torch_random_seed=seed,
                fewshot_random_seed=seed,
            )
        except (LookupError, ValueError, TypeError, AttributeError, AssertionError) as error:
            # What the harness raises for items that do not fit their task file.
            raise _misfit(tasks, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}") from error
        # Others it only warns of, and counts as wrong: items whose answer is none of their choices.
        if misfits := [warning for warning in warnings if "Label index" in warning]:
            raise _misfit(tasks, f"{len(misfits)} whose answer is none of their choices")
    return {name: _score(name, found) for name in found["results"]}


def _misfit(tasks: Tasks, reason: str) -> InputError:
    what, expected = f"tasks {', '.join(tasks.names)}", "items that fit their task file"
    return input_error(what, f"items that cannot be scored ({reason})", expected, "check the files against their data")


def check_numbers(shots: int | None, limit: int | None) -> None:
    """Refuse numbers that are out of range.

    Raises:
        InputError: one of them is.
    """
    if shots is not None and shots < 0:
        raise input_error("shots", repr(shots), "a whole number >= 0", "leave it out for what each task says")
    if limit is not None and limit < 1:
        raise input_error("limit", repr(limit), "a whole number >= 1", "leave it out to score all items")


def _is_folder(name: str) -> bool:
    path = Path(name)
    if path.is_dir():
        return True
    if path.is_absolute() or path.suffix or "/" in name:
        found = "a file" if path.exists() else "no such folder"
        raise input_error(
            f"task folder {name!r}", found, "a folder with task files of lm-eval (YAML)", "check the path"
        )
    return False


def _builtin(wanted: Sequence[str]) -> tuple[str, ...] | None:
    """Folders of the harness to look into: none, those of the preset, or (``None``) all."""
    named = [name for name in wanted if not _is_folder(name)]
    if any(name.partition(":")[0] != PAPER for name in named):
        return None
    return FOLDERS if named else ()


def _manager(folders: Sequence[Path], builtin: tuple[str, ...] | None) -> Any:
    from lm_eval import tasks as harness

    own = Path(harness.__file__).parent
    paths = [own / name for name in builtin or () if (own / name).is_dir()]
    return harness.TaskManager(include_path=[*paths, *map(Path.resolve, folders)], include_defaults=builtin is None)


def _load(manager: Any, names: Sequence[str]) -> Iterator[Any]:
    known = manager.all_tasks
    for name in names:
        if name not in manager.task_index:
            close = difflib.get_close_matches(name, known, n=3)
            advice = f"did you mean {' or '.join(close)}?" if close else "see: lm-eval ls tasks"
            expected = "a task of lm-eval, paper:LANGUAGE or a folder of task files"
            raise input_error("tasks", f"no task {name!r}", expected, advice)
    missing: list[str] = []
    built: list[Any] = []
    for name in names:
        try:
            found = manager.load([name])
        except Exception as error:
            if isinstance(error, InputError):
                raise
            dataset = (manager.task_index[name].cfg or {}).get("dataset_path")
            missing.append(f"{name} (data {dataset}: {type(error).__name__}: {' '.join(str(error).split())[:160]})")
            continue
        built += [*found.get("groups", {}).values()] or [*found["tasks"].values()]
    if missing:
        raise input_error(
            "tasks",
            f"{len(missing)} of {len(names)} that cannot be loaded: {'; '.join(missing)}",
            "data in the cache of the datasets library, a network to fetch it, or a folder of task files with local data",
            "run once where there is a network, or give a folder with a task file of the same name",
        )
    yield from built


def _harness_model(lm: CausalLM, batch_size: int, progress: Callable[[int, int], None] | None) -> Any:
    """The harness's model around ours; it counts what it answers."""
    import copy

    from lm_eval.models.huggingface import HFLM

    class Model(HFLM):
        """The harness's default length of an answer, which a short model has no room for, fits itself to the model.

        A task file that has other settings of generation leaves the length to the model; one without any asks for the default.
        """

        @property
        def max_gen_toks(self) -> int:
            """Half of the positions where the default leaves none for the question."""
            default = super().max_gen_toks
            return default if default < self.max_length else max(1, self.max_length // 2)

        def generate_until(self, requests: list[Any], **options: Any) -> list[str]:
            default = super().max_gen_toks
            fitted = []
            for request in requests:
                context, settings = request.args
                if settings.get("max_gen_toks") == default:
                    request = dataclasses.replace(
                        request, arguments=(context, {**settings, "max_gen_toks": self.max_gen_toks})
                    )
                fitted.append(request)
            return super().generate_until(fitted, **options)

    tokenizer = copy.deepcopy(lm.tokenizer)  # the harness may add a padding token
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token_id = lm.start_id
    model = Model(
        lm.model,
        backend="causal",
        tokenizer=tokenizer,
        batch_size=batch_size,
        max_length=lm.max_positions,
        prefix_token_id=lm.start_id,
    )
    if progress is not None:
        counter = _Counter(progress)
        model.set_cache_hook(counter)
        for name in ("loglikelihood", "loglikelihood_rolling", "generate_until"):
            setattr(model, name, counter.counted(getattr(model, name)))
    return model


class _Counter:
    """Stands where the harness would keep a cache of answers: it is told of each one."""

    def __init__(self, progress: Callable[[int, int], None]) -> None:
        self.progress, self.done, self.total = progress, 0, 0

    def counted(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def count(requests: list[Any], **options: Any) -> Any:
            self.total += len(requests)
            self.progress(self.done, self.total)
            return call(requests, **options)

        return count

    def add_partial(self, kind: str, request: Any, answer: Any) -> None:
        self.done += 1
        self.progress(min(self.done, self.total), self.total)


def _score(name: str, found: Mapping[str, Any]) -> TaskScore:
    metrics = {}
    row = found["results"][name]
    better = found.get("higher_is_better", {}).get(name, {})
    for key, value in row.items():
        metric, comma, filters = key.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        stderr = row.get(f"{metric}_stderr,{filters}")
        metrics[metric if filters == "none" else key] = {
            "value": _finite(value),
            "stderr": _finite(stderr) if isinstance(stderr, int | float) else None,
            "higher_is_better": better.get(metric),
        }
    items = found.get("n-samples", {}).get(name, {}).get("effective", 0)
    return TaskScore(items=items, shots=found.get("n-shot", {}).get(name) or 0, metrics=metrics)


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


@contextlib.contextmanager
def _quiet() -> Iterator[list[str]]:
    """No advice and no bars of the libraries on stderr; yields the list to which the harness's warnings go."""
    import datasets

    warnings: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: warnings.append(record.getMessage())
    logger = logging.getLogger("lm_eval")
    before, bars = (logger.level, logger.propagate), not datasets.are_progress_bars_disabled()
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING)
    logger.propagate = False
    datasets.disable_progress_bars()
    try:
        yield warnings
    finally:
        logger.removeHandler(handler)
        logger.level, logger.propagate = before
        if bars:
            datasets.enable_progress_bars()


@contextlib.contextmanager
def _no_bars() -> Iterator[None]:
    """The harness draws bars that no option of it turns off, and would mix with ours."""
    import tqdm
    from lm_eval.api import model, task
    from lm_eval.models import huggingface

    class NoBar(tqdm.tqdm):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **{**options, "disable": True})

    before = [(module, module.tqdm) for module in (model, task, huggingface)]
    try:
        for module, _ in before:
            module.tqdm = NoBar
        yield
    finally:
        for module, bar in before:
            module.tqdm = bar
