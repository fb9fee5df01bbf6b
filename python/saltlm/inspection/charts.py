"""Charts as SVG for an HTML page: drawn by matplotlib, coloured by CSS variables, each with its numbers as a table."""

from __future__ import annotations

import dataclasses
import html
import io
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from ..environment import is_installed

# Colours that colour-blind readers can tell apart (Okabe and Ito), by the CSS variable that replaces them on the page.
COLORS = {
    "blue": "#0072b2",
    "orange": "#e69f00",
    "green": "#009e73",
    "pink": "#cc79a7",
    "sky": "#56b4e9",
    "red": "#d55e00",
    "gray": "#8c8c8c",
}
# Colours of text and lines while matplotlib draws; the page replaces them as well.
INK, GRID = "#102030", "#c0d0e0"
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "saltlm",
    "text.parse_math": False,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "font.size": 11,
}
POINTS_PER_INCH = 72


@dataclasses.dataclass(frozen=True, kw_only=True)
class Points:
    """Points of a chart, each with a text that the page shows on hover.

    Attributes:
        xy: (x, y) of each point in the coordinates of the axes.
        titles: text of each point.
        color: a name of :data:`COLORS`.
    """

    xy: Sequence[tuple[float, float]]
    titles: Sequence[str]
    color: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chart:
    """A chart with its numbers.

    Attributes:
        key: short name, part of the ids inside the page.
        title: heading.
        label: what the chart shows, in a sentence; screen readers read it.
        headings: of the table of numbers.
        numbers: rows of the table.
        svg: the drawing; ``None`` if matplotlib is not installed.
    """

    key: str
    title: str
    label: str
    headings: Sequence[str]
    numbers: Sequence[Sequence[Any]]
    svg: str | None

    def html(self) -> str:
        """A ``figure`` element with heading, drawing and numbers."""
        drawing = self.svg or ""
        return (
            f'<figure id="chart-{self.key}"><figcaption><h3>{html.escape(self.title)}</h3>'
            f"<p>{html.escape(self.label)}</p></figcaption>{drawing}"
            f"<details{'' if drawing else ' open'}><summary>Numbers</summary>"
            f"{table(self.headings, self.numbers)}</details></figure>"
        )


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    return is_installed("matplotlib")


def draw(
    key: str,
    label: str,
    paint: Callable[[Any], Sequence[Points] | None],
    *,
    size: tuple[float, float] = (6.4, 3.6),
) -> str | None:
    """Draw a chart as an ``svg`` element for the body of an HTML page.

    Text stays text; colours become CSS variables, so that the page chooses them for light, dark and print; ids get the key
    as prefix, so that several charts stand on one page.

    Args:
        key: short name of the chart.
        label: what the chart shows, for screen readers.
        paint: draws on the axes that it is given, in colours of :data:`COLORS`; it may return points with hover texts.
        size: width and height in inches.

    Returns:
        The element; ``None`` if matplotlib is not installed.
    """
    if not can_draw():
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import matplotlib
        from matplotlib.figure import Figure

        with matplotlib.rc_context(STYLE):
            figure = Figure(figsize=size, layout="constrained", dpi=POINTS_PER_INCH)
            axes = figure.subplots()
            points = paint(axes) or ()
            buffer = io.StringIO()
            figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
            circles = [_circles(axes, group, size[1] * POINTS_PER_INCH) for group in points]
    return _inline(buffer.getvalue(), key, label, "".join(circles))


def table(headings: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """An HTML table; numbers are right-aligned and have at most four significant digits."""
    head = "".join(f"<th scope=col>{html.escape(heading)}</th>" for heading in headings)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def visible(text: object) -> str:
    """HTML of a text in which characters that cannot be seen, such as marks of writing direction, are shown by number."""
    shown = (c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(text))
    return html.escape("".join(shown))


def _cell(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return f"<td>{visible('-' if value is None else value)}</td>"
    return f'<td class="n">{value:,}</td>' if isinstance(value, int) else f'<td class="n">{value:.4g}</td>'


def _circles(axes: Any, points: Points, height: float) -> str:
    """SVG circles with titles at points of the axes; matplotlib's own marks cannot have a title each."""
    if not len(points.xy):
        return ""
    places = axes.transData.transform(points.xy)
    marks = "".join(
        f'<circle cx="{x:.1f}" cy="{height - y:.1f}" r="2.2"><title>{visible(title)}</title></circle>'
        for (x, y), title in zip(places, points.titles, strict=True)
    )
    return f'<g class="points" style="fill: {COLORS[points.color]}">{marks}</g>'


def _inline(svg: str, key: str, label: str, marks: str) -> str:
    """Turn an SVG file of matplotlib into an element of an HTML page."""
    body = svg[svg.index("<svg") :].replace("</svg>", marks + "</svg>")
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", body, flags=re.DOTALL)
    body = re.sub(
        r'<svg [^>]*?viewBox="([^"]+)"[^>]*>',
        lambda match: f'<svg role="img" aria-label="{html.escape(label)}" viewBox="{match[1]}">',
        body,
        count=1,
    )
    body = re.sub(r'(<(?:g|path|clipPath)\b[^>]*?\bid=")', rf"\g<1>{key}-", body)
    body = body.replace("url(#", f"url(#{key}-").replace('xlink:href="#', f'href="#{key}-')
    # The page chooses the font. Fonts of matplotlib's list would differ from those of the text around.
    body = re.sub(r" ?font-family: [^;\"]*;?", "", body)
    body = re.sub(r"font: ([\d.]+px) [^;\"]*;?", r"font-size: \1;", body)
    for name, color in (*COLORS.items(), ("ink", INK), ("grid", GRID)):
        body = body.replace(color, f"var(--{name})")
    return re.sub(r"\s*\n\s*", " ", body)
