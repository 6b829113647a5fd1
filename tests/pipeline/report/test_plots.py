from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest

from deadweight.pipeline.report import plots
from deadweight.pipeline.report.document import Figure
from deadweight.pipeline.report.plots import (
    LAYERS_SHOWN,
    Point,
    histogram_figure,
    layers_figure,
    over_time_figure,
    speedup_figure,
    thresholds,
    widths_figure,
)
from deadweight.pipeline.report.schema import Layer, Report, validate_report
from deadweight.pipeline.report.tradeoff import tradeoff_figure
from deadweight.pipeline.report.words import scale_of

EXAMPLE: Report = validate_report(
    json.loads((Path(__file__).parent / "report_example.json").read_text("utf-8"))
)
CSS = (Path(plots.__file__).parent / "templates" / "page.css").read_text("utf-8")
VARIABLE = re.compile(r"var\((--[\w-]+)\)")


POINT = Point("2026-01-01T00:00:00+00:00", 2e-3, 1.9e-3, 2.1e-3, "a", "var(--kept)")


def figures() -> dict[str, Figure | None]:
    units, sweep = (EXAMPLE.get("statistics") or {})["fc1"], EXAMPLE.get("sweep")
    assert sweep
    return {
        "widths": widths_figure(EXAMPLE.get("widths", [])),
        "mean": histogram_figure(units, "mean", name="fc1", threshold=0.24),
        "std": histogram_figure(units, "std", name="fc1"),
        "speedup": speedup_figure(EXAMPLE["rows"]),
        "layers": layers_figure(EXAMPLE.get("layers", []), EXAMPLE["rows"]),
        "history": over_time_figure({"a": [POINT, POINT]}, "Latency of a over 2 measurements."),
        "tradeoff": tradeoff_figure(sweep, scale_of(EXAMPLE)),
    }


@pytest.mark.parametrize("name", list(figures()))
def test_plotly_itself_accepts_every_figure(name: str) -> None:
    figure = figures()[name]
    assert figure
    go.Figure(json.loads(VARIABLE.sub("#123456", json.dumps(figure.json()))))


@pytest.mark.parametrize("name", list(figures()))
def test_every_colour_is_one_of_the_pages(name: str) -> None:
    figure = figures()[name]
    assert figure
    used = set(VARIABLE.findall(json.dumps(figure.json())))
    assert used
    assert used <= set(re.findall(r"(--[\w-]+):", CSS))
    assert "#" not in VARIABLE.sub("", json.dumps(figure.json()))


def test_a_histogram_counts_every_unit_once_and_parts_the_removed() -> None:
    units = (EXAMPLE.get("statistics") or {})["fc1"]
    removed, kept = histogram_figure(units, "mean", name="fc1").traces
    assert sum(removed["y"]) == sum(units["removed"])
    assert sum(kept["y"]) == len(units["removed"]) - sum(units["removed"])
    below = sum(np.asarray(units["mean"]) < 0.24)
    step = removed["width"] / 0.92
    left = sum(n for x, n in zip(removed["x"], removed["y"], strict=True) if x + step / 2 <= 0.24)
    assert left <= below


def test_a_group_that_is_constant_or_empty_has_a_histogram_too() -> None:
    constant: Any = {"mean": [1.0] * 4, "std": [0.0] * 4, "zero_share": [0.0] * 4, "removed": [False] * 4}
    assert sum(histogram_figure(constant, "mean", name="g").traces[1]["y"]) == 4
    empty: Any = {"mean": [], "std": [], "zero_share": [], "removed": []}
    assert sum(histogram_figure(empty, "std", name="g").traces[0]["y"]) == 0


def test_the_widths_are_drawn_as_they_are() -> None:
    before, after = widths_figure(EXAMPLE.get("widths", [])).traces
    assert before["x"] == [1024, 512]
    assert after["x"] == [width["after"] for width in EXAMPLE.get("widths", [])]


def test_a_speed_up_is_drawn_with_its_interval_in_the_colour_of_its_outcome() -> None:
    figure = speedup_figure(EXAMPLE["rows"])
    assert figure
    speedup = EXAMPLE["rows"][3]["speedup"]
    assert speedup
    trace = figure.traces[2]
    assert speedup["low"] is not None
    assert trace["error_x"]["arrayminus"] == pytest.approx([speedup["ratio"] - speedup["low"]])
    assert trace["marker"]["color"] == "var(--faster)"


def test_a_speed_up_without_an_interval_has_no_arms() -> None:
    rows: Any = [
        {
            "name": "pruned",
            "speedup": {"outcome": "cannot_tell", "ratio": 1.1, "low": None, "high": None},
        }
    ]
    figure = speedup_figure(rows)
    assert figure
    assert "error_x" not in figure.traces[0]
    assert speedup_figure([]) is None


def test_the_slowest_layers_are_drawn_and_the_rest_are_added_up() -> None:
    layers: list[Layer] = [{"name": f"conv{i}", "latency_s": {"original": 1e-3 * i}} for i in range(50)]
    figure = layers_figure(layers, EXAMPLE["rows"])
    assert figure
    (trace,) = figure.traces
    assert trace["y"][-1] == f"{50 - LAYERS_SHOWN} other layers"
    assert trace["y"][:-1] == [f"conv{i}" for i in range(30, 50)]
    assert sum(trace["x"]) == pytest.approx(sum(range(50)))


def test_text_of_the_user_cannot_be_markup_in_a_plot() -> None:
    figure = widths_figure([{"group": "<script>x</script>", "kind": "linear", "before": 2, "after": 1}])
    assert "<script" not in json.dumps(figure.json())
    assert figure.traces[0]["y"] == ["&lt;script&gt;x&lt;/script&gt;"]


def test_thresholds_are_taken_from_a_stages_settings_only_where_they_are_numbers() -> None:
    assert thresholds({"mean": 0.1, "std": None, "align": 16}) == {"mean": 0.1}
