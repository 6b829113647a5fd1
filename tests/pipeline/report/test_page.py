"""The page in a real browser: at a desk and on a phone, in the light and in the dark, offline."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.browser import CHROMIUM, Browser, chromium

from deadweight.pipeline.report.page import write_report

EXAMPLE = json.loads((Path(__file__).parent / "report_example.json").read_text("utf-8"))
OPTIONAL = ("controls", "words", "widths", "layers", "statistics", "sweep", "budgets")
EVIL = "<script>document.title='broken'</script>&\"'"
in_browser = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("run"), EXAMPLE)


def written(directory: Path, report: dict[str, Any]) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "report.json").write_text(json.dumps(report))
    return write_report(directory)


def little() -> dict[str, Any]:
    """The example with everything left out that may be."""
    report = {key: value for key, value in copy.deepcopy(EXAMPLE).items() if key not in OPTIONAL}
    return report | {"conditions": {}, "protocol": {}, "stages": []}


def text_of(path: Path) -> str:
    """The page's text without markup, scripts and styles."""
    markup = re.sub(r"<(script|style)\b.*?</\1>", " ", path.read_text("utf-8"), flags=re.S)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", markup))


def figures_of(browser: Browser) -> set[float]:
    found = browser.evaluate("[...document.querySelectorAll('data')].map(e => Number(e.value))")
    return set(found)


@in_browser
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_opens_offline_without_a_complaint_and_fits_the_window(
    browser: Browser, page: Path, width: int, scheme: str
) -> None:
    browser.open(page, width=width, scheme=scheme)
    assert browser.complaints == []
    assert browser.requests == [page.resolve().as_uri()]
    assert browser.evaluate("document.documentElement.scrollWidth") == width
    assert browser.evaluate("innerWidth") == width


@in_browser
def test_every_plot_is_drawn_inside_its_place(browser: Browser, page: Path) -> None:
    for width in (1280, 390):
        browser.open(page, width=width)
        drawn = browser.evaluate(
            """[...document.querySelectorAll('.plot')].map(plot => {
                const svg = plot.querySelector('svg.main-svg'), box = plot.getBoundingClientRect();
                const marks = plot.querySelectorAll('.point path, path.point').length;
                return [svg !== null, svg.getBoundingClientRect().width - box.width, marks];
            })"""
        )
        assert len(drawn) == 8  # speed-up, widths, 2 x 2 histograms, trade-off, layers
        for there, too_wide, marks in drawn:
            assert there
            assert too_wide <= 1
            assert marks > 0


@in_browser
def test_the_numbers_of_the_report_are_on_the_page_exactly(browser: Browser, page: Path) -> None:
    browser.open(page)
    found = figures_of(browser)
    for row in [*EXAMPLE["rows"], *EXAMPLE["controls"]]:
        for key in ("score", "parameters", "macs", "file_bytes", "memory_bytes"):
            assert row[key] is None or row[key] in found, (row["name"], key)
        for value in [row["latency_s"][key] for key in ("p50", "p95", "p99")] if row["latency_s"] else []:
            assert value in found
        assert row["speedup"] is None or row["speedup"]["ratio"] in found
    for row in EXAMPLE["sweep"]["rows"]:
        assert {row["score"], row["raw_score"], row["parameters"], *row["settings"].values()} <= found
    for width in EXAMPLE["widths"]:
        assert {width["before"], width["after"]} <= found
    assert {stage["seconds"] for stage in EXAMPLE["stages"]} <= found


@in_browser
def test_the_readers_scheme_colours_the_page_and_its_plots(browser: Browser, page: Path) -> None:
    probe = (
        "[getComputedStyle(document.body).backgroundColor,"
        " getComputedStyle(document.querySelector('.plot .point path')).fill]"
    )
    browser.open(page, scheme="light")
    light = browser.evaluate(probe)
    browser.emulate("dark")
    browser.wait_for(f"{probe}[1] !== {json.dumps(light[1])}", seconds=5)
    dark = browser.evaluate(probe)
    assert light[0] != dark[0]
    browser.open(page, scheme="dark")
    assert browser.evaluate(probe) == dark


@in_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_stands_out_from_its_background(browser: Browser, page: Path, scheme: str) -> None:
    browser.open(page, scheme=scheme)
    weak = browser.evaluate(
        """(() => {
            const parts = colour => colour.match(/[\\d.]+/g).map(Number);
            const light = rgb => rgb.slice(0, 3).map(c => c / 255)
                .map(c => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
                .reduce((sum, c, at) => sum + c * [0.2126, 0.7152, 0.0722][at], 0);
            const behind = e => {
                for (; e; e = e.parentElement) {
                    const found = parts(getComputedStyle(e).backgroundColor);
                    if (found.length === 3 || found[3] > 0) return found;
                }
            };
            const weak = [];
            for (const e of document.querySelectorAll('main *')) {
                const text = [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim());
                if (!text || e.closest('.plot, script')) continue;
                const [a, b] = [light(parts(getComputedStyle(e).color)), light(behind(e))];
                const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
                if (contrast < 4.5) weak.push([e.textContent.slice(0, 30), contrast]);
            }
            return weak;
        })()"""
    )
    assert weak == []


@in_browser
def test_those_who_cannot_see_the_plots_are_shown_what_they_show(browser: Browser, page: Path) -> None:
    browser.open(page)
    labels = browser.evaluate(
        "[...document.querySelectorAll('.plot')].map(p => p.getAttribute('aria-label'))"
    )
    assert all(len(label) > 30 for label in labels)
    assert browser.evaluate("document.querySelectorAll('h1').length") == 1
    assert browser.evaluate("[...document.querySelectorAll('th')].every(th => th.scope !== '')")
    assert browser.evaluate("document.documentElement.lang") == "en"


@in_browser
def test_a_plot_in_a_closed_part_is_drawn_when_it_opens(browser: Browser, tmp_path: Path) -> None:
    report = copy.deepcopy(EXAMPLE)
    report["statistics"] = {f"group{at}": EXAMPLE["statistics"]["fc2"] for at in range(8)}
    browser.open(written(tmp_path, report))
    count = (
        "document.querySelectorAll('.pair svg.main-svg').length > 0 && "
        "[...document.querySelectorAll('.pair .plot')].filter(p => p.querySelector('svg')).length"
    )
    assert browser.evaluate(count) == 12
    browser.evaluate("document.querySelectorAll('details').forEach(details => { details.open = true; })")
    browser.wait_for(f"({count}) === 16", seconds=5)
    assert browser.complaints == []


@in_browser
def test_the_page_prints_in_light_colours_and_within_the_paper(
    browser: Browser, page: Path, tmp_path: Path
) -> None:
    browser.open(page, scheme="dark")
    browser.evaluate("dispatchEvent(new Event('beforeprint'))")
    browser.emulate("dark", media="print")
    browser.resize(700)  # an A4 page without its margins
    assert browser.evaluate("getComputedStyle(document.querySelector('.cards')).display") == "table"
    assert browser.evaluate("document.documentElement.scrollWidth") <= 700
    assert (
        browser.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--ink')") == "#1b1f24"
    )
    browser.evaluate("dispatchEvent(new Event('afterprint'))")
    assert browser.evaluate("document.querySelectorAll('details[open]').length") == 0
    browser.emulate("dark")
    browser.pdf(tmp_path / "report.pdf")
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")


@in_browser
def test_a_browser_that_cannot_draw_is_shown_what_the_plots_show(browser: Browser, page: Path) -> None:
    script = browser.call("Page.addScriptToEvaluateOnNewDocument", source="delete window.DecompressionStream")
    browser.open(page)
    text = browser.evaluate("document.querySelector('.plot').textContent")
    browser.call("Page.removeScriptToEvaluateOnNewDocument", identifier=script["identifier"])
    assert text.startswith(
        "This browser is too old to draw the plot. Speed-up with its interval: Pruned 4.89"
    )


@in_browser
def test_text_of_the_user_stays_text(browser: Browser, tmp_path: Path) -> None:
    report = copy.deepcopy(EXAMPLE)
    report["name"] = report["verdict"]["sentence"] = report["words"][0] = EVIL
    report["rows"][1]["name"] = report["controls"][0]["words"] = report["widths"][0]["group"] = EVIL
    report["score_name"] = report["layers"][0]["name"] = report["stages"][0]["name"] = EVIL
    report["statistics"][EVIL] = report["statistics"].pop("fc1")
    report["conditions"][EVIL] = report["protocol"]["words"] = EVIL
    report["sweep"]["settings"][0] = EVIL
    for row in report["sweep"]["rows"]:
        row["settings"] = {EVIL: EVIL, "prune.std": row["settings"]["prune.std"]}
        row["split"] = EVIL
    path = written(tmp_path, report)
    assert "<script>document" not in path.read_text("utf-8")
    browser.open(path)
    assert browser.complaints == []
    assert browser.evaluate("document.title").startswith(EVIL)
    assert browser.evaluate("document.querySelector('h1').textContent") == EVIL
    ticks = browser.evaluate("[...document.querySelectorAll('.ytick text')].map(t => t.textContent)")
    assert EVIL in ticks


@in_browser
def test_a_run_that_did_little_has_a_page_all_the_same(browser: Browser, tmp_path: Path) -> None:
    browser.open(written(tmp_path, little()), width=390)
    assert browser.complaints == []
    assert browser.evaluate("[...document.querySelectorAll('h2')].map(h => h.textContent)") == [
        "The networks"
    ]
    assert browser.evaluate("document.querySelectorAll('.budgets, .words').length") == 0


def test_each_outcome_has_its_colour_and_sign(tmp_path: Path) -> None:
    signs = set()
    for outcome in ("faster", "slower", "equal", "cannot_tell"):
        report = little()
        report["verdict"]["outcome"] = outcome
        text = written(tmp_path, report).read_text("utf-8")
        assert f'<div class="verdict {outcome}">' in text
        signs |= set(re.findall(r'<path d="([^"]+)"/>', text))
    assert len(signs) == 4


def test_what_was_not_measured_is_a_dash_and_a_page_without_plots_is_small(tmp_path: Path) -> None:
    empty = dict.fromkeys(
        ("score", "parameters", "macs", "file_bytes", "latency_s", "memory_bytes", "speedup")
    )
    report = {key: value for key, value in copy.deepcopy(EXAMPLE).items() if key not in OPTIONAL}
    report["rows"] = [{"name": "original", **empty}, {"name": "pruned", **empty}]
    report["verdict"] |= {"outcome": "cannot_tell", "ratio": None, "low": None, "high": None}
    path = written(tmp_path, report)
    assert "No speed-up was measured." in text_of(path)
    assert "None" not in text_of(path)
    assert path.stat().st_size < 30_000


def test_the_verdict_and_what_the_controls_say_are_in_words(page: Path) -> None:
    text = text_of(page)
    assert text.index(EXAMPLE["verdict"]["sentence"]) < text.index("The networks") < text.index("Stages")
    assert "1 of 6 budgets broken, 1 not measured." in text
    assert "Random neurons at the same widths did as well as" in text
    assert "All models were loaded again 24 times" in text
