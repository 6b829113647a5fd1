"""The command soak: on this machine by the agent, and on a real board for five minutes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.onnx_files import save_mlp
from typer.testing import CliRunner

import deadweight
from deadweight.cli import app


def test_soak_writes_text_json_and_a_page(tmp_path: Path) -> None:
    large, small = save_mlp(tmp_path / "large.onnx", 256, 512, 256), save_mlp(tmp_path / "small.onnx", 64, 64)
    arguments = ["soak", str(large), str(small), "--minutes", "0.02", "--period", "0.1", "--on", "local"]
    done = CliRunner().invoke(app, [*arguments, "--rate", "200", "--out", str(tmp_path / "soak.json")])
    assert done.exit_code in (0, 3), done.output
    assert "large.onnx" in done.stdout
    assert "at most" in done.stdout
    record = json.loads((tmp_path / "soak.json").read_text())
    assert record["soak"]["plan"]["loads"]["baseline"]["rate_hz"] == 200
    assert record["summary"]["judgements"][""]["ratio"] > 0
    assert "<html" in (tmp_path / "soak.html").read_text()


def test_power_modes_need_permission(tmp_path: Path) -> None:
    model = save_mlp(tmp_path / "a.onnx", 8, 8)
    with pytest.raises(deadweight.DeadweightError, match="changes the power mode") as caught:
        deadweight.soak(model, power_modes=["15W", "MAXN"])
    assert "--allow-power-mode" in caught.value.cure


@pytest.mark.jetson
def test_five_minutes_of_soak_and_energy(
    board: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_mlp(tmp_path / "model.onnx", 1024, 4096, 4096, 1000)
    found = deadweight.soak(model, minutes=5, period_s=5, on=board)
    with capsys.disabled():
        print(f"\nPlease send us this. deadweight on {board}:")
        deadweight.show(found)
    assert len({one.round for one in found.soak.periods}) >= 8
    energy = found.summary.rows[0].energy
    assert energy is not None
    assert energy.j is not None or energy.reason
