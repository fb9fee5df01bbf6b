"""Options chosen by the self-check: the ones whose rows score best on hidden shared tokens, without any training."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from .config import TransferConfig
from .heldout import Hidden, check

# What is tried, an option a line, in this order; of a method's options those that are here and that the user has not set.
GRID: Mapping[str, tuple[Any, ...]] = {
    "center": (False, True),
    "ridge": (None, 0.01, 0.1, 1.0, 10.0),
    "max_support": (None, 8, 32),
    "blend_weight": (0.25, 0.5, 0.75),
}
SWEEPS = 3  # over all options at most; a second one changes little, for ridge and cap alone depend on each other
SHOWN = ("score", "signal", "noise", "offset", "relative_error", "cosine", "rank", "broken")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tuning:
    """What was tried and what was chosen.

    Attributes:
        grid: the values of each option that was free.
        trials: for each set of options tried, in order, ``options`` and the figures named in :data:`SHOWN`.
        choice: the options of the best trial.
        check: all figures of the best trial.
    """

    grid: Mapping[str, tuple[Any, ...]]
    trials: list[dict[str, Any]]
    choice: dict[str, Any]
    check: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Plain values, as saved in ``saltlm.json``; the best trial's figures stand there already."""
        return {
            "grid": {name: list(values) for name, values in self.grid.items()},
            "trials": self.trials,
            "choice": self.choice,
        }


def free_options(config: TransferConfig) -> dict[str, tuple[Any, ...]]:
    """The part of :data:`GRID` that the method knows and that the user has left at its default."""
    from .methods import method_of

    default, known = TransferConfig(), method_of(config).options
    return {
        name: values for name, values in GRID.items()
        if name in known and getattr(config, name) == getattr(default, name)
    }  # fmt: skip


def tune(hidden: Hidden) -> Tuning:
    """Choose options by the self-check's score.

    One option after the other takes the value that scores best with the others as they are, again until none changes. A start
    that the self-check calls broken loses to any that it does not; of equals the one tried first stays. The result depends on
    nothing but the inputs, the options and the seed by which tokens were hidden.

    Args:
        hidden: of :func:`~saltlm.heldout.hide_in`; its job's options are where the search starts.

    Returns:
        The choice and all trials.
    """
    grid = free_options(hidden.job.config)
    best = {name: getattr(hidden.job.config, name) for name in grid}
    found: dict[tuple[Any, ...], dict[str, Any]] = {}

    def figures(options: Mapping[str, Any]) -> dict[str, Any]:
        key = tuple(options.values())
        if key not in found:
            found[key] = check(hidden, **options)
        return found[key]

    def merit(options: Mapping[str, Any]) -> tuple[bool, float]:
        return figures(options)["broken"] is None, figures(options)["score"]

    for _ in range(SWEEPS):
        before = dict(best)
        for name, values in grid.items():
            for value in values:
                best = max(best, {**best, name: value}, key=merit)  # of equals the first
        if best == before:
            break
    trials = [
        {"options": dict(zip(grid, key, strict=True)), **{name: one[name] for name in SHOWN}}
        for key, one in found.items()
    ]
    return Tuning(grid=grid, trials=trials, choice=best, check=figures(best))
