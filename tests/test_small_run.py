"""One small run, as the command line does it, and what comes of running it again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.runs import MINE, project_of, recipe, run

RECIPE = recipe(
    *(("train", {"epochs": 5}), "statistics", ("prune", {"ratio": 0.25}), ("finetune", {"epochs": 2})),
    *("controls", "export", "quantize", ("profile", {"events": 6, "event_s": 0.02})),
    workload="mine.py:Mine",
    head="""
[budgets]
score_drop = 0.2
parameters_removed = 0.3
[sweep]
over = { "prune.ratio" = [0.25, 0.5] }
score_drop = 0.2
seconds = 1.0
""",
)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return project_of(tmp_path_factory.mktemp("small"), RECIPE)


@pytest.fixture(scope="module")
def first(project: Path) -> tuple[int, dict[str, Any]]:
    return run(project)


def test_a_run_ends_with_a_report_of_every_network(first: tuple[int, dict[str, Any]], project: Path) -> None:
    code, report = first
    assert code in (0, 1, 3)
    assert [row["name"] for row in report["rows"]] == ["original", "pruned", "tuned", "int8"]
    assert [row["name"] for row in report["controls"]] == ["random", "scratch"]
    assert (project / "run" / "report.html").stat().st_size > 10_000
    assert {path.stem for path in (project / "run" / "networks").iterdir()} == {
        *("original", "pruned", "tuned", "int8")
    }


def test_the_sweep_chooses_the_smallest_network_within_the_drop(first: tuple[int, dict[str, Any]]) -> None:
    rows = first[1]["sweep"]["rows"]
    assert [row["settings"]["prune.ratio"] for row in rows] == [0.25, 0.5]
    assert [row["chosen"] for row in rows] == [False, True]
    assert rows[1]["parameters"] == first[1]["rows"][2]["parameters"]


def test_controls_have_the_widths_of_the_pruned_network(first: tuple[int, dict[str, Any]]) -> None:
    tuned = first[1]["rows"][2]
    assert [row["parameters"] for row in first[1]["controls"]] == [tuned["parameters"]] * 2


def test_the_exit_code_follows_from_the_verdict_and_the_budgets(first: tuple[int, dict[str, Any]]) -> None:
    code, report = first
    proven = report["verdict"]["outcome"] == "faster" and all(b["met"] for b in report["budgets"])
    assert (code == 0) == proven


def test_layers_are_judged_in_every_network(first: tuple[int, dict[str, Any]]) -> None:
    products = [layer for layer in first[1]["layers"] if layer["kind"] in ("Gemm", "MatMul")]
    assert len(products) == 3
    for layer in products:
        assert set(layer["latency_s"]) == {"original", "pruned", "tuned", "int8"}
        assert set(layer["judged"]) == {"pruned", "tuned", "int8"}
    assert any(layer["judged"]["pruned"]["pruned"] for layer in products)


def test_a_second_run_keeps_everything(first: tuple[int, dict[str, Any]], project: Path) -> None:
    _, report = run(project)
    assert all(stage["cached"] for stage in report["stages"])
    assert report["rows"] == first[1]["rows"]


def test_another_setting_runs_only_what_follows_it(first: tuple[int, dict[str, Any]], project: Path) -> None:
    _, report = run(project, "--set", "quantize.method=percentile")
    ran = [stage["name"] for stage in report["stages"] if not stage["cached"]]
    assert ran == ["quantize", "profile", "evaluate"]


@pytest.mark.slow
def test_an_edit_of_the_users_own_file_never_serves_a_stale_result(
    first: tuple[int, dict[str, Any]], project: Path
) -> None:
    def folders() -> set[str]:
        return {path.name for path in (project / "run" / "stages").iterdir()}

    before = folders()
    (project / "mine.py").write_text(MINE.replace("pass", "score_name = 'hits'"))
    _, report = run(project)
    made_anew = {name.rpartition("-")[0] for name in folders() - before}
    assert made_anew == {stage["name"] for stage in report["stages"]}
    assert report["score_name"] == "hits"
    (project / "mine.py").write_text(MINE)


def test_for_a_board_that_is_not_here_nothing_is_called_faster(project: Path) -> None:
    code, report = run(project, "--target", "orin-nano-8gb")
    assert code == 3
    assert report["verdict"]["ratio"] is None
    assert report["verdict"]["outcome"] == "cannot_tell"
    assert [row["speedup"] for row in report["rows"]] == [None] * 4
