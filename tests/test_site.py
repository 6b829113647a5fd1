"""The documentation: links that lead somewhere; as a site, a build without a warning and a real browser."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from support import browser

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    *ROOT.glob("*.md"),
    *(path for folder in ("docs", "examples", "benchmarks") for path in (ROOT / folder).rglob("*.md")),
]
LINK = re.compile(r"\]\((?!\w+:)([^)#\s]*)(?:#([^)\s]*))?\)")
CODE = re.compile(r"^(`{3,}).*?^\1|`[^`\n]+`", re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(
        r"^#+ +(.+)$", re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.M | re.S), re.M
    )
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [str(path.relative_to(ROOT)) for path in PAGES if "runs" not in path.parts])
def test_every_link_of_a_page_leads_somewhere(page: str) -> None:
    here = ROOT / page
    for place, anchor in LINK.findall(CODE.sub("", here.read_text("utf-8"))):
        target = here.parent / place if place else here
        assert target.exists(), f"{page} links to {place}"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{page} links to {place}#{anchor}"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("material")
    pytest.importorskip("mkdocstrings")
    place = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(place)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return place


@pytest.mark.slow
def test_the_site_has_every_page_command_stage_and_public_name(site: Path) -> None:
    import deadweight
    from deadweight.pipeline.stage import stage_names

    assert {path.stem for path in (ROOT / "docs").glob("*.md")} <= {path.stem for path in site.glob("*.html")}
    python, stages = ((site / "reference" / f"{name}.html").read_text() for name in ("python", "stages"))
    assert not [name for name in deadweight.__all__ if f'id="deadweight.{name}"' not in python]
    assert not [name for name in stage_names() if f'id="{name}"' not in stages]
    commands = (site / "reference" / "commands.html").read_text()
    assert "Replace a setting, e.g. prune.mean=0.1; repeatable." in commands


@pytest.mark.slow
@pytest.mark.skipif(browser.CHROMIUM is None, reason="there is no Chromium here: apt install chromium")
def test_a_page_fits_screens_of_1280_and_390_pixels_and_loads_nothing_from_elsewhere(site: Path) -> None:
    with browser.chromium() as tab:
        for path in sorted(site.rglob("*.html")):
            if path.name in ("404.html", "report.html"):
                continue
            for width in (1280, 390):
                tab.open(path, width=width)
                root = "document.documentElement"
                assert tab.evaluate(f"{root}.scrollWidth <= {root}.clientWidth"), f"{path} at {width}"
                assert not tab.complaints, path
                assert not [one for one in tab.requests if one.startswith("http")], path
                broken = "[...document.images].filter(one => !one.naturalWidth).map(one => one.src)"
                assert tab.evaluate(broken) == [], path
