"""The pictures of a transferred folder: what each shows, its numbers, and how it is painted."""

from __future__ import annotations

import collections
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from .charts import COLORS, Chart, Points, draw
from .rows import BUILT, Rows

# Colour of each origin.
ORIGIN_COLORS = {
    "copied": "blue",
    "role": "sky",
    "solved": "orange",
    "composed": "red",
    "drawn": "pink",
    "padding": "gray",
}
# Scripts with a bar of their own; the rows of all others are added up.
SCRIPTS = 9
BINS = 30
# Points on the map of rows: more could not be told apart, and each takes some 70 bytes of the page.
MAP_POINTS = 3000


def figures_of(rows: Rows) -> list[Chart]:
    """All charts for which the record has numbers.

    Args:
        rows: the record of a folder.
    """
    drawn: Sequence[Callable[[Rows], Chart | None]] = (
        by_origin_and_script,
        support_sizes,
        residuals,
        norms,
        residual_by_support,
        map_of_rows,
    )
    return [chart for chart in (function(rows) for function in drawn) if chart is not None]


def by_origin_and_script(rows: Rows) -> Chart:
    """Rows of each script, stacked by origin."""
    origins = rows.summary["origins"]
    counts = collections.Counter(zip(rows.scripts, (origins[code] for code in rows.arrays["origin"]), strict=True))
    totals = collections.Counter(rows.scripts)
    scripts = [script for script, _ in totals.most_common(SCRIPTS)]
    groups = {script: [script] for script in scripts}
    if others := [script for script in totals if script not in groups]:
        groups["other scripts"] = others
    used = [name for name in origins if any(key[1] == name for key in counts)]
    numbers = [
        (group, *(sum(counts[script, name] for script in members) for name in used))
        for group, members in groups.items()
    ]

    def paint(axes: Any) -> None:
        left = np.zeros(len(numbers))
        for column, name in enumerate(used, 1):
            widths = np.array([row[column] for row in numbers])
            axes.barh(range(len(numbers)), widths, left=left, color=_color(name), label=name, height=0.7)
            left += widths
        axes.set_yticks(range(len(numbers)), [str(row[0]) for row in numbers])
        axes.invert_yaxis()
        axes.set_xlabel("rows")
        axes.grid(axis="y", visible=False)
        axes.legend(ncols=3, loc="lower left", bbox_to_anchor=(0, 1), fontsize="small")

    label = f"Number of rows of each script by origin: {', '.join(used)}."
    size = (6.4, 1.4 + 0.28 * len(numbers))
    return _chart("origins", "Rows by origin and script", label, ("script", *used), numbers, paint, size)


def support_sizes(rows: Rows) -> Chart | None:
    """Histogram of support sizes."""
    sizes = rows.arrays["support_size"][rows.arrays["support_size"] > 0]
    if not len(sizes):
        return None
    support = rows.summary.get("support")
    unit = support["of"] if support else "source tokens"
    label = f"Number of {unit} behind each built row: median {np.median(sizes):.0f}, largest {sizes.max():,}."
    return _histogram("support", "Support sizes", label, unit, sizes, whole=True)


def residuals(rows: Rows) -> Chart | None:
    """Histogram of the residuals of solved rows."""
    values = rows.arrays["residual"][rows.arrays["rank"] > 0]
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    label = f"Share of each PLM row that the regression leaves unexplained: median {np.median(values):.3f}; 0 is a perfect fit."
    return _histogram("residual", "Residuals", label, "residual", values)


def norms(rows: Rows) -> Chart | None:
    """Densities of the norms of copied and of built rows."""
    origins = np.array(rows.summary["origins"], dtype=object)[rows.arrays["origin"]]
    groups = {
        "copied (the source's rows)": rows.norms[np.isin(origins, ("copied", "role"))],
        "built": rows.norms[np.isin(origins, BUILT)],
    }
    groups = {name: values[np.isfinite(values)] for name, values in groups.items()}
    groups = {name: values for name, values in groups.items() if len(values)}
    if not groups:
        return None
    every = np.concatenate(list(groups.values()))
    low, high = np.percentile(every, [0, 99.5])
    edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
    shares = {name: np.histogram(values, edges)[0] / len(values) for name, values in groups.items()}
    numbers = [(float(edges[i]), *(float(share[i]) for share in shares.values())) for i in range(BINS)]

    def paint(axes: Any) -> None:
        for (name, share), color, line in zip(shares.items(), ("blue", "red"), ("-", "--"), strict=False):
            axes.stairs(share, edges, color=COLORS[color], label=name, linewidth=1.8, linestyle=line)
        axes.set_xlabel("Euclidean norm of the row")
        axes.set_ylabel("share of the rows")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, fontsize="small")

    medians = ", ".join(f"{name} {np.median(values):.3g}" for name, values in groups.items())
    label = f"Norms of the input rows as they are now; medians: {medians}. Two like curves are a good sign."
    return _chart("norms", "Norms", label, ("from norm", *shares), numbers, paint)


def residual_by_support(rows: Rows) -> Chart | None:
    """Quartiles of the residual in classes of support sizes."""
    solved = (rows.arrays["rank"] > 0) & (rows.arrays["support_size"] > 0) & np.isfinite(rows.arrays["residual"])
    sizes, values = rows.arrays["support_size"][solved], rows.arrays["residual"][solved]
    if len(sizes) < BINS or sizes.min() == sizes.max():
        return None
    edges = np.unique(np.quantile(sizes, np.linspace(0, 1, 13)).astype(int))
    classes = np.searchsorted(edges, sizes, side="right")
    numbers = []
    for code in np.unique(classes):
        inside = classes == code
        quartiles = np.quantile(values[inside], [0.25, 0.5, 0.75])
        numbers.append((int(np.median(sizes[inside])), *map(float, quartiles), int(inside.sum())))
    label = "Residual against support size: the line is the median, the band holds the middle half of the rows."

    def paint(axes: Any) -> None:
        x, low, middle, high, _ = zip(*numbers, strict=True)
        axes.fill_between(x, low, high, color=COLORS["sky"], alpha=0.35, linewidth=0)
        axes.plot(x, middle, color=COLORS["blue"], marker="o", markersize=4)
        axes.set_xlabel("support size")
        axes.set_ylabel("residual")

    headings = ("support size", "lower quartile", "median", "upper quartile", "rows")
    return _chart("residual-support", "Residual against support size", label, headings, numbers, paint)


def map_of_rows(rows: Rows) -> Chart | None:
    """The two principal components of a sample of rows, coloured by origin, with tokens on hover."""
    names, codes = rows.summary["origins"], rows.arrays["origin"]
    usable = np.flatnonzero(np.isfinite(rows.norms) & (rows.norms > 0))
    if len(usable) < 3 or rows.matrix.shape[1] < 2:
        return None
    sample = np.sort(np.random.default_rng(0).choice(usable, min(MAP_POINTS, len(usable)), replace=False))
    vectors = rows.matrix[torch.from_numpy(sample)].float()
    vectors -= vectors.mean(dim=0)
    with torch.random.fork_rng(devices=[]):  # the components are approximated from random projections
        torch.manual_seed(0)
        _, spread, components = torch.pca_lowrank(vectors, q=min(8, *vectors.shape), center=False, niter=4)
    xy = (vectors @ components[:, :2]).double().numpy()
    explained = float(spread[:2].square().sum() / vectors.square().sum().clamp_min(1e-30))
    groups: list[Points] = []
    numbers = []
    for code, name in enumerate(names):
        inside = codes[sample] == code
        if not inside.any():
            continue
        titles = [f"{rows.texts[row] or '(no token)'} #{row} {name}" for row in sample[inside]]
        places = [(float(x), float(y)) for x, y in xy[inside]]
        groups.append(Points(xy=places, titles=titles, color=ORIGIN_COLORS.get(name, "gray")))
        numbers.append((name, int(inside.sum()), *map(float, (*xy[inside].mean(axis=0), *xy[inside].std(axis=0)))))

    def paint(axes: Any) -> Sequence[Points]:
        for name, group in zip((row[0] for row in numbers), groups, strict=True):
            axes.plot([], [], "o", color=COLORS[group.color], label=name, markersize=5)
        low, high = np.percentile(xy, [0.2, 99.8], axis=0)
        margin = 0.05 * np.maximum(high - low, 1e-9)
        axes.set_xlim(low[0] - margin[0], high[0] + margin[0])
        axes.set_ylim(low[1] - margin[1], high[1] + margin[1])
        axes.set_xlabel("first principal component")
        axes.set_ylabel("second principal component")
        axes.legend(ncols=3, loc="lower left", bbox_to_anchor=(0, 1), fontsize="small")
        inside = ((xy >= low - margin) & (xy <= high + margin)).all(axis=1)
        masks = [inside[codes[sample] == names.index(str(row[0]))] for row in numbers]
        return [_inside(group, mask) for group, mask in zip(groups, masks, strict=True)]

    label = (
        f"{len(sample):,} of {len(rows.norms):,} rows on their two principal components, which hold {explained:.0%} of the"
        " variance. Built rows should lie among the copied ones. Point at a dot to read its token."
    )
    headings = ("origin", "rows", "mean, first", "mean, second", "deviation, first", "deviation, second")
    return _chart("map", "Map of the rows", label, headings, numbers, paint, (6.4, 5.2))


def training_curves(lines: Sequence[Mapping[str, Any]]) -> Chart | None:
    """Bits per byte of an adaptation over the bytes of text.

    Args:
        lines: content of metrics.jsonl.
    """
    curves = {
        "held-out text, target language": "heldout_bits_per_byte",
        "held-out text, source language": "source_bits_per_byte",
    }
    points = {
        label: [(float(line.get("bytes", 0.0)), float(line[key])) for line in lines if line.get(key) is not None]
        for label, key in curves.items()
    }
    points = {label: values for label, values in points.items() if values}
    if not points:
        return None
    ends = "; ".join(f"{label}: {values[0][1]:.3f} to {values[-1][1]:.3f}" for label, values in points.items())
    return _curves(
        "training", "Training", f"Bits per byte over the bytes of training text. {ends}.", "bytes of text", points
    )


def comparison_curves(content: Mapping[str, Any]) -> list[Chart]:
    """Bits per byte of each method of a comparison over bytes and over seconds, and tokens per byte.

    Args:
        content: content of compare.json.
    """
    methods = [entry for entry in content["methods"] if entry["curve"]]
    if not methods:
        return []
    charts = []
    for key, unit, amount in (
        ("bytes", "bytes of text", "training_bytes"),
        ("seconds", "seconds of the run", "seconds"),
    ):
        points = {
            entry["method"]: [
                (entry[amount] * step / max(entry["curve"][-1][0], 1), float(mean)) for step, mean, _ in entry["curve"]
            ]
            for entry in methods
        }
        label = f"Held-out bits per byte over {unit}. The dotted line is the source model before any training."
        title = f"Comparison over {unit}"
        charts.append(_curves(f"compare-{key}", title, label, unit, points, level=float(content["level"])))
    numbers = [(entry["method"], float(entry["tokens_per_byte"])) for entry in methods]

    def paint(axes: Any) -> None:
        axes.barh(range(len(numbers)), [value for _, value in numbers], color=COLORS["blue"], height=0.6)
        axes.set_yticks(range(len(numbers)), [name for name, _ in numbers])
        axes.invert_yaxis()
        axes.set_xlabel("tokens per byte of held-out text")

    label = "Tokens per byte of the held-out text under each tokenizer; fewer tokens make generation cheaper."
    size = (6.4, 1.2 + 0.3 * len(numbers))
    charts.append(_chart("tokens", "Tokens per byte", label, ("model", "tokens per byte"), numbers, paint, size))
    return charts


def _curves(
    key: str,
    title: str,
    label: str,
    x_label: str,
    points: Mapping[str, Sequence[tuple[float, float]]],
    level: float | None = None,
) -> Chart:
    """A chart of curves; colours repeat with another line style."""
    names, lines = list(COLORS), ("-", "--", ":")

    def paint(axes: Any) -> None:
        for index, (name, values) in enumerate(points.items()):
            x, y = zip(*values, strict=True)
            style = lines[index // len(names) % len(lines)]
            color = COLORS[names[index % len(names)]]
            axes.plot(x, y, style, color=color, label=name, marker="o", markersize=3.5)
        if level is not None:
            axes.axhline(level, color=COLORS["gray"], linestyle=":", label="source, untrained")
        axes.set_xlabel(x_label)
        axes.set_ylabel("bits per byte")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, fontsize="small")

    numbers = [(name, float(x), float(y)) for name, values in points.items() for x, y in values]
    return _chart(key, title, label, ("curve", x_label, "bits per byte"), numbers, paint)


def _histogram(key: str, title: str, label: str, unit: str, values: np.ndarray, *, whole: bool = False) -> Chart:
    """A histogram up to the 99.5th percentile; larger values count in the last bin."""
    low, high = float(values.min()), float(np.percentile(values, 99.5))
    if whole:
        step = max(1, -(-int(high - low + 1) // BINS))
        edges = np.arange(int(low), int(high) + step + 1, step).astype(np.float64)
    else:
        edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
    counts = np.histogram(np.minimum(values, edges[-1]), edges)[0]
    numbers = [
        (int(edge) if whole else float(edge), int(count)) for edge, count in zip(edges[:-1], counts, strict=True)
    ]

    def paint(axes: Any) -> None:
        axes.bar(edges[:-1], counts, width=np.diff(edges), align="edge", color=COLORS["orange"], edgecolor="none")
        axes.set_xlabel(unit)
        axes.set_ylabel("rows")

    return _chart(key, title, label, (f"{unit}, from", "rows"), numbers, paint)


def _inside(points: Points, inside: np.ndarray) -> Points:
    """The points that a mask selects."""
    kept = np.flatnonzero(inside).tolist()
    return Points(xy=[points.xy[i] for i in kept], titles=[points.titles[i] for i in kept], color=points.color)


def _color(origin: str) -> str:
    return COLORS[ORIGIN_COLORS.get(origin, "gray")]


def _chart(
    key: str,
    title: str,
    label: str,
    headings: Sequence[str],
    numbers: Sequence[Sequence[Any]],
    paint: Callable[[Any], Sequence[Points] | None],
    size: tuple[float, float] = (6.4, 3.4),
) -> Chart:
    svg = draw(key, label, paint, size=size)
    return Chart(key=key, title=title, label=label, headings=headings, numbers=numbers, svg=svg)
