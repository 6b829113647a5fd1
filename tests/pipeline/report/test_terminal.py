from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console, RenderableType

from deadweight.pipeline.report.schema import Report, validate_report
from deadweight.pipeline.report.terminal import summary_table, sweep_table, verdict_line
from deadweight.pipeline.report.units import TIMES
from deadweight.pipeline.report.words import label, scale_of

EXAMPLE = (Path(__file__).parent / "report_example.json").read_text("utf-8")


@pytest.fixture
def report() -> Report:
    return validate_report(json.loads(EXAMPLE))


def printed(value: RenderableType, width: int) -> str:
    file = io.StringIO()
    Console(file=file, width=width).print(value)
    return file.getvalue().replace("\N{NO-BREAK SPACE}", " ")


def test_the_verdict_comes_with_its_interval_and_the_broken_budgets(report: Report) -> None:
    text = printed(verdict_line(report), 100)
    assert report["verdict"]["sentence"] in text
    assert f"8.61{TIMES} to 9.54{TIMES}" in text
    assert "memory: 2.16 MB, at most 2.00 MB: broken" in text
    assert "file:" not in text  # that budget is met


def test_what_is_sent_is_shown_where_there_is_a_budget_for_it(report: Report) -> None:
    assert " sent" not in printed(summary_table(report), 100)
    report["rows"][-1]["ota_bytes"] = 91_000
    report["budgets"] = [{"name": "ota_bytes", "limit": 90_000, "value": 91_000, "met": False}]
    assert "91.0 kB sent" in printed(summary_table(report), 100)
    assert "sent over the air: 91.0 kB, at most 90.0 kB: broken" in printed(verdict_line(report), 100)


@pytest.mark.parametrize("width", [80, 140])
def test_no_figure_of_the_table_is_cut_off(report: Report, width: int) -> None:
    text = printed(summary_table(report), width)
    assert "\N{HORIZONTAL ELLIPSIS}" not in text
    for figure in (
        "89.47 %",
        "89.21 %",
        "343 k",
        "349 kB",
        "0.0487 ms",
        "\N{MINUS SIGN}74.3 %",
        f"9.06{TIMES}",
        f"4.90{TIMES}",
        "87.59 %",
    ):
        assert figure in text
    assert all(len(line) <= width for line in text.splitlines())


def test_with_scores_on_the_board_every_network_keeps_its_name_in_80_columns(report: Report) -> None:
    for row in report["rows"]:
        row["engine_score"], row["memory_bytes"] = row["score"], None
    for row in report.get("controls", []):
        row["memory_bytes"] = None
    text = printed(summary_table(report), 80)
    assert "\N{HORIZONTAL ELLIPSIS}" not in text
    assert text.splitlines()[1].split()[0] == "Network"
    for row in report["rows"]:
        assert any(line.startswith(label(row["name"]).split()[0]) for line in text.splitlines())
    assert text.count("89.47 %") == 2
    assert "memory" not in text


def test_the_table_of_a_sweep_is_whole_in_80_columns_and_marks_the_choice(report: Report) -> None:
    sweep = report.get("sweep")
    assert sweep is not None
    table = sweep_table(sweep, scale_of(report))
    text = printed(table, 80)
    assert "\N{HORIZONTAL ELLIPSIS}" not in text
    assert text.count("chosen") == sum(row["chosen"] for row in sweep["rows"]) == 1
    assert text.count("removed") == len(sweep["rows"])
