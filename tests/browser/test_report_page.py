"""The report in a real browser: complete without a network or a script, on a laptop and a phone, light and dark."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.cli import main

ROOT = Path(__file__).resolve().parents[2]
ALGORITHMS = ("ring", "two_tree")
VIEWS = [(width, height, scheme) for width, height in ((1366, 768), (390, 844)) for scheme in ("light", "dark")]
PATIENCE_MS = 20_000


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of two algorithms on three ranks, with a contender, predictions and a matrix of pairs put to it."""
    directory = tmp_path_factory.mktemp("report")
    result, pairs, page = (directory / name for name in ("result.json", "pairs.json", "report.html"))
    flags = ("-b", "1K", "-e", "256K", "-f", "16", "-n", "3", "--algorithm", ",".join(ALGORITHMS), "-J", str(result))
    subprocess.run(
        [sys.executable, "-m", "bench", "all_reduce", "--ranks", "3", *flags],
        cwd=ROOT, check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    document = json.loads(result.read_text())
    for row in document["results"]:
        row["predicted_us"] = 5.0 + row["size"] / 1000
    document["compare"] = [
        {"size": row["size"], "algorithm": row["experiment_name"], "ours_us": row["in_place"]["time"], "gloo_us": 300.0}
        for row in document["results"]
    ]
    result.write_text(json.dumps(document))
    ranks = range(12)
    figures = [[None if source == target else 2.0 for target in ranks] for source in ranks]
    figures[2][9] = 0.2
    slow = {"from": 2, "to": 9, "what": "bandwidth", "value": 0.2, "typical": 2.0}
    matrix = {"kind": "pairwise", "hosts": ["here"] * 12, "latency_us": figures, "bandwidth_gb_per_s": figures}
    pairs.write_text(json.dumps({**matrix, "outliers": [slow]}))
    assert main(["report", str(result), str(pairs), "-o", str(page)]) == 0
    return page


class Open:
    """The report in one tab, with all that the browser had to say about it."""

    def __init__(self, browser: Any, path: Path, **options: Any) -> None:
        self.page = browser.new_page(**options)
        self.page.set_default_timeout(PATIENCE_MS)
        self.said: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())

    def all(self, selector: str, expression: str) -> list[Any]:
        """What a JavaScript expression on `e` gives for each element."""
        return self.page.eval_on_selector_all(selector, f"all => all.map(e => {expression})")


@pytest.fixture(scope="module", params=VIEWS, ids=lambda view: f"{view[0]}-{view[2]}")
def opened(request: pytest.FixtureRequest, chromium: Any, report: Path) -> Iterator[Open]:
    width, height, scheme = request.param
    tab = Open(chromium, report, viewport={"width": width, "height": height}, color_scheme=scheme)
    yield tab
    tab.page.close()


@pytest.fixture
def tab(chromium: Any, report: Path) -> Iterator[Open]:
    made = Open(chromium, report, viewport={"width": 1366, "height": 768})
    yield made
    made.page.close()


def test_the_browser_has_no_complaint_and_fetches_nothing_but_the_file(opened: Open, report: Path) -> None:
    assert opened.said == []
    assert opened.requests == [report.as_uri()]


def test_the_page_is_as_wide_as_the_screen(opened: Open) -> None:
    assert opened.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert all(opened.all("svg.plot", "e.getBoundingClientRect().right <= window.innerWidth"))


def test_the_plots_are_there_with_a_line_for_each_algorithm_and_contender(opened: Open) -> None:
    for plot in ("c0-busbw", "c0-time"):
        inside = f'svg[aria-labelledby^="{plot}"]'
        assert opened.all(f"{inside} .line.measured", "e.dataset.name") == list(ALGORITHMS)
        assert opened.all(f"{inside} .line.contender", "e.dataset.name") == ["gloo"]
        boxes = opened.all(f"{inside} .line .way", "[e.getBoundingClientRect().width, e.getTotalLength()]")
        assert len(boxes) == len(ALGORITHMS) * 2 + 2  # each with its prediction; the contender; the roof
        plot_width = opened.all(inside, "e.getBoundingClientRect().width")[0]
        assert all(width > plot_width / 2 and length > 0 for width, length in boxes)
        assert len(opened.all(f"{inside} .line.measured .mark", "e")) == len(ALGORITHMS) * 3


def test_the_roof_and_the_prediction_are_dashed_and_what_was_measured_is_not(opened: Open) -> None:
    def dashes(kind: str) -> set[str]:
        return set(opened.all(f".plot .line.{kind} .way", "getComputedStyle(e).strokeDasharray"))

    assert dashes("measured") == dashes("contender") == {"none"}
    assert "none" not in dashes("roof") | dashes("prediction")
    assert dashes("roof").isdisjoint(dashes("prediction"))


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2.2 defines it, of `rgb(r, g, b)`."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_all_is_legible_on_its_ground(opened: Open) -> None:
    """WCAG 2.2: 4.5 for text, 3 for lines."""
    dark = opened.page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    (page,) = opened.all("body", "getComputedStyle(e).backgroundColor")
    assert (luminance(page) < 0.2) == dark
    (card,) = set(opened.all("section", "getComputedStyle(e).backgroundColor"))
    for text in set(opened.all("p, td, th, dt, dd, h1, h2, h3", "getComputedStyle(e).color")):
        assert contrast(text, card) >= 4.5
    for text in set(opened.all("svg text:not(.in)", "getComputedStyle(e).fill")):
        assert contrast(text, card) >= 4.5
    for line in set(opened.all(".plot .way", "getComputedStyle(e).stroke")):
        assert contrast(line, card) >= 3
    for ground, text in opened.all(
        ".heat text.in",
        "[getComputedStyle(e.previousElementSibling).fill, getComputedStyle(e).fill]",
    ):
        assert contrast(ground, text) >= 4.5


def test_every_picture_has_a_title_and_a_description(opened: Open) -> None:
    for title, description in opened.all(
        "svg[role=img]",
        "e.getAttribute('aria-labelledby').split(' ').map(id => document.getElementById(id).textContent)",
    ):
        assert title
        assert len(description) > len(title)


def test_the_matrix_has_a_cell_for_each_pair_and_frames_the_slow_one(opened: Open) -> None:
    assert len(opened.all(".heat .cell", "e")) == 2 * 12 * 12
    framed = opened.all(".heat .cell.out", "[e.textContent, getComputedStyle(e).stroke]")
    assert len(framed) == 1
    assert framed[0][0] == "from rank 2 to 9: 0.2 GB/s, stands out: 2 is typical"
    assert framed[0][1] != "none"


def test_a_line_can_be_switched_off_and_on(tab: Open) -> None:
    box = tab.page.get_by_label(ALGORITHMS[0], exact=True)
    ours = f'.plot .line[data-name="{ALGORITHMS[0]}"]'
    shown = "getComputedStyle(e).display !== 'none'"
    assert tab.all(ours, shown) == [True, True]
    box.uncheck()
    assert tab.all(ours, shown) == [False, False]
    assert all(tab.all(f'.plot .line[data-name="{ALGORITHMS[1]}"]', shown))
    box.check()
    assert tab.all(ours, shown) == [True, True]


def test_the_values_under_the_pointer_are_told(tab: Open) -> None:
    tab.page.locator("svg.plot").last.locator('.line.measured .mark[data-label="16KB"]').first.hover(force=True)
    said = tab.page.locator(".readout").last.text_content()
    assert said.startswith("16KB: ")
    for name in (*ALGORITHMS, "gloo"):
        assert re.search(rf"\b{name} [\d.,]+ µs", said)


def test_the_page_is_complete_without_its_script(chromium: Any, report: Path) -> None:
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(report.as_uri(), timeout=PATIENCE_MS)
    assert page.locator("svg.plot .line.measured .way").first.is_visible()
    assert page.locator("svg.heat .cell").first.is_visible()
    assert page.locator("table").count() >= 5
    assert page.get_by_text("2 (n - 1) / n").first.is_visible()
    assert page.locator(".legend input").first.is_hidden()
    context.close()
