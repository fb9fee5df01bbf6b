"""Options chosen by the self-check: the ones whose rows score best on hidden shared tokens, without any training.

How they are searched, and what is tried, is the same where a text chooses them (:mod:`.tune_text`).
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Mapping
from typing import Any

from ..config import TransferConfig
from .hidden import Hidden
from .self_check import check

# What is tried, an option a line, in this order; of a method's options those that are here and that the user has not set.
GRID: Mapping[str, tuple[Any, ...]] = {
    "center": (False, True),
    "ridge": (None, 0.01, 0.1, 1.0, 10.0),
    "max_support": (None, 8, 32),
    "blend_weight": (None, 0.25, 0.5, 0.75),
}
# A text's: its trials cost seconds each, so that fewer strengths are tried; the self-check cannot tell lengths apart.
TEXT_GRID: Mapping[str, tuple[Any, ...]] = {
    "center": (False, True),
    "blend_length": (None, 1.0, 1.2, 1.4, 1.6, 1.8),
    "blend_weight": (None, 0.2, 0.35, 0.5, 0.65),
    "ridge": (None, 0.1),
    "max_support": (None, 32),
}
SWEEPS = 3  # over all options at most; a second one changes little, for ridge and cap alone depend on each other
SHOWN = ("score", "signal", "noise", "offset", "relative_error", "cosine", "rank", "broken")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tuning:
    """What was tried and what was chosen.

    Attributes:
        grid: the values of each option that was free.
        trials: for each set of options tried, in order, ``options`` and the figures named in :data:`SHOWN`, or
            ``bits_per_byte``.
        choice: the options chosen: those of the best trial, or by a text of one that no other option betters by enough.
        check: all figures of that trial, where the self-check chose.
        text: path, sha256, and the size of what was scored, where a text chose.
    """

    grid: Mapping[str, tuple[Any, ...]]
    trials: list[dict[str, Any]]
    choice: dict[str, Any]
    check: dict[str, Any] | None = None
    text: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values, as saved in ``saltlm.json``; the best trial's figures stand there already."""
        return {
            "grid": {name: list(values) for name, values in self.grid.items()},
            "trials": self.trials,
            "choice": self.choice,
            "text": self.text,
        }


def free_options(config: TransferConfig) -> dict[str, tuple[Any, ...]]:
    """What of :data:`GRID`, or with a text of :data:`TEXT_GRID`, the method knows and the user has left at its default."""
    grid = GRID if config.tune_text is None else TEXT_GRID
    from .methods import method_of

    default, known = TransferConfig(), method_of(config).options
    return {
        name: values for name, values in grid.items()
        if name in known and getattr(config, name) == getattr(default, name)
    }  # fmt: skip


def meant(config: TransferConfig, options: Mapping[str, Any]) -> tuple[Any, ...]:
    """What options stand for with this configuration: one left open and one set to the same value are one trial."""
    from .methods.blend import UNSET, as_blend

    chosen = dataclasses.replace(config, **options)
    if chosen.method in UNSET:
        chosen = as_blend(chosen)
    return tuple(getattr(chosen, name) for name in options)


def search(
    grid: Mapping[str, tuple[Any, ...]], config: TransferConfig, merit: Callable[[Mapping[str, Any]], Any],
    worth: Callable[[Any, Any], bool] = operator.gt,
) -> dict[str, Any]:  # fmt: skip
    """One option after the other takes the value of most merit with the others as they are, again until none changes.

    Args:
        grid: the values to try.
        config: where the search starts.
        merit: of a set of options; of equals the one tried first counts.
        worth: whether the merit of another value is worth leaving that of the present one.
    """
    best = {name: getattr(config, name) for name in grid}
    for _ in range(SWEEPS):
        before = dict(best)
        for name, values in grid.items():
            tried = max(({**best, name: value} for value in values), key=merit)  # of equals the first
            if worth(merit(tried), merit(best)):
                best = tried
        if best == before:
            break
    return best


def tune(hidden: Hidden) -> Tuning:
    """Choose options by the self-check's score.

    The search is :func:`search`; a start that the self-check calls broken loses to any that it does not. The result depends on
    nothing but the inputs, the options and the seed by which tokens were hidden.

    Args:
        hidden: of :func:`~saltlm.rows.hidden.hide_in`; its job's options are where the search starts.

    Returns:
        The choice and all trials.
    """
    config = hidden.job.config
    grid = free_options(config)
    found: dict[tuple[Any, ...], tuple[Mapping[str, Any], dict[str, Any]]] = {}

    def figures(options: Mapping[str, Any]) -> dict[str, Any]:
        key = meant(config, options)
        if key not in found:
            found[key] = options, check(hidden, **options)
        return found[key][1]

    def merit(options: Mapping[str, Any]) -> tuple[bool, float]:
        return figures(options)["broken"] is None, figures(options)["score"]

    best = search(grid, config, merit)
    trials = [{"options": dict(tried), **{name: one[name] for name in SHOWN}} for tried, one in found.values()]
    return Tuning(grid=grid, trials=trials, choice=best, check=figures(best))
