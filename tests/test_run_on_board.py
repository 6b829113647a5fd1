"""`run --on BOARD` from nothing to a report, where the board has NVIDIA's bindings over the fake TensorRT."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support import ssh_board
from support.runs import project_of, recipe, run
from support.simulated_board import simulated_board

RECIPE = recipe(
    *(("train", {"epochs": 3}), "statistics", ("prune", {"ratio": 0.25}), ("finetune", {"epochs": 1})),
    *("export", "quantize", ("profile", {"events": 6, "event_s": 0.01})),
    workload="mine.py:Mine",
    head='target = "orin-nano-8gb"\n[budgets]\nscore_drop = 0.5\n',
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(ssh_board.SSHD is None, reason="there is no sshd here: apt install openssh-server"),
]


def test_a_run_times_and_scores_engines_and_builds_none_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    board = simulated_board(tmp_path, "10.3.0")
    monkeypatch.setenv("DEADWEIGHT_SSH_CONFIG", str(board.config))
    monkeypatch.setenv("COLUMNS", "160")
    (tmp_path / "project").mkdir()
    project = project_of(tmp_path / "project", RECIPE)
    code, report = run(project, "--on", "board")
    said = " ".join(capsys.readouterr().out.split())
    assert code == 3, said
    assert report["protocol"]["runtime"] == "tensorrt"
    assert report["protocol"]["precision"] == "fp16"
    rows = {row["name"]: row for row in report["rows"]}
    assert set(rows) == {"original", "pruned", "tuned", "int8"}
    for row in rows.values():  # the fake computes with ONNX Runtime, so an engine scores as its file does
        assert row["engine_score"] == pytest.approx(row["score"], abs=0.02)
    assert re.search("on the .*board parameters", said)  # the title of a column, in two lines
    assert "Simulated on the GPU" in said
    assert "by TensorRT 10.3.0, original FP16, int8 INT8 and FP16" in said
    assert "INT8 against the same network in FP16" in said
    plans = {path: path.stat().st_mtime_ns for path in board.home.rglob("engines/*/*.plan")}
    assert len(plans) == 4
    run(project, "--on", "board", "--set", "profile.events=7")
    assert {path: path.stat().st_mtime_ns for path in board.home.rglob("engines/*/*.plan")} == plans
    assert "built before, and not again" in " ".join(capsys.readouterr().err.split())
