"""Charts of curves over training steps, written as PNG files if matplotlib is installed."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..environment import is_installed
from .metrics import HELDOUT, SOURCE


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curve:
    """One curve of a chart.

    Attributes:
        label: text in the legend.
        points: (step, value) pairs, at least one.
        color: a color of matplotlib, or the position of the curve in a palette of 10 colors (20 if more than 10 curves have a
            position).
        style: further keywords of ``Axes.plot``.
        spreads: half the height of a band around the curve at each step; ``None`` draws no band.
    """

    label: str
    points: Sequence[tuple[float, float]]
    color: str | int
    style: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    spreads: Sequence[float] | None = None


def draw_chart(
    path: Path,
    curves: Sequence[Curve],
    *,
    size: tuple[float, float],
    x_label: str,
    y_label: str,
    finish: Callable[[Any], None],
) -> bool:
    """Draw curves into a PNG file. An existing file is replaced as a whole.

    Args:
        path: the file to write.
        curves: drawn in this order.
        size: width and height in inches.
        x_label: label of the horizontal axis.
        y_label: label of the vertical axis.
        finish: called with the axes after the curves are drawn; it adds the legend and what else the chart shows.

    Returns:
        Whether the chart was drawn; ``False`` if matplotlib is not installed.

    Raises:
        OSError: writing failed.
    """
    if not is_installed("matplotlib"):
        return False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from matplotlib import colormaps
        from matplotlib.figure import Figure

        palette = colormaps["tab10" if sum(isinstance(curve.color, int) for curve in curves) <= 10 else "tab20"]
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        for curve in curves:
            steps, values = zip(*curve.points, strict=True)
            color = palette(curve.color % palette.N) if isinstance(curve.color, int) else curve.color
            axes.plot(steps, values, label=curve.label, color=color, **curve.style)
            if curve.spreads is not None:
                low, high = (
                    [value + sign * spread for value, spread in zip(values, curve.spreads, strict=True)]
                    for sign in (-1, 1)
                )
                axes.fill_between(steps, low, high, color=color, alpha=0.15, linewidth=0)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        finish(axes)
        axes.grid(alpha=0.3)
        temporary = path.with_name(f".{path.name}.writing")
        figure.savefig(temporary, dpi=120, format="png")
    temporary.replace(path)
    return True


def draw_run(lines: Sequence[Mapping[str, Any]], path: Path, *, original: float | None = None) -> bool:
    """Draw bits per byte over the steps of a run, with a line at the start of each phase.

    Args:
        lines: metrics, as in metrics.jsonl.
        path: the PNG file to write.
        original: bits per byte of the source model with its own tokenizer, drawn as a horizontal line; ``None`` draws none.

    Returns:
        Whether the chart was drawn; ``False`` without matplotlib.

    Raises:
        OSError: writing failed.
    """
    trained = [(line["step"], line["bits_per_byte"]) for line in lines if line.get("bits_per_byte") is not None]
    curves = []
    if trained:
        label = "training text, step by step"
        curves.append(Curve(label=label, points=trained, color="0.75", style={"linewidth": 0.8}))
    for key, label, color in (
        (HELDOUT, "held-out text, target language", "tab:blue"),
        (SOURCE, "held-out text, source language", "tab:orange"),
    ):
        points = [(line["step"], line[key]) for line in lines if key in line]
        if points:
            curves.append(Curve(label=label, points=points, color=color, style={"marker": "o", "markersize": 3}))

    def finish(axes: Any) -> None:
        if original is not None:
            axes.axhline(original, color="tab:green", linestyle="--", label="source model, its own tokenizer")
        _mark_phases(axes, lines)
        if axes.get_legend_handles_labels()[0]:
            axes.legend()

    return draw_chart(path, curves, size=(8, 4.5), x_label="step", y_label="bits per byte", finish=finish)


def _mark_phases(axes: Any, lines: Sequence[Mapping[str, Any]]) -> None:
    """Draw a vertical line with its name at the start of each phase, if there are several."""
    starts: list[tuple[str, int]] = []
    for line in lines:
        if not starts or starts[-1][0] != line["phase"]:
            starts.append((line["phase"], max(line["step"] - 1, 0)))
    for name, step in starts if len(starts) > 1 else []:
        axes.axvline(step, color="0.6", linewidth=0.8)
        axes.text(step, 1.0, f" {name}", transform=axes.get_xaxis_transform(), va="bottom", fontsize="small")
