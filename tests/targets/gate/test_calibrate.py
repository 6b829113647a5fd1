from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from deadweight.targets.artifact import write_json
from deadweight.targets.budgets import Budgets
from deadweight.targets.gate.baseline import read_baseline, record
from deadweight.targets.gate.calibrate import calibrate
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


def test_the_baseline_keeps_it(mlp: MakeMlp, tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    made, _ = record(mlp(64, 32), path, protocol=Protocol(events=96, event_s=0.001, block_s=0.0005))
    write_json(path, replace(made, calibration={"false_alarms": RATE}).to_json())
    assert read_baseline(path).calibration == {"false_alarms": RATE}


def test_calibration_counts_false_alarms_with_their_interval(mlp: MakeMlp, tmp_path: Path) -> None:
    path = mlp(256, 256, 10)
    baseline, _ = record(
        path, tmp_path / "baseline.json", protocol=Protocol(events=24, event_s=0.004, block_s=0.001)
    )
    calls: list[int] = []
    found = calibrate(
        path, baseline, runs=3, budgets=Budgets(), cap_s=2.0, progress=lambda done, total: calls.append(done)
    )
    counted = found["false_alarms"]
    assert counted["runs"] == 3
    assert counted["low"] <= counted["rate"] <= counted["high"]
    assert found["machine"]["cores"] >= 1
    assert calls == [0, 1, 2, 3]
