from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from deadweight.targets.errors import ArtifactError
from deadweight.targets.gate.history import append, entry, read
from deadweight.targets.timing.measurement import Mark, Measurement, Protocol


def measured(time_ns: int = 1_000_000) -> Measurement:
    wall_ns = np.full((6, 3, 2), time_ns)
    return Measurement(
        name="m.onnx",
        model_sha256="ab",
        file_bytes=10,
        run_id="r",
        wall_ns=wall_ns,
        cpu_ns=wall_ns.sum(axis=2),
        runs=1,
        protocol=Protocol(events=6),
        conditions={"machine": {"cpu": "a CPU", "cores": 2}, "software": {}},
        marks=(Mark(1, "throttled"), Mark(1, "a swap")),
    )


def test_lines_come_back_in_order_and_carry_commit_machine_and_protocol(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "history.jsonl"
    for commit in ("one", "two"):
        append(path, entry(measured(), commit=commit, verdict={"outcome": "equal"}, memory_bytes=5))
    lines = read(path)
    assert [line["commit"] for line in lines] == ["one", "two"]
    assert lines[0]["machine"] == {"cpu": "a CPU", "cores": 2}
    assert lines[0]["protocol"]["threads"] == 1
    assert lines[0]["latency_s"] == {"p50": 0.001, "low": 0.001, "high": 0.001}
    assert lines[0]["marked"] == 1


def test_a_line_that_a_crash_cut_off_is_left_out_and_does_not_spoil_the_next(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    append(path, entry(measured(), commit="one"))
    with path.open("a") as file:
        file.write(json.dumps(entry(measured(), commit="cut"))[:80])
    assert [line["commit"] for line in read(path)] == ["one"]
    append(path, entry(measured(), commit="two"))
    assert [line["commit"] for line in read(path)] == ["one", "two"]


def test_a_line_that_somebody_broke_is_an_error_with_its_number(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    path.write_text("nonsense\n" + json.dumps(entry(measured())) + "\n")
    with pytest.raises(ArtifactError, match="Line 1 of the history"):
        read(path)


def test_another_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    path.write_text('{"schema": 99}\n')
    with pytest.raises(ArtifactError, match="schema 99"):
        read(path)


def test_a_history_that_is_not_there_or_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="cannot be read"):
        read(tmp_path / "none.jsonl")
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="cannot be written"):
        append(tmp_path / "file" / "history.jsonl", {})
