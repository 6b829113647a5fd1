from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from deadweight.pipeline.report.history import write_measurements
from deadweight.targets.errors import ArtifactError
from deadweight.targets.gate.history import append


def line(commit: str, p50: float, *, cpu: str = "a CPU", verdict: str = "") -> dict[str, Any]:
    judged = {"outcome": verdict, "ratio": 0.9, "low": 0.88, "high": 0.92, "sentence": "1.1x slower"}
    return {
        "schema": 1,
        "at": f"2026-01-0{len(commit)}T00:00:00+00:00",
        "commit": commit,
        "name": "<net>.onnx",
        "machine": {"cpu": cpu, "cores": 2},
        "latency_s": {"p50": p50, "low": 0.99 * p50, "high": 1.01 * p50},
        "events": 24,
        "marked": 3,
        "verdict": judged if verdict else None,
    }


def test_the_page_has_every_measurement_with_interval_and_verdict(tmp_path: Path) -> None:
    for one in (line("a", 0.001), line("bb", 0.0011, verdict="slower")):
        append(tmp_path / "history.jsonl", one)
    page = write_measurements(tmp_path)
    assert page == tmp_path / "history.html"
    text = page.read_text("utf-8")
    assert set(re.findall(r'<data value="(0\.0011?)">', text)) == {"0.001", "0.0011"}
    assert "slower" in text
    assert "0.88" in text
    assert "3 marked" in text
    assert "<net>" not in text.replace("&lt;net&gt;", "")


def test_machines_are_kept_apart(tmp_path: Path) -> None:
    for cpu in ("a CPU", "another CPU"):
        append(tmp_path / "h.jsonl", line("a", 0.001, cpu=cpu))
    text = write_measurements(tmp_path / "h.jsonl").read_text("utf-8")
    assert re.findall(r"<h2>(.*?)</h2>", text) == ["a CPU, 2 cores", "another CPU, 2 cores"]


@pytest.mark.parametrize(
    "wrong", [{"latency_s": [1]}, {"machine": 3}, {"verdict": {"outcome": 7}}, {"at": {}}]
)
def test_a_line_of_another_form_is_reported(tmp_path: Path, wrong: dict[str, Any]) -> None:
    append(tmp_path / "h.jsonl", {**line("a", 0.001), **wrong})
    with pytest.raises(ArtifactError, match="line of another form"):
        write_measurements(tmp_path / "h.jsonl")


def test_no_measurements_are_no_page(tmp_path: Path) -> None:
    (tmp_path / "history.jsonl").write_text("")
    with pytest.raises(ArtifactError, match="no measurements yet"):
        write_measurements(tmp_path)
    assert not (tmp_path / "history.html").exists()
