"""docs/extending.md: its files are written as they stand, and its commands are run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_readme import BLOCK, FILE, ROOT, run

PAGE = (ROOT / "docs" / "extending.md").read_text("utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("extending")
    for name, text in FILE.findall(PAGE):
        (place / name).write_text(text)
    return place


@pytest.fixture(scope="module")
def commands() -> list[str]:
    found = [text for _, _, text in BLOCK.findall(PAGE)]
    assert (len(FILE.findall(PAGE)), len(found)) == (6, 2)
    return found


def test_an_own_criterion_stage_tuning_runtime_and_board_go_through_all_that_ours_do(
    folder: Path, commands: list[str]
) -> None:
    run(folder, "sh", commands[0])
    report = json.loads((folder / "runs" / "own" / "report.json").read_text())
    assert {row["name"] for row in report["controls"]} == {"random", "scratch"}
    assert report["conditions"]["target"] == "my-board"
    assert all(row["latency_s"] for row in report["rows"])
    kept = {stage["name"]: stage["cached"] for stage in report["stages"]}
    assert kept["train"]  # the sweep before had made it


@pytest.mark.slow
def test_own_stages_survive_a_kill_and_resume(folder: Path, commands: list[str]) -> None:
    """Slow: some ten processes. tests/api/test_testing.py has the same checks on two stages of ours."""
    run(folder, "sh", commands[1])
