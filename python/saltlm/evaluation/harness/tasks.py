"""Run tasks of lm-evaluation-harness on a loaded model: named tasks, presets, and folders of task files with local data."""

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
from ...files.open_file import check_tree
from ...progress import Progress
from .files import localize
from .presets import FOLDERS, paper_tasks
from .squad import squad_metrics

if TYPE_CHECKING:
    from ...model.causal_lm import CausalLM

# Prefix of the preset of the SALT paper: ``paper:LANGUAGE``.
PAPER = "paper"
# Maximum length of a message of the harness inside an error message, in characters.
MESSAGE_CHARACTERS = 300


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tasks:
    """Tasks whose data is loaded.

    Attributes:
        names: names of the tasks and groups.
        loaded: the task objects of the harness, in the order of the names.
    """

    names: tuple[str, ...]
    loaded: tuple[Any, ...] = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskScore:
    """The result of a model on one task or group.

    Attributes:
        items: number of scored items; 0 for a group.
        shots: number of solved examples before each item.
        metrics: name -> {``value``, ``stderr`` (``None`` if the harness computes none), ``higher_is_better``}.
    """

    items: int
    shots: int
    metrics: Mapping[str, Mapping[str, Any]]

    def to_json(self) -> dict[str, Any]:
        """The result as values that :mod:`json` can write."""
        return {"items": self.items, "shots": self.shots, "metrics": {k: dict(v) for k, v in self.metrics.items()}}


@contextlib.contextmanager
def load_tasks(tasks: Sequence[str]) -> Iterator[Tasks]:
    """Find tasks and load their data, so that missing tasks and data are reported before a model runs.

    Args:
        tasks: names of lm-evaluation-harness (tasks, groups or tags); ``paper:LANGUAGE`` for the suite of the SALT paper in a
            language; folders with task files (YAML of the harness), of which all tasks are run. Data files that a task file
            names are relative to the task file. A task in a folder replaces the task of the harness with the same name, so
            local data can replace a download. Python functions that a task file names are executed.

    Yields:
        The tasks.

    Raises:
        InputError: lm-eval is not installed, a task or a folder does not exist, a task file is broken, or data is neither in
            the cache nor available for download.
    """
    require("lm_eval", "eval", "tasks")
    folders = [Path(name) for name in tasks if _is_folder(name)]
    for folder in folders:
        check_tree(folder, f"task folder {str(folder)!r}")
    names: list[str] = []
    for name in tasks:
        preset, _, language = name.partition(":")
        if preset == PAPER:
            names += paper_tasks(language)
        elif not _is_folder(name):
            names.append(name)
    with tempfile.TemporaryDirectory(prefix="saltlm-tasks-", ignore_cleanup_errors=True) as scratch, _quiet():
        with squad_metrics():
            manager = _manager(folders, builtin=_builtin(tasks))
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
    progress: Progress | None = None,
) -> dict[str, TaskScore]:
    """Score a model on tasks, as lm-evaluation-harness scores a Hugging Face model.

    Args:
        lm: the model.
        tasks: the tasks that :func:`load_tasks` yields.
        shots: number of solved examples before each item, in [0, inf); ``None`` for the number that the task defines.
        limit: number of items of each task, the first ones, in [1, inf); ``None`` for all items.
        batch_size: requests in a batch; ``None`` for 4 on a CPU and 16 on other devices.
        seed: seed of the choice of solved examples.
        progress: called with (answered requests, all requests so far).

    Returns:
        Name of a task or group -> result.

    Raises:
        InputError: an option is out of range, the tokenizer has no start token, or items do not fit their task file.
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
            results = simple_evaluate(
                _harness_model(lm, batch_size or (4 if lm.device.type == "cpu" else 16), progress),
                tasks=list(tasks.loaded),
                # The tasks are loaded, so the manager needs no folders.
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
            # The harness raises these for items that do not fit their task file.
            message = " ".join(str(error).split())[:MESSAGE_CHARACTERS]
            raise _misfit(tasks, f"{type(error).__name__}: {message}") from error
        # The harness only warns of items whose answer is none of their choices, and counts them as wrong answers.
        if misfits := [warning for warning in warnings if "Label index" in warning]:
            raise _misfit(tasks, f"{len(misfits)} whose answer is none of their choices")
    return {name: _score(name, results) for name in results["results"]}


def _misfit(tasks: Tasks, reason: str) -> InputError:
    what, expected = f"tasks {', '.join(tasks.names)}", "items that fit their task file"
    return input_error(what, f"items that cannot be scored ({reason})", expected, "check the files against their data")


def check_numbers(shots: int | None, limit: int | None) -> None:
    """Check the number of solved examples and the number of items.

    Raises:
        InputError: ``shots`` is negative, or ``limit`` is less than 1.
    """
    if shots is not None and shots < 0:
        raise input_error("shots", repr(shots), "a whole number >= 0", "leave it out for what each task says")
    if limit is not None and limit < 1:
        raise input_error("limit", repr(limit), "a whole number >= 1", "leave it out to score all items")


def _is_folder(name: str) -> bool:
    """Whether a name is that of an existing folder; a name that can only be a path must be one."""
    path = Path(name)
    if path.is_dir():
        return True
    if path.is_absolute() or path.suffix or "/" in name:
        problem = "a file" if path.exists() else "no such folder"
        raise input_error(
            f"task folder {name!r}", problem, "a folder with task files of lm-eval (YAML)", "check the path"
        )
    return False


def _builtin(tasks: Sequence[str]) -> tuple[str, ...] | None:
    """Folders of the harness that must be indexed: none, those of the preset, or all (``None``)."""
    names = [name for name in tasks if not _is_folder(name)]
    if any(name.partition(":")[0] != PAPER for name in names):
        return None
    return FOLDERS if names else ()


def _manager(folders: Sequence[Path], builtin: tuple[str, ...] | None) -> Any:
    """A task manager of the harness that has indexed these folders, the folders ``builtin`` of the harness first."""
    from lm_eval import tasks as harness

    harness_folder = Path(harness.__file__).parent
    paths = [harness_folder / name for name in builtin or () if (harness_folder / name).is_dir()]
    return harness.TaskManager(include_path=[*paths, *map(Path.resolve, folders)], include_defaults=builtin is None)


def _load(manager: Any, names: Sequence[str]) -> list[Any]:
    """The task objects of the harness, with their data; all tasks that fail are named in one error."""
    known = manager.all_tasks
    for name in names:
        if name not in manager.task_index:
            close = difflib.get_close_matches(name, known, n=3)
            advice = f"did you mean {' or '.join(close)}?" if close else "see: lm-eval ls tasks"
            expected = "a task of lm-eval, paper:LANGUAGE or a folder of task files"
            raise input_error("tasks", f"no task {name!r}", expected, advice)
    missing: list[str] = []
    loaded: list[Any] = []
    for name in names:
        try:
            objects = manager.load([name])
        except Exception as error:
            if isinstance(error, InputError):
                raise
            dataset = (manager.task_index[name].cfg or {}).get("dataset_path")
            missing.append(f"{name} (data {dataset}: {type(error).__name__}: {' '.join(str(error).split())[:160]})")
            continue
        loaded += [*objects.get("groups", {}).values()] or [*objects["tasks"].values()]
    if missing:
        raise input_error(
            "tasks",
            f"{len(missing)} of {len(names)} that cannot be loaded: {'; '.join(missing)}",
            "data in the cache of the datasets library, a network to fetch it, or a folder of task files with local data",
            "run once where there is a network, or give a folder with a task file of the same name",
        )
    return loaded


def _harness_model(lm: CausalLM, batch_size: int, progress: Progress | None) -> Any:
    """A model object of the harness that runs ``lm`` and reports the number of answered requests."""
    import copy

    from lm_eval.models.huggingface import HFLM

    class Model(HFLM):
        """Reduces the default length of an answer for a model with few positions.

        A task file with settings of generation but no length uses ``max_gen_toks`` of the model. A task file without settings
        asks for the default length of the harness, which ``generate_until`` replaces.
        """

        @property
        def max_gen_toks(self) -> int:
            """The default length; half of the positions if the default leaves none for the question."""
            default = super().max_gen_toks
            return default if default < self.max_length else max(1, self.max_length // 2)

        def generate_until(self, requests: list[Any], **options: Any) -> list[str]:
            """Generate answers; requests of the default length get ``max_gen_toks``."""
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
    """Counts requests and answers. The harness takes it for its cache of answers and passes each answer to it."""

    def __init__(self, progress: Progress) -> None:
        """Start counting at zero.

        Args:
            progress: called with (answered requests, all requests so far).
        """
        self.progress, self.done, self.total = progress, 0, 0

    def counted(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a method of the model that takes a list of requests, so that the requests are counted."""

        def count(requests: list[Any], **options: Any) -> Any:
            self.total += len(requests)
            self.progress(self.done, self.total)
            return call(requests, **options)

        return count

    def add_partial(self, method: str, request: Any, answer: Any) -> None:
        """Count one answer; the harness calls this method of its cache with positional arguments."""
        self.done += 1
        self.progress(min(self.done, self.total), self.total)


def _score(name: str, results: Mapping[str, Any]) -> TaskScore:
    """The result of one task or group, from the results of the harness."""
    metrics = {}
    row = results["results"][name]
    better = results.get("higher_is_better", {}).get(name, {})
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
    items = results.get("n-samples", {}).get(name, {}).get("effective", 0)
    return TaskScore(items=items, shots=results.get("n-shot", {}).get(name) or 0, metrics=metrics)


def _finite(value: float) -> float | None:
    """A finite float; ``None`` for NaN and infinity, which JSON cannot hold."""
    return float(value) if math.isfinite(value) else None


class _ListHandler(logging.Handler):
    """Appends the message of each warning to a list."""

    def __init__(self) -> None:
        """Start with an empty list."""
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Append the message of a record."""
        self.messages.append(record.getMessage())


@contextlib.contextmanager
def _quiet() -> Iterator[list[str]]:
    """Keep messages and progress bars of the libraries off stderr; yields the list of the warnings of the harness."""
    import datasets

    handler = _ListHandler()
    logger = logging.getLogger("lm_eval")
    before, bars = (logger.level, logger.propagate), not datasets.are_progress_bars_disabled()
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING)
    logger.propagate = False
    datasets.disable_progress_bars()
    try:
        yield handler.messages
    finally:
        logger.removeHandler(handler)
        logger.level, logger.propagate = before
        if bars:
            datasets.enable_progress_bars()


@contextlib.contextmanager
def _no_bars() -> Iterator[None]:
    """Disable the progress bars of the harness, which no option of it disables."""
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
