from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.digits import Digits

from deadweight.pipeline.stage import NamedStage
from deadweight.pipeline.stages.controls import Controls
from deadweight.pipeline.stages.distill import Distill
from deadweight.pipeline.stages.prune import Prune
from deadweight.pipeline.stages.statistics import Statistics
from deadweight.pipeline.stages.train import Train
from deadweight.pipeline.training.networks import NetworkFiles
from deadweight.pipeline.training.predict import score_of, torch_predict
from deadweight.pipeline.work import Work
from deadweight.targets.errors import RecipeError
from deadweight.targets.target import load_target


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Work:
    place = tmp_path_factory.mktemp("distill")
    result = Work(Digits(), load_target("x86-cpu"), place, networks=NetworkFiles())
    for stage in (Train(epochs=5), Statistics(), Prune(ratio=0.7)):
        result = stage(dataclasses.replace(result, directory=place / type(stage).__name__))
    return result


def accuracy(work: Work) -> float:
    return score_of(Digits(), torch_predict(work.model(), ["pixels"]), "test")


def test_a_student_learns_from_three_teachers(pruned: Work, tmp_path: Path) -> None:
    work = Distill(epochs=4, teachers=3)(dataclasses.replace(pruned, directory=tmp_path))
    assert accuracy(work) > accuracy(pruned)
    assert work.latest().name == "tuned"
    assert work.log[-1].words[0].startswith("3 teachers, 4 epochs")
    first, second = (load_file(tmp_path / f"teacher-{n}" / "model.safetensors") for n in (1, 2))
    assert not torch.equal(first["0.weight"], second["0.weight"])


def test_the_users_own_checkpoints_teach_and_are_read(pruned: Work, tmp_path: Path) -> None:
    own = pruned.variant("original").path("weights")
    stage = Distill(epochs=1, checkpoints=(str(own), str(own)), hints=1.0)
    assert stage.reads() == [own, own]
    work = stage(dataclasses.replace(pruned, directory=tmp_path))
    assert work.log[-1].words[0].startswith("3 teachers")
    assert "has no effect" in work.log[-1].words[1]


def test_more_teachers_need_to_know_how_the_first_was_trained() -> None:
    with pytest.raises(RecipeError, match="The original was not trained in this run"):
        Distill(epochs=1, teachers=2).check([NamedStage("statistics", Statistics())])


def test_the_random_control_goes_to_the_same_school(pruned: Work, tmp_path: Path) -> None:
    work = Distill(epochs=1)(dataclasses.replace(pruned, directory=tmp_path / "distill"))
    work = Controls(scratch=False)(dataclasses.replace(work, directory=tmp_path / "controls"))
    assert (tmp_path / "controls" / "random" / "0" / "checkpoint.safetensors").exists()
    assert work.variant("random").role == "control"


STUDENT = """\
from torch import nn


class Small(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(64, 20), nn.Tanh(), nn.Linear(20, 10))
"""


def test_a_student_of_the_users_own_learns_from_scratch(
    pruned: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_students.py").write_text(STUDENT)
    monkeypatch.syspath_prepend(str(tmp_path))
    stage = Distill(epochs=8, student="own_students.Small")
    assert stage.code() == [tmp_path / "own_students.py"]
    work = stage(dataclasses.replace(pruned, directory=tmp_path / "stage"))
    assert type(work.model()).__name__ == "Small"
    assert work.plan(work.latest()) is None
    assert accuracy(work) > 0.6


def test_a_student_that_is_not_there_is_refused(pruned: Work, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r'no student "torch\.nothing"'):
        Distill(student="torch.nothing")(dataclasses.replace(pruned, directory=tmp_path))
    with pytest.raises(RecipeError, match="processes = 1"):
        Distill(student="torch.nn.Identity", processes=2)(pruned)
