"""The directory of a run that version 0.1.0 made: its report is read, its stages are made anew beside it."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from support.digits import Digits

from deadweight.__main__ import main
from deadweight.pipeline.runs.cache import Run
from deadweight.pipeline.stage import NamedStage
from deadweight.pipeline.stages.train import Train
from deadweight.pipeline.training.networks import NetworkFiles
from deadweight.pipeline.work import Work
from deadweight.targets.target import load_target

OLD = Path(__file__).parent / "run_0_1_0"
STAGE = "stages/train-4ee06517fad24be0"
DONE = {
    "artifacts": {},
    "log": [{"settings": {"epochs": 6, "rewind_step": 0}, "stage": "train", "words": ["6 epochs"]}],
    "made_by": {"deadweight": "0.1.0"},
    "seconds": 6.8,
    "variants": [
        {"files": {"weights": {"path": f"{STAGE}/w", "sha256": "0"}}, "name": "original", "role": "chain"}
    ],
}


@pytest.fixture
def old(tmp_path: Path) -> Path:
    directory = tmp_path / "run"
    shutil.copytree(OLD, directory)
    (directory / STAGE).mkdir(parents=True)
    (directory / STAGE / "w").write_bytes(b"weights")
    (directory / STAGE / "done.json").write_text(json.dumps(DONE))
    return directory


def test_the_report_of_an_old_run_is_rendered(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["deadweight", "report", str(old)])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code in (0, None)
    page = (old / "report.html").read_text()
    assert "87.22" in page
    assert "81.67" in page


def test_a_stage_that_an_old_run_finished_is_made_anew_and_the_old_one_is_kept(old: Path) -> None:
    run = Run(old, (Path(__file__),), "data")
    work = Work(Digits(), load_target("x86-cpu"), old, networks=NetworkFiles())
    made = run.step(NamedStage("train", Train(epochs=0)), work)
    assert [finished.cached for finished in run.finished] == [False]
    assert made.latest().path("weights").is_file()
    assert (old / STAGE / "w").read_bytes() == b"weights"
    assert json.loads((old / STAGE / "done.json").read_text()) == DONE
