"""Options chosen by the self-check: those whose rows score best on hidden shared tokens, without any training.

:mod:`.tune_text` uses the same search where a text chooses the options.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar

from ..config import TransferConfig
from ..files.summary_file import ScoredText, SelfCheck, TuningRecord
from .hidden import Hidden
from .methods import method_of
from .methods.blend import BLEND_DEFAULTS, as_blend
from .self_check import check

Options = Mapping[str, Any]
Merit = TypeVar("Merit", float, tuple[bool, float])

# Values to try of each option, in this order. A search tries those options of the method that the user has not set.
GRID: Mapping[str, tuple[Any, ...]] = {
    "center": (False, True),
    "ridge": (None, 0.01, 0.1, 1.0, 10.0),
    "max_support": (None, 8, 32),
    "blend_weight": (None, 0.25, 0.5, 0.75),
}
# The same for a choice by text, whose trials take seconds: fewer ridges and supports. The self-check cannot judge lengths.
TEXT_GRID: Mapping[str, tuple[Any, ...]] = {
    "center": (False, True),
    "blend_length": (None, 1.0, 1.2, 1.4, 1.6, 1.8),
    "blend_weight": (None, 0.2, 0.35, 0.5, 0.65),
    "ridge": (None, 0.1),
    "max_support": (None, 32),
}
MAX_SWEEPS = (
    3  # over all options; a second sweep changes little, because only ridge and max_support depend on each other
)
# Figures of the self-check that are saved of each trial.
Shown = Literal["score", "signal", "noise", "offset", "relative_error", "cosine", "rank", "broken"]
SHOWN: tuple[Shown, ...] = ("score", "signal", "noise", "offset", "relative_error", "cosine", "rank", "broken")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tuning:
    """The trials of a search and the options that it chose.

    Attributes:
        grid: values tried of each option.
        trials: of each set of options, in the order of the trials: ``options``, and the figures named in :data:`SHOWN` or
            ``bits_per_byte``.
        choice: the chosen options: those of the best trial, or for a choice by text those that no other value of one option
            improves by enough.
        check: all figures of the chosen options, where the self-check chose.
        text: path, sha256 and size of the scored text, where a text chose.
    """

    grid: Mapping[str, tuple[Any, ...]]
    trials: list[dict[str, Any]]
    choice: dict[str, Any]
    check: SelfCheck | None = None
    text: ScoredText | None = None

    def to_json(self) -> TuningRecord:
        """Plain values for ``saltlm.json``, without ``check``, which is saved there as the self-check."""
        return {
            "grid": {name: list(values) for name, values in self.grid.items()},
            "trials": self.trials,
            "choice": self.choice,
            "text": self.text,
        }


def free_options(config: TransferConfig) -> dict[str, tuple[Any, ...]]:
    """The entries of :data:`GRID` (:data:`TEXT_GRID` with a text) that the method has and the user has left at the default."""
    grid = GRID if config.tune_text is None else TEXT_GRID
    default, options = TransferConfig(), method_of(config).options
    return {
        name: values
        for name, values in grid.items()
        if name in options and getattr(config, name) == getattr(default, name)
    }


def effective_values(config: TransferConfig, options: Options) -> tuple[Any, ...]:
    """The values that options take effect with: an option left at ``None`` and one set to its default are one trial."""
    chosen = dataclasses.replace(config, **options)
    if chosen.method in BLEND_DEFAULTS:
        chosen = as_blend(chosen)
    return tuple(getattr(chosen, name) for name in options)


def search(
    grid: Mapping[str, tuple[Any, ...]],
    config: TransferConfig,
    merit: Callable[[Options], Merit],
    better: Callable[[Merit, Merit], bool] = operator.gt,
) -> dict[str, Any]:
    """Coordinate search: set one option after the other to its best value, until a sweep over all options changes nothing.

    Args:
        grid: the values to try.
        config: where the search starts.
        merit: of a set of options, higher is better; of equal merits the one tried first is chosen.
        better: whether a merit (first argument) is so much higher than the present one (second) that the option changes.
    """
    best = {name: getattr(config, name) for name in grid}
    for _ in range(MAX_SWEEPS):
        before = dict(best)
        for name, values in grid.items():
            candidate = max(({**best, name: value} for value in values), key=merit)
            if better(merit(candidate), merit(best)):
                best = candidate
        if best == before:
            break
    return best


def tune(hidden: Hidden) -> Tuning:
    """Choose options by the self-check's score, with :func:`search`.

    Options whose rows the self-check calls broken lose to all others. The result depends only on the inputs, the options and
    the seed by which tokens were hidden.

    Args:
        hidden: from :func:`~saltlm.rows.hidden.hide_in`; the search starts at the options of its job.

    Returns:
        The choice and all trials.
    """
    config = hidden.job.config
    grid = free_options(config)
    trials: dict[tuple[Any, ...], tuple[Options, SelfCheck]] = {}

    def figures(options: Options) -> SelfCheck:
        key = effective_values(config, options)
        if key not in trials:
            trials[key] = options, check(hidden, **options)
        return trials[key][1]

    def merit(options: Options) -> tuple[bool, float]:
        return figures(options)["broken"] is None, figures(options)["score"]

    choice = search(grid, config, merit)
    shown = [
        {"options": dict(options), **{name: result[name] for name in SHOWN}} for options, result in trials.values()
    ]
    return Tuning(grid=grid, trials=shown, choice=choice, check=figures(choice))
