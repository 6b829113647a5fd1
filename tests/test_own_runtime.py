"""A runtime of the user's own, in a file beside a board's TOML, goes through what the built-in ones do."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from test_measure import saved

from deadweight.__main__ import main

Called = Callable[..., tuple[int, str]]
HERE = Path(__file__).parent
BOARD = """
name = "mine"
title = "This machine with a runtime of its own"
runtime = "own_runtime.py:{}"
precisions = ["fp32", "int8"]
"""
RECIPE = """
workload = "digits.py:Digits"
target = "mine.toml"
[[stages]]
stage = "train"
epochs = 2
[[stages]]
stage = "prune"
ratio = 0.5
criterion = "weight_l2"
[[stages]]
stage = "export"
[[stages]]
stage = "profile"
events = 6
event_s = 0.01
[[stages]]
stage = "evaluate"
"""


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Called:
    """Runs a command beside the board, its runtime and two models; the exit code, and what it printed."""
    shutil.copy(HERE / "support" / "own_runtime.py", tmp_path)
    shutil.copy(HERE / "support" / "digits.py", tmp_path)
    (tmp_path / "mine.toml").write_text(BOARD.format("RUNTIME"))
    (tmp_path / "recipe.toml").write_text(RECIPE)
    saved(tmp_path / "wide.onnx", 512, 512, 10)
    saved(tmp_path / "narrow.onnx", 512, 64, 10)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["deadweight", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        return int(caught.value.code or 0), printed.out + printed.err

    return call


def test_compare_and_profile_measure_with_it(called: Called, tmp_path: Path) -> None:
    code, said = called(
        *("compare", "wide.onnx", "narrow.onnx", "--target", "mine.toml"),
        *("--events", "8", "--event-s", "0.01", "--out", "compared.json"),
    )
    assert code in (0, 3), said  # on a busy machine it may not be told
    compared = json.loads((tmp_path / "compared.json").read_text())
    assert compared["baseline"]["protocol"]["runtime"] == "onnx-reference"
    short = ("--events", "2", "--event-s", "0.01")
    code, said = called("profile", "wide.onnx", "--target", "mine.toml", *short, "--out", "profile.json")
    assert code == 0, said
    (measured,) = json.loads((tmp_path / "profile.json").read_text())["measurements"]
    assert measured["protocol"]["runtime"] == "onnx-reference"
    assert "memory" in said
    code, said = called("profile", "wide.onnx", "--target", "mine.toml", *short, "--layers")
    assert (code, "does not time layers" in said) == (2, True)
    code, said = called("profile", "wide.onnx", "--target", "mine.toml", *short, "--on", "local")
    assert (code, "which no board has" in said) == (2, True)


def test_the_gate_records_and_checks_with_it_and_a_baseline_loads_nothing(
    called: Called, tmp_path: Path
) -> None:
    (tmp_path / "deadweight.toml").write_text(
        '[gate]\nmodel = "wide.onnx"\nbaseline = "baseline.json"\ntarget = "mine.toml"\ncap_s = 3.0\n'
        "[budgets]\nslowdown = 0.5\nmemory_bytes = 1e12\n"
    )
    code, said = called("gate", "--record")
    assert code == 0, said
    held = json.loads((tmp_path / "baseline.json").read_text())
    assert held["protocol"]["runtime"] == "onnx-reference"
    code, said = called("gate", "--model", "narrow.onnx")
    assert code in (0, 3), said
    assert "memory_bytes" in said

    # Without the board the same baseline is of another runtime; and what it names is never imported.
    (tmp_path / "deadweight.toml").unlink()
    names = ("gate", "--model", "narrow.onnx", "--baseline", "baseline.json")
    code, said = called(*names)
    assert (code, "was recorded on onnx-reference" in said) == (2, True)
    (tmp_path / "evil.py").write_text("open('imported', 'w')")
    held["protocol"]["runtime"] = f"{tmp_path / 'evil.py'}:RUNTIME"
    (tmp_path / "baseline.json").write_text(json.dumps(held))
    assert called(*names)[0] == 2
    assert called(*names, "--target", "mine.toml")[0] == 2
    assert not (tmp_path / "imported").exists()


def test_a_run_measures_and_scores_with_it(called: Called, tmp_path: Path) -> None:
    code, said = called("run", "recipe.toml", "--out", "run")
    assert code in (0, 1, 3), said  # faster, slower or not to be told: what this runtime makes of it
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["protocol"]["runtime"] == "onnx-reference"
    assert all(row["latency_s"] for row in report["rows"])


def test_one_that_is_not_installed_ends_a_run_before_it_trains(called: Called, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(BOARD.format("NOT_INSTALLED"))
    for command in (
        ("run", "recipe.toml", "--out", "run"),
        ("compare", "wide.onnx", "narrow.onnx", "--target", "mine.toml"),
        ("profile", "wide.onnx", "--target", "mine.toml"),
    ):
        code, said = called(*command)
        assert (code, "needs Absent, which is not installed here" in said) == (2, True), said
        assert "pip install no-such-runtime" in said
    assert not list((tmp_path / "run").glob("stages/train*"))
