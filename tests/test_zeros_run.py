"""Runs that drop single weights, as the command line does them: what is reported of zeros and of tickets."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from deadweight.__main__ import main

HERE = Path(__file__).parent
HEAD = 'workload = "mine.py:Mine"\n[[stages]]\nstage = "train"\nepochs = 3\n'
ZEROS = """
[[stages]]
stage = "prune"
parameters = 0.5
criterion = "weight_l2"
[[stages]]
stage = "finetune"
epochs = 1
[[stages]]
stage = "sparsify"
network = "original"
pattern = "2:4"
epochs = 1
[[stages]]
stage = "export"
[[stages]]
stage = "profile"
events = 6
event_s = 0.02
memory = false
layers = false
"""
TICKET = """
[[stages]]
stage = "lottery"
rounds = 2
share = 0.3
shares = { "4" = 0.1 }
controls = ["reinitialised", "random", "tuned_on"]
"""


def ran(folder: Path, stages: str) -> dict[str, Any]:
    """The report of `deadweight run` with these stages after the training."""
    shutil.copy(HERE / "small.py", folder / "small.py")
    (folder / "mine.py").write_text("from small import Digits\n\n\nclass Mine(Digits):\n    pass\n")
    (folder / "recipe.toml").write_text(HEAD + stages)
    sys.argv = ["deadweight", "run", str(folder / "recipe.toml"), "--out", str(folder / "run")]
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code != 2
    found: dict[str, Any] = json.loads((folder / "run" / "report.json").read_text())
    return found


@pytest.mark.slow
def test_a_run_with_zeros_says_what_they_gain_and_what_neurons_do(tmp_path: Path) -> None:
    report = ran(tmp_path, ZEROS)
    words = " ".join(report["words"])
    assert [row["name"] for row in report["rows"]] == ["original", "pruned", "tuned", "sparse"]
    assert "parameters are left" in words
    assert "as compressed sparse rows" in words
    assert "The tuned network, whose" in words
    assert "SPARSE_WEIGHTS" in words
    assert "has no kernels for it" in words
    assert report["rows"][3]["parameters"] == report["rows"][0]["parameters"]
    assert "SPARSE_WEIGHTS" in (tmp_path / "run" / "report.html").read_text()
    again = ran(tmp_path, ZEROS)
    assert all(stage["cached"] for stage in again["stages"])
    assert again["words"] == report["words"]


def test_a_run_that_looks_for_a_ticket_reports_its_controls(tmp_path: Path) -> None:
    report = ran(tmp_path, TICKET)
    assert [row["name"] for row in report["rows"]] == ["original", "ticket"]
    names = [control["name"] for control in report["controls"]]
    assert names == ["ticket_reinitialised", "ticket_random", "ticket_tuned_on"]
    assert all("the ticket network: accuracy" in control["words"] for control in report["controls"])
