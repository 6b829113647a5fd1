"""The page of an engine and of two, from exports that NVIDIA published; drawn in a real browser."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from support.browser import CHROMIUM, chromium

from deadweight.pipeline.report.engine_page import comparison_page, engine_page
from deadweight.targets.engines.compare import compare_engines
from deadweight.targets.engines.content import Engine, engine_of, read_engine

EXPORTS = Path(__file__).parents[2] / "targets" / "engines" / "exports"


def published(name: str) -> Engine:
    parts = {part: EXPORTS / f"{name}.{part}.json" for part in ("graph", "profile", "timing")}
    return read_engine(parts["graph"], profile=parts["profile"], times=parts["timing"])


def figures(page: str) -> list[dict[str, object]]:
    return [json.loads(data) for data in re.findall(r'<script type="application/json">(.*?)</script>', page)]


def test_an_engines_page_says_what_moving_data_costs() -> None:
    page = engine_page(published("qat"))
    assert "37 layers take 1.10\N{NO-BREAK SPACE}ms; 12 of them move or convert data" in page
    assert "21 in int8" in page
    assert page.count("<tr>") == 1 + 37
    (drawn,) = figures(page)
    assert isinstance(drawn["data"], list)
    assert sum(time is not None for trace in drawn["data"] for time in trace["x"]) == 20


def test_a_comparison_shows_ratios_and_says_that_they_are_not_judged() -> None:
    page = comparison_page(compare_engines(published("fp16"), published("qat")))
    assert "not judged" in page
    assert "not a verdict" in page
    assert '<data value="1.625">' in page  # layer1.0.conv1
    for outcome in ("faster", "slower"):
        assert f'class="{outcome}' not in page


def test_names_cannot_become_markup() -> None:
    page = engine_page(engine_of({"Layers": [{"Name": "<b>x</b>", "LayerType": "<i>"}]}, name="<u>"))
    for tag in ("<b>", "<i>", "<u>"):
        assert tag not in page
    assert "none was timed" in page
    assert figures(page) == []


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")
def test_both_pages_are_drawn_at_any_width_and_in_both_schemes(tmp_path: Path) -> None:
    pages = {
        "one": engine_page(published("qat")),
        "two": comparison_page(compare_engines(published("fp16"), published("qat"))),
    }
    with chromium() as browser:
        for name, page in pages.items():
            path = tmp_path / f"{name}.html"
            path.write_text(page, encoding="utf-8")
            for width, scheme in ((1280, "light"), (390, "dark")):
                browser.open(path, width=width, scheme=scheme)
                assert browser.complaints == []
                assert browser.requests == [path.as_uri()]
                assert browser.evaluate("document.documentElement.scrollWidth") <= width
                assert browser.evaluate("document.querySelectorAll('.plot svg').length") >= 1
                shown = browser.evaluate("document.querySelector('.plot').getBoundingClientRect().width")
                assert width / 2 < shown <= width
