"""The page of a soak, of a simulated board that is throttled."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.browser import CHROMIUM, chromium

from benchmarks.soak.heat_and_rails import Simulated
from deadweight.pipeline.report.soak_page import write_soak
from deadweight.targets.timing.loads import Load
from deadweight.targets.timing.soak import soak
from deadweight.targets.timing.soak_record import SoakPlan
from deadweight.targets.timing.soak_summary import summarized


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("soak")
    board = Simulated(place, hot_c=75.0, cool_c=70.0, tick_s=0.25)
    loads = {name: Load("cpu") for name in ("baseline", "candidate", "beside")}
    plan = SoakPlan(loads, minutes=3, period_s=2)
    done = soak(plan, folder=place, root=place, clocks=board.clocks, processes=board.processes)
    names = {"baseline": "<b>original.onnx", "candidate": "pruned.onnx", "beside": "memory"}
    return write_soak(place / "soak.html", "equal within 2 %", names, done, summarized(done))


def test_the_page_has_every_load_and_escapes_names(page: Path) -> None:
    text = page.read_text("utf-8")
    assert "<b>original" not in text
    assert "pruned.onnx beside memory" in text
    assert "gpu-thermal" in text
    assert "mJ" in text
    assert "slowed" in text or "throttled" in text


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")
def test_the_page_is_drawn_at_any_width(page: Path) -> None:
    with chromium() as browser:
        for width, scheme in ((1280, "light"), (390, "dark")):
            browser.open(page, width=width, scheme=scheme)
            assert browser.complaints == []
            assert browser.requests == [page.as_uri()]
            assert browser.evaluate("document.documentElement.scrollWidth") <= width
            assert browser.evaluate("document.querySelectorAll('.plot svg').length") >= 4
