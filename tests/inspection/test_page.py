"""Charts, columns and notebook output: numbers are right, text cannot break out, every kind of result has a page."""

from __future__ import annotations

import html.parser
import json
import re
from pathlib import Path

import numpy as np
import pytest
from records_large import HOSTILE, large_record

from saltlm.adaptation.run import Adaptation
from saltlm.comparison.run import Comparison
from saltlm.evaluation.evaluate import Evaluation
from saltlm.inspection import charts, columns
from saltlm.inspection.charts import COLORS, Points, draw, table
from saltlm.inspection.columns import block, implied_bytes, largest_parts, unpack
from saltlm.inspection.figures import comparison_curves, figures_of, training_curves
from saltlm.inspection.page import page, read_metrics

NAMES = {"origins": ["a"], "rules": ["b"], "statuses": ["c"]}
COMPARISON = {
    "level": 2.0,
    "best": "auto",
    "ties": ["<i>salt</i>"],
    "methods": [
        {
            "method": name,
            "curve": [[0, 4.0, None], [10, 3.0 + index, None]],
            "training_bytes": 1000,
            "seconds": 5.0,
            "tokens_per_byte": 0.25,
            "start": {"mean": 4.0},
            "end": {"mean": 3.0 + index},
        }
        for index, name in enumerate(("original", "auto", "<i>salt</i>"))
    ],
}


class Elements(html.parser.HTMLParser):
    """The tags and attributes of a page, in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[dict[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append(tag)
        self.attributes.append(dict(attrs))


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    return large_record(tmp_path_factory.mktemp("record"), 3000, parts=12)


def test_columns_come_back(record) -> None:
    text, shown = block(record, NAMES)
    header, content = unpack(text)
    assert re.fullmatch(r"[A-Za-z0-9+/=]+", text) and shown == columns.SHOWN and header["rows"] == 3000
    assert content["text"] == record.texts
    np.testing.assert_array_equal(content["origin"], record.arrays["origin"])
    np.testing.assert_allclose(content["norm"], record.norms, rtol=2**-9)
    assert np.isnan(content["residual"][record.arrays["rank"] == 0]).all()
    assert [header["names"]["scripts"][code] for code in content["script"]] == record.scripts
    exceptions = dict(zip(content["exception"].tolist(), content["exception_bytes"], strict=True))
    for row in range(3000):
        stored = bytes.fromhex(exceptions[row]) if row in exceptions else implied_bytes(content["text"][row])
        assert stored == record.token_bytes(row)
    assert exceptions, "tokens with unprintable characters need their bytes"


@pytest.mark.parametrize("shown", [1, 3, 8])
def test_the_largest_parts_are_kept_in_order(record, shown: int) -> None:
    counts, ids, weights = largest_parts(record, shown)
    bounds = np.concatenate([[0], np.cumsum(counts)])
    for row in range(0, 3000, 7):
        all_ids, all_weights = record.parts(row)
        best = np.sort(np.argsort(-np.abs(all_weights), kind="stable")[:shown])
        kept = slice(bounds[row], bounds[row + 1])
        np.testing.assert_array_equal(ids[kept], all_ids[best])
        np.testing.assert_array_equal(weights[kept], all_weights[best])


@pytest.mark.parametrize("share", [0.9, 0.75, 0.3])
def test_a_large_table_gets_fewer_parts(record, monkeypatch, share: float) -> None:
    whole, _ = block(record, NAMES)
    monkeypatch.setattr(columns, "LARGEST", int(len(whole) * share))
    text, shown = block(record, NAMES)
    assert shown < columns.SHOWN and (len(text) <= columns.LARGEST or not shown)
    _, content = unpack(text)
    assert content["parts"].max() == shown
    np.testing.assert_array_equal(content["parts"] + content["more"], record.arrays["support_size"])
    assert f"holds the {shown} largest weights" in "".join(page(record))


def test_charts_are_text_in_the_colours_of_the_page(record) -> None:
    drawn = figures_of(record)
    assert {"origins", "support", "residual", "norms", "residual-support", "map"} == {chart.key for chart in drawn}
    identifiers: list[str | None] = []
    for chart in drawn:
        assert chart.svg is not None and chart.numbers
        parsed = Elements(chart.html())
        svg = parsed.attributes[parsed.tags.index("svg")]
        assert svg["role"] == "img" and svg["aria-label"] == chart.label
        assert "text" in parsed.tags and not re.search(r"#[0-9a-f]{6}|font-family|https?:", chart.svg)
        assert parsed.tags.count("details") == 1 and parsed.tags.count("tr") == 1 + len(chart.numbers)
        identifiers += [attributes["id"] for attributes in parsed.attributes if "id" in attributes]
        for target in re.findall(r'(?:url\(|href=")#([^")]+)', chart.svg):
            assert target in identifiers
    assert len(identifiers) == len(set(identifiers))


def test_chart_numbers_add_up(record) -> None:
    by_key = {chart.key: chart for chart in figures_of(record)}
    assert sum(sum(row[1:]) for row in by_key["origins"].numbers) == 3000
    built = int((record.arrays["support_size"] > 0).sum())
    assert sum(row[1] for row in by_key["support"].numbers) == built
    assert sum(row[-1] for row in by_key["residual-support"].numbers) == built
    assert all(sum(row[column] for row in by_key["norms"].numbers) > 0.98 for column in (1, 2))
    assert by_key["map"].svg.count("<circle") > 2900 and by_key["map"].svg.count("<title>") > 2900


def test_points_stand_where_the_axes_put_them() -> None:
    """A mark of matplotlib at the same place must have the same coordinates as the circle."""

    def paint(axes):
        axes.scatter([1, 2, 4], [1, 3, 2], s=9, color=COLORS["blue"])
        return [Points(xy=[(1, 1), (2, 3), (4, 2)], titles=["a", "<b>", "c"], color="red")]

    svg = draw("points", "points", paint)
    marks = re.findall(r'<use href="#points-m[^"]+" x="([\d.]+)" y="([\d.]+)" style="fill: var\(--blue', svg)
    circles = re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', svg)
    assert len(marks) == len(circles) == 3
    np.testing.assert_allclose(np.array(marks, float), np.array(circles, float), atol=0.06)
    assert "<title>&lt;b&gt;</title>" in svg


def test_without_matplotlib_numbers_stand_in_place_of_pictures(record, monkeypatch) -> None:
    monkeypatch.setattr(charts, "is_installed", lambda module: False)
    text = "".join(page(record))
    parsed = Elements(text)
    assert "svg" not in parsed.tags and "pip install &quot;saltlm[adapt]&quot;" in text
    assert parsed.tags.count("figure") == 6


def test_no_text_of_a_record_becomes_markup(record) -> None:
    text = "".join(page(record))
    parsed = Elements(text)
    assert parsed.tags.count("script") == 2 and not {"img", "b", "i"} & set(parsed.tags)
    assert "a warning with &lt;b&gt;markup&lt;/b&gt; &amp; a remedy" in text
    assert not re.search("[\u202a-\u202e\u2066-\u2069\u2028\u2029]", text)
    assert len(HOSTILE) == 6 and all(any(h[:5].strip() in t for t in record.texts) for h in HOSTILE[:3])


def test_equal_records_have_equal_pages(record) -> None:
    assert "".join(page(record)) == "".join(page(record))


def test_curves_of_a_training_and_of_a_comparison_are_taken_in(tmp_path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    lines = [{"step": 0, "phase": "p", "heldout_bits_per_byte": 4.0}]
    lines += [{"step": 5, "phase": "p", "loss": 1.0, "bytes": 500.0, "heldout_bits_per_byte": 3.0}]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 6, "ph')
    assert read_metrics(folder) == lines
    (tmp_path / "compare.json").write_text(json.dumps(COMPARISON))
    text = "".join(page(large_record(folder, 300)))
    assert {f'id="chart-{key}"' in text for key in ("training", "compare-bytes", "compare-seconds", "tokens")} == {True}
    assert "<i>" not in text and "&lt;i&gt;salt" in text
    (tmp_path / "compare.json").write_text('{"methods": 1}')
    assert "compare.json cannot be read" in "".join(page(large_record(folder, 300)))


def test_curves_end_at_the_bytes_of_the_training() -> None:
    numbers = comparison_curves(COMPARISON)[0].numbers
    assert numbers[:2] == [("original", 0.0, 4.0), ("original", 1000.0, 3.0)]
    assert training_curves([{"step": 1, "phase": "p", "loss": 2.0}]) is None
    assert comparison_curves({**COMPARISON, "methods": []}) == []


def test_results_have_html_for_notebooks(tmp_path) -> None:
    nats = np.array([10.0, 20.0])
    sizes = np.array([10, 20])
    evaluation = Evaluation(
        model="<b>model",
        document_nats=nats,
        document_bytes=sizes,
        document_tokens=sizes,
        unknown_tokens=1,
        lossy_documents=0,
        max_length=8,
        stride=4,
        device="cpu",
        dtype="float32",
        seconds=1.0,
    )
    adaptation = Adaptation(
        out=Path(tmp_path),
        steps=10,
        kept_step=5,
        tokens=100,
        bytes=400,
        heldout=[(0, 4.0), (5, 3.0)],
        source=[(0, 2.0), (5, 2.5)],
        seconds=1.0,
    )
    comparison = Comparison(out=Path(tmp_path), content=COMPARISON)
    for result, words in (
        (evaluation, "1.443 bits per byte"),
        (adaptation, "4.000 to 3.000"),
        (comparison, "Best method: auto"),
    ):
        text = result._repr_html_()
        parsed = Elements(text)
        assert words in text and parsed.tags[0] == "div" and "table" in parsed.tags
        assert not {"script", "i", "img"} & set(parsed.tags)


def test_tables_show_numbers_and_escape_texts() -> None:
    text = table(("a<", "b"), [("x<y", 1234567), (None, 0.123456)])
    assert "a&lt;" in text and "x&lt;y" in text and ">1,234,567<" in text and ">0.1235<" in text and ">-<" in text
