"""The chart of a comparison: bits per byte over steps, one curve per method."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..environment import is_installed
from .config import ORIGINAL

# Space above the highest end of a curve, as a share of the range between the lowest and the highest end. Higher parts of the
# curves are cut off.
HEADROOM = 0.6


def in_order(methods: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Methods in ascending order of their mean bits per byte at the end; methods that diverged come last."""
    return sorted(methods, key=lambda entry: entry["end"]["mean"] if entry["end"] else float("inf"))


def draw_chart(content: Mapping[str, Any], path: Path) -> bool:
    """Draw the mean curve of each method with a band of one standard deviation over seeds; the control is dashed.

    Args:
        content: content of ``compare.json``.
        path: PNG file to write.

    Returns:
        Whether the chart was drawn; ``False`` if matplotlib is not installed.
    """
    if not is_installed("matplotlib"):
        return False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from matplotlib import colormaps
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9, 5.5), layout="constrained")
        axes = figure.subplots()
        methods = [entry for entry in in_order(content["methods"]) if entry["curve"]]
        names = [entry["method"] for entry in methods if entry["method"] != ORIGINAL]
        palette = colormaps["tab10" if len(names) <= 10 else "tab20"]
        for entry in methods:
            steps, means, spreads = zip(*entry["curve"], strict=True)
            is_original = entry["method"] == ORIGINAL
            color = "black" if is_original else palette(names.index(entry["method"]) % palette.N)
            end = "diverged" if entry["end"] is None else f"{entry['end']['mean']:.3f}"
            axes.plot(
                steps,
                means,
                color=color,
                linestyle="--" if is_original else "-",
                marker="o",
                markersize=3,
                label=f"{entry['method']}  {end}",
            )
            if spreads[0] is not None:
                low, high = ([m + sign * s for m, s in zip(means, spreads, strict=True)] for sign in (-1, 1))
                axes.fill_between(steps, low, high, color=color, alpha=0.15, linewidth=0)
        axes.axhline(content["level"], color="black", linestyle=":", linewidth=0.9, label="original, untrained")
        if methods:
            _limit(axes, content, methods)
        axes.set_xlabel(f"steps on {'every weight' if content['probe'] == 'all' else 'the embeddings'}")
        axes.set_ylabel("held-out bits per byte")
        axes.legend(fontsize="small", title="at the end", loc="center left", bbox_to_anchor=(1.0, 0.5))
        axes.grid(alpha=0.3)
        temporary = path.with_name(f".{path.name}.writing")
        figure.savefig(temporary, dpi=120, format="png")
    temporary.replace(path)
    return True


def _limit(axes: Any, content: Mapping[str, Any], methods: Sequence[Mapping[str, Any]]) -> None:
    """Limit the vertical axis to the range in which the curves end, because a high start would flatten all curves."""
    ends = [entry["curve"][-1][1] for entry in methods] + [content["level"]]
    low, high = min(ends), max(ends)
    extent = max(high - low, 0.02)
    top = max(mean for entry in methods for _, mean, _ in entry["curve"])
    axes.set_ylim(low - 0.1 * extent, min(top + 0.1 * extent, high + HEADROOM * extent))
