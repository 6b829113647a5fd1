from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from deadweight.targets.artifact import write_json
from deadweight.targets.budgets import Budgets
from deadweight.targets.gate.baseline import read_baseline, record
from deadweight.targets.gate.calibrate import calibrate, calibration_sentences
from deadweight.targets.timing.measurement import Protocol

MakeMlp = Callable[..., Path]

RATE = {
    "count": 1,
    "runs": 60,
    "rate": 1 / 60,
    "low": 0.0004,
    "high": 0.089,
    "cannot_tell": 2,
    "median_seconds": 2.0,
}


def test_what_was_counted_is_reported_with_its_interval() -> None:
    row = {**RATE, "wanted": "5 %", "true_slowdown": 0.048}
    sentences = calibration_sentences({"false_alarms": RATE, "planted": [row]})
    assert sentences[0].startswith(
        "False alarms on this runner: 1 of 60 equal models, 1.7 % (95 % interval 0.0 to 8.9 %); 2 undecided"
    )
    assert sentences[1].startswith("Planted slow-down of 4.8 %: 1 of 60 detected")


def test_the_baseline_keeps_it(mlp: MakeMlp, tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    made, _ = record(mlp(64, 32), path, protocol=Protocol(events=96, event_s=0.001, block_s=0.0005))
    write_json(path, replace(made, calibration={"false_alarms": RATE}).to_json())
    assert read_baseline(path).calibration == {"false_alarms": RATE}


@pytest.mark.slow
def test_calibration_counts_false_alarms_and_finds_with_their_intervals(mlp: MakeMlp, tmp_path: Path) -> None:
    path = mlp(1024, 2048, 1024, 10)
    baseline, _ = record(path, tmp_path / "baseline.json", protocol=Protocol(events=96, event_s=0.02))
    calls: list[str] = []
    found = calibrate(
        path, baseline, runs=3, budgets=Budgets(), cap_s=5.0, progress=lambda d, t, what: calls.append(what)
    )
    assert found["false_alarms"]["runs"] == 3
    assert found["false_alarms"]["low"] <= found["false_alarms"]["rate"] <= found["false_alarms"]["high"]
    assert [row["wanted"] for row in found["planted"]] == ["5 %", "10 %"]
    assert found["machine"]["cores"] >= 1
    assert "False alarms on this runner" in calibration_sentences(found)[0]
    assert calls[-1] == "calibrate: 10 %"
