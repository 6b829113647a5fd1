"""Runs that drop single weights, as the command line does them: what is reported of zeros and of tickets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from support.runs import Named, project_of, recipe, run

TRAIN: Named = ("train", {"epochs": 3})
ZEROS: tuple[Named, ...] = (
    TRAIN,
    ("prune", {"parameters": 0.5, "criterion": "weight_l2"}),
    ("finetune", {"epochs": 1}),
    ("sparsify", {"network": "original", "pattern": "2:4", "epochs": 1}),
    "export",
    ("profile", {"events": 6, "event_s": 0.02, "memory": False, "layers": False}),
)
TICKET: tuple[Named, ...] = (
    TRAIN,
    (
        "lottery",
        {
            "rounds": 2,
            "share": 0.3,
            "shares": {"4": 0.1},
            "controls": ["reinitialised", "random", "tuned_on"],
        },
    ),
)


def ran(folder: Path, stages: Sequence[Named]) -> dict[str, Any]:
    """The report of `deadweight run` with these stages."""
    code, report = run(project_of(folder, recipe(*stages, workload="mine.py:Mine")))
    assert code != 2
    return report


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
