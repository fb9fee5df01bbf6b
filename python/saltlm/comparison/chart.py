"""The chart of a comparison: bits per byte over steps, one curve per method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..adaptation.curves import Curve, draw_chart
from .config import ORIGINAL

# Space above the highest end of a curve, as a share of the range between the lowest and the highest end. Higher parts of the
# curves are cut off.
HEADROOM = 0.6


def in_order(methods: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Methods in ascending order of their mean bits per byte at the end; methods that diverged come last."""
    return sorted(methods, key=lambda entry: entry["end"]["mean"] if entry["end"] else float("inf"))


def draw_comparison(content: Mapping[str, Any], path: Path) -> bool:
    """Draw the mean curve of each method with a band of one standard deviation over seeds; the control is dashed.

    Args:
        content: content of ``compare.json``.
        path: PNG file to write.

    Returns:
        Whether the chart was drawn; ``False`` if matplotlib is not installed.

    Raises:
        OSError: writing failed.
    """
    methods = [entry for entry in in_order(content["methods"]) if entry["curve"]]

    def finish(axes: Any) -> None:
        axes.axhline(content["level"], color="black", linestyle=":", linewidth=0.9, label="original, untrained")
        if methods:
            _limit(axes, content, methods)
        axes.legend(fontsize="small", title="at the end", loc="center left", bbox_to_anchor=(1.0, 0.5))

    return draw_chart(
        path,
        _curves(methods),
        size=(9, 5.5),
        x_label=f"steps on {'every weight' if content['probe'] == 'all' else 'the embeddings'}",
        y_label="held-out bits per byte",
        finish=finish,
    )


def _curves(methods: Sequence[Mapping[str, Any]]) -> list[Curve]:
    """The curves of the methods, each in another color; the control is black and dashed."""
    names = [entry["method"] for entry in methods if entry["method"] != ORIGINAL]
    curves = []
    for entry in methods:
        steps, means, spreads = zip(*entry["curve"], strict=True)
        is_original = entry["method"] == ORIGINAL
        end = "diverged" if entry["end"] is None else f"{entry['end']['mean']:.3f}"
        curves.append(
            Curve(
                label=f"{entry['method']}  {end}",
                points=list(zip(steps, means, strict=True)),
                color="black" if is_original else names.index(entry["method"]),
                style={"linestyle": "--" if is_original else "-", "marker": "o", "markersize": 3},
                spreads=None if spreads[0] is None else spreads,
            )
        )
    return curves


def _limit(axes: Any, content: Mapping[str, Any], methods: Sequence[Mapping[str, Any]]) -> None:
    """Limit the vertical axis to the range in which the curves end, because a high start would flatten all curves."""
    ends = [entry["curve"][-1][1] for entry in methods] + [content["level"]]
    low, high = min(ends), max(ends)
    extent = max(high - low, 0.02)
    top = max(mean for entry in methods for _, mean, _ in entry["curve"])
    axes.set_ylim(low - 0.1 * extent, min(top + 0.1 * extent, high + HEADROOM * extent))
