"""What TensorRT would refuse ends a run; a budget limits what DLA leaves to the GPU."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from support import digits

from deadweight.__main__ import main

RECIPE = """
workload = "mine.py:Mine"
{budgets}
[[stages]]
stage = "train"
epochs = 1
[[stages]]
stage = "export"
[[stages]]
stage = "quantize"
{settings}
"""
MINE = """from small import Digits
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(64, 32), nn.Linear(32, 10)

    def forward(self, pixels):
        x = self.a(pixels).relu()
        {line}
        return self.b(x)

class Mine(Digits):
    def build_model(self):
        return Net()
"""


def run(
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    target: str,
    *,
    line: str = "",
    budgets: str = "",
    settings: str = "",
) -> int:
    shutil.copy(digits.__file__, place / "small.py")
    (place / "mine.py").write_text(MINE.format(line=line or "pass"))
    (place / "recipe.toml").write_text(RECIPE.format(budgets=budgets, settings=settings))
    words = ["deadweight", "run", str(place / "recipe.toml"), "--out", str(place / "run"), "--target", target]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as caught:
        main()
    code = caught.value.code
    assert isinstance(code, int)
    return code


def test_a_network_that_tensorrt_refuses_ends_the_run_with_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = "x = x + x.topk(3, sorted=False).values.sum(1, keepdim=True)"
    assert run(tmp_path, monkeypatch, "orin-nano-8gb", line=line) == 2
    printed = " ".join(capsys.readouterr().err.split())
    assert "of orin-nano-8gb would refuse the network original, by rule 105" in printed
    assert "it requests an unsorted result" in printed
    assert "What to do: Request a sorted one." in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize(("limit", "met"), [(0, False), (50, True)])
def test_what_dla_hands_back_is_a_budget_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int, met: bool
) -> None:
    budgets = f"[budgets]\nmax_gpu_fallbacks = {limit}"
    # Nothing was measured here, so a run that breaks nothing ends with 3.
    assert run(tmp_path, monkeypatch, "agx-orin-64gb", budgets=budgets) == (3 if met else 1)
    (budget,) = json.loads((tmp_path / "run" / "report.json").read_text())["budgets"]
    assert budget["met"] is met
    assert 0 < budget["value"] <= 50


def test_what_is_sent_over_the_air_is_a_budget_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    budgets = "[budgets]\nota_bytes = 1000"
    assert run(tmp_path, monkeypatch, "x86-cpu", budgets=budgets) == 1
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    (budget,), last = report["budgets"], report["rows"][-1]
    assert budget["met"] is False
    assert 1000 < budget["value"] == last["ota_bytes"] < last["file_bytes"]
    assert "ota_bytes" not in report["rows"][0]


def test_fp16_for_what_stays_in_float_is_said_and_refused_where_there_is_no_such_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, monkeypatch, "orin-nano-8gb", settings="half = true") == 3
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert any(words.startswith("INT8: FP16 for operators in float: noise 0.") for words in report["words"])
    assert run(tmp_path, monkeypatch, "x86-cpu", settings="half = true") == 2
    assert "leave half out" in capsys.readouterr().err
