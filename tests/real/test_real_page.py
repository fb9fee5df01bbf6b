"""The page in a real browser: no error, charts, a quick search among 250,000 tokens, and hostile tokens that do nothing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from records_large import HOSTILE, large_record

from saltlm.inspection.page import write_page

pytestmark = pytest.mark.real

ROWS = 250_000
MEGABYTES = 5
SEARCH_MS = 200
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def browser() -> Iterator:
    """A headless browser of the system."""
    api = pytest.importorskip("playwright.sync_api", reason='no playwright; pip install "saltlm[browser]"')
    program = next((path for path in map(shutil.which, BROWSERS) if path), None)
    if program is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module", params=[3, 20], ids=["few parts", "many parts"])
def large(request, tmp_path_factory):
    """A page of 250,000 rows."""
    folder = tmp_path_factory.mktemp("large")
    path = folder / "rows.html"
    write_page(large_record(folder, ROWS, parts=request.param), path)
    return path


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A page of 3,000 rows."""
    folder = tmp_path_factory.mktemp("small")
    path = folder / "rows.html"
    write_page(large_record(folder, 3000), path)
    return path


def opened(browser, path, *, width: int = 1280, scheme: str = "light"):
    """The page in a window, with the list of errors that it has reported."""
    errors: list[str] = []
    window = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    window.on("console", lambda message: errors.append(message.text) if message.type in ("error", "warning") else None)
    window.on("pageerror", lambda error: errors.append(str(error)))
    window.on("dialog", lambda dialog: errors.append(dialog.message))
    window.on("request", lambda request: errors.append(request.url) if not request.url.startswith("file:") else None)
    window.goto(path.as_uri())
    window.wait_for_selector("html[data-ready]")
    return window, errors


def search(window, query: str) -> tuple[list[str], float]:
    """Texts of the first rows that a search shows, and its time in milliseconds as the page measures it."""
    window.fill("#search", query)
    milliseconds = window.evaluate("performance.getEntriesByName('search').at(-1).duration")
    return window.locator("#body button[data-row]").all_inner_texts(), milliseconds


def test_a_large_page_is_small_and_searches_quickly(browser, large) -> None:
    assert large.stat().st_size < MEGABYTES * 10**6
    window, errors = opened(browser, large)
    for query, first in (
        ("kissa", "▁kissa"),
        (" KISSA", "▁kissa"),
        ("0x20 6b 69 73 73 61", "▁kissa"),
        ("#6", "▁kissa"),
    ):
        texts, milliseconds = search(window, query)
        assert texts[0] == first and milliseconds < SEARCH_MS, (query, texts[:3], milliseconds)
    assert len(search(window, "e")[0]) < 100, "only the rows in sight are in the document"
    assert search(window, "no such token")[0] == []
    assert window.inner_text("#count") == "no token matches"
    window.fill("#search", "")
    window.select_option("#origin", label="copied")
    window.select_option("#script", label="Cyrillic")
    assert window.inner_text("#count").endswith("of 250,000 tokens")
    window.click("#head button:has-text('norm')")
    norms = [float(text) for text in window.locator("#body tr td:last-child.n").all_inner_texts()]
    assert norms == sorted(norms, reverse=True) and len(norms) > 10
    window.evaluate("document.getElementById('scroll').scrollTop = 1e9")
    window.wait_for_function("document.querySelectorAll('#body button').length > 5")
    assert not errors
    window.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_charts_are_drawn_and_fit(browser, small, scheme: str, width: int) -> None:
    window, errors = opened(browser, small, width=width, scheme=scheme)
    assert window.evaluate("document.documentElement.scrollWidth") <= width
    boxes = [chart.bounding_box() for chart in window.locator("figure svg").all()]
    assert len(boxes) == 6 and all(box["width"] > 250 and box["height"] > 80 for box in boxes)
    ink, paper = (
        window.evaluate(f"getComputedStyle({element}).{name}")
        for element, name in (
            ("document.querySelector('figure svg text')", "fill"),
            ("document.body", "backgroundColor"),
        )
    )
    assert (brightness(ink) > brightness(paper)) == (scheme == "dark")
    assert abs(brightness(ink) - brightness(paper)) > 120, (ink, paper)
    assert not errors
    window.close()


def brightness(color: str) -> float:
    """Mean of red, green and blue of ``rgb(r, g, b)``, in [0, 255]."""
    return sum(float(part) for part in color[color.index("(") + 1 : -1].split(",")[:3]) / 3


def test_a_click_and_the_keyboard_show_the_recipe(browser, small) -> None:
    window, errors = opened(browser, small)
    search(window, "#9")
    window.locator("#body button[data-row='9']").focus()
    window.keyboard.press("Enter")
    assert "#9" in window.inner_text("#detail h3") and window.locator("#detail table tr").count() >= 1
    weights = [float(text) for text in window.locator("#detail td.n:first-child").all_inner_texts()]
    assert weights == sorted(weights, reverse=True)
    window.locator("button[data-row]").first.click()
    assert "built by" in window.inner_text("#detail")
    assert not errors
    window.close()


def test_hostile_tokens_do_nothing(browser, small) -> None:
    window, errors = opened(browser, small)
    title = window.title()
    for row in range(len(HOSTILE)):
        search(window, f"#{row}")
        window.click(f"#body button[data-row='{row}']")
        assert f"#{row}" in window.inner_text("#detail h3")
        assert search(window, HOSTILE[row][:6])[0] or not HOSTILE[row][:6].isprintable()
    assert window.title() == title and not errors
    assert window.locator("main img, #detail script, #body script").count() == 0
    window.close()
