from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.browser import CHROMIUM, Browser, chromium

from deadweight.pipeline.report.page import write_report, write_sweep
from deadweight.pipeline.report.units import ScoreScale
from deadweight.targets.errors import ArtifactError

EXAMPLE = json.loads((Path(__file__).parent / "report_example.json").read_text("utf-8"))
in_browser = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


def written(directory: Path, report: dict[str, Any]) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "report.json").write_text(json.dumps(report))
    return write_report(directory)


def figures_of(browser: Browser) -> set[float]:
    found = browser.evaluate("[...document.querySelectorAll('data')].map(e => Number(e.value))")
    return set(found)


@in_browser
def test_a_sweep_alone_is_written_as_csv_json_and_page(browser: Browser, tmp_path: Path) -> None:
    sweep = EXAMPLE["sweep"]
    page = write_sweep(
        tmp_path,
        sweep,
        ScoreScale("accuracy", higher_is_better=True, share=True),
        name="sweep",
        made_by={"cpu": "Cortex-A78AE", "torch": "2.13.0"},
    )
    with (tmp_path / "sweep.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [float(line["score"]) for line in lines] == [row["score"] for row in sweep["rows"]]
    assert [line["chosen"] for line in lines].count("true") == 1
    assert lines[-1]["speedup_ratio"] == ""  # not measured is empty, not zero
    assert json.loads((tmp_path / "sweep.json").read_text())["rows"] == sweep["rows"]
    assert "Cortex-A78AE" in page.read_text()
    for width in (1280, 390):
        browser.open(page, width=width)
        assert browser.complaints == []
        assert browser.evaluate("document.documentElement.scrollWidth") == width
        assert browser.evaluate("document.querySelectorAll('svg.main-svg').length") > 0
    assert {row["score"] for row in sweep["rows"]} <= figures_of(browser)


def test_a_report_that_cannot_be_read_leaves_the_old_page(tmp_path: Path) -> None:
    page = written(tmp_path, EXAMPLE)
    before = page.read_bytes()
    (tmp_path / "report.json").write_text(json.dumps(EXAMPLE | {"schema": 2}))
    with pytest.raises(ArtifactError, match="schema 2"):
        write_report(tmp_path)
    assert page.read_bytes() == before


def test_the_same_report_makes_the_same_bytes(tmp_path: Path) -> None:
    assert written(tmp_path / "a", EXAMPLE).read_bytes() == written(tmp_path / "b", EXAMPLE).read_bytes()


def test_the_page_carries_plotly_once_and_stays_under_three_megabytes(tmp_path: Path) -> None:
    page = written(tmp_path, EXAMPLE)
    text = page.read_text("utf-8")
    assert text.count('id="plotly"') == 1
    assert not re.search(
        r"""(src|href)\s*=|@import|url\(""", re.sub(r"<script type.*?</script>", "", text, flags=re.S)
    )
    assert page.stat().st_size < 3_000_000
