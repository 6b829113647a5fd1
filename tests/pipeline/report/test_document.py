"""A page's parts: what the user wrote stays text, in markup, in attributes and in scripts."""

from __future__ import annotations

import base64
import gzip
import json
import re

import jinja2
import pytest
from plotly.offline import get_plotlyjs

from deadweight.pipeline.report.document import Cell, Figure, Legend, Part, Section, Table, Words, document

EVIL = "</script><b>\"'&"
FIGURE = Figure([{"x": [EVIL]}], {"font": {}}, 100, 'a "quoted" <alt>', "1 < 2")


def body(*parts: Part | None) -> str:
    """What is inside the main element of a page."""
    page = document("t", parts)
    return page[page.index("<main>") : page.index("</main>")]


def test_a_figures_data_cannot_end_its_script() -> None:
    markup = body(FIGURE)
    assert markup.count("</script>") == 1
    data = re.search(r">({.*})</script>", markup)
    assert data
    assert json.loads(data[1])["data"] == FIGURE.traces
    assert "1 &lt; 2" in markup
    assert 'aria-label="a &#34;quoted&#34; &lt;alt&gt;"' in markup


def test_text_is_escaped_in_every_part() -> None:
    cells = Cell(EVIL, 1.5, [EVIL])
    table = Table(EVIL, [EVIL] * 2, {"": [[EVIL, cells]], EVIL: [[cells, cells]]}, cards=True)
    page = document(EVIL, [Section(EVIL, [Words([EVIL]), Legend([("var(--kept)", EVIL)]), table], EVIL)])
    assert "<b>" not in page
    assert "\"'&" not in page
    assert "<script" not in page


def test_a_figure_that_is_not_finite_is_refused_and_a_missing_value_too() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        document("t", [Figure([{"x": [float("nan")]}], {}, 1, "a")])
    templates = pytest.importorskip("deadweight.pipeline.report.document")._templates()
    with pytest.raises(jinja2.UndefinedError):
        templates.from_string("{{ nothing }}").render()


def test_plotly_is_carried_whole_and_only_where_there_is_a_plot() -> None:
    page = document("t", [Section("Plot", [FIGURE])])
    packed = re.search(r'id="plotly">([^<]*)<', page)
    assert packed
    assert gzip.decompress(base64.b64decode(packed[1])).decode("utf-8") == get_plotlyjs()
    assert "<script" not in document("t", [Section('class="plot"', [Words(['class="plot"'])])])


def test_a_part_without_content_is_left_out() -> None:
    assert "<section>" not in document("t", [None, Section("Empty", [None, Words([])])])


def test_the_pages_own_files_are_inlined() -> None:
    page = document("t", [FIGURE])
    assert "prefers-color-scheme: dark" in page
    assert "DecompressionStream" in page
    assert not re.search(r"\b(src|href)=", page.replace(get_plotlyjs(), ""))
