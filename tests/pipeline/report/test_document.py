from __future__ import annotations

import base64
import gzip
import json
import re

from plotly.offline import get_plotlyjs

from deadweight.pipeline.report.document import document, legend, plot, section
from deadweight.pipeline.report.plots import Figure

FIGURE = Figure([{"x": ["</script><b>"]}], {"font": {}}, 100, 'a "quoted" <alt>')


def test_a_figures_data_cannot_end_its_script() -> None:
    markup = plot(FIGURE, caption="1 < 2")
    assert markup.count("</script>") == 1
    data = re.search(r">({.*})</script>", markup)
    assert data
    assert json.loads(data[1])["data"] == FIGURE.traces
    assert "1 &lt; 2" in markup
    assert 'aria-label="a &quot;quoted&quot; &lt;alt&gt;"' in markup


def test_plotly_is_carried_whole_and_only_where_there_is_a_plot() -> None:
    page = document("t", [section("Plot", plot(FIGURE))])
    packed = re.search(r'id="plotly">([^<]*)<', page)
    assert packed
    assert gzip.decompress(base64.b64decode(packed[1])).decode("utf-8") == get_plotlyjs()
    assert "<script" not in document("t", [section("Words", "<p>none</p>")])


def test_a_part_without_content_is_left_out() -> None:
    assert section("Empty", "", "") == ""
    assert document("t", ["", "<p>x</p>", ""]).count("<section>") == 0


def test_a_legend_names_its_colours() -> None:
    assert "background:var(--kept)" in legend([("var(--kept)", "kept & well")])
    assert "kept &amp; well" in legend([("var(--kept)", "kept & well")])
