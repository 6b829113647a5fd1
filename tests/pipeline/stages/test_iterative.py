from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from support.digits import Digits

from deadweight.pipeline.stages.controls import Controls
from deadweight.pipeline.stages.iterative import Iterative, shares
from deadweight.pipeline.stages.train import Train
from deadweight.pipeline.training.networks import NetworkFiles
from deadweight.pipeline.work import Work
from deadweight.targets.errors import ModelError, RecipeError
from deadweight.targets.target import load_target


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Work:
    place = tmp_path_factory.mktemp("iterative")
    return Train(epochs=5)(Work(Digits(), load_target("x86-cpu"), place, networks=NetworkFiles()))


def size(work: Work, name: str) -> int:
    return sum(parameter.numel() for parameter in work.model(work.variant(name)).parameters())


def ran(stage: Iterative, work: Work, place: Path) -> Work:
    return stage(dataclasses.replace(work, directory=place))


def test_every_schedule_ends_at_the_goal_and_never_gives_back() -> None:
    for schedule in ("linear", "cubic", "geometric"):
        found = shares(0.9, 4, schedule)
        assert found[-1] == pytest.approx(0.9)
        assert found == sorted(found)
    assert shares(0.8, 4, "linear") == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert shares(0.75, 2, "geometric") == pytest.approx([0.5, 0.75])
    assert shares(0.8, 2, "cubic") == pytest.approx([0.7, 0.8])


def test_steps_lead_to_the_size_that_was_asked_for(trained: Work, tmp_path: Path) -> None:
    work = ran(Iterative(parameters=0.8, steps=3, epochs=1), trained, tmp_path)
    assert [variant.name for variant in work.variants] == ["original", "pruned", "tuned"]
    assert size(work, "pruned") == size(work, "tuned")
    removed = 1 - size(work, "tuned") / size(work, "original")
    assert 0.8 <= removed < 0.83
    assert len(work.log[-1].words) == 3
    plan = work.plan(work.latest())
    assert plan is not None
    assert len(plan.earlier) == 2


def test_a_step_that_breaks_the_floor_is_taken_back(trained: Work, tmp_path: Path) -> None:
    stage = Iterative(parameters=0.99, steps=3, schedule="linear", epochs=0, score_drop=0.1, norms=0)
    work = ran(stage, trained, tmp_path)
    assert "undone" in work.log[-1].words[-1]
    steps_kept = len(work.log[-1].words) - 1
    assert steps_kept >= 1
    removed = 1 - size(work, "tuned") / size(work, "original")
    assert removed == pytest.approx(0.99 * steps_kept / 3, abs=0.05)


def test_a_first_step_that_breaks_the_floor_is_an_error_with_a_cure(trained: Work, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="first step already breaks the floor"):
        ran(Iterative(parameters=0.98, steps=1, epochs=0, score_drop=0.0), trained, tmp_path)


def test_a_floor_that_the_unpruned_network_misses_is_refused(trained: Work, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"beyond the floor of 0\.9990"):
        ran(Iterative(parameters=0.5, score_floor=0.999), trained, tmp_path)


def test_two_floors_are_one_too_many(trained: Work, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="Give one of them"):
        ran(Iterative(parameters=0.5, score_floor=0.5, score_drop=0.1), trained, tmp_path)


def test_steps_end_as_soon_as_the_network_is_fast_enough(trained: Work, tmp_path: Path) -> None:
    work = ran(Iterative(parameters=0.9, steps=4, epochs=0, latency_s=10.0), trained, tmp_path)
    assert len(work.log[-1].words) == 1
    assert "fast enough" in work.log[-1].words[0]


def test_a_latency_on_a_board_that_is_not_here_is_refused() -> None:
    with pytest.raises(RecipeError, match="this machine is not one"):
        Iterative(parameters=0.5, latency_s=1.0).check_target(load_target("orin-nano-8gb"))


def test_a_stage_that_was_killed_goes_on_at_its_step(trained: Work, tmp_path: Path) -> None:
    stage = Iterative(parameters=0.8, steps=3, epochs=1)
    whole = ran(stage, trained, tmp_path / "whole")

    class PowerCutError(Exception):
        pass

    def cut(done: int, total: int, what: str) -> None:
        if done == 2:
            raise PowerCutError

    with pytest.raises(PowerCutError):
        stage(dataclasses.replace(trained, directory=tmp_path / "cut", progress=cut))
    finished = {path: path.stat().st_mtime_ns for path in (tmp_path / "cut").rglob("*.safetensors")}
    assert (tmp_path / "cut" / "step-2" / "done.json").exists()
    resumed = ran(stage, trained, tmp_path / "cut")
    assert all(path.stat().st_mtime_ns == when for path, when in finished.items())
    assert resumed.digest() == whole.digest()


def test_controls_have_its_widths_and_train_as_long(trained: Work, tmp_path: Path) -> None:
    work = ran(Iterative(parameters=0.7, steps=2, epochs=1), trained, tmp_path / "it")
    work = Controls()(dataclasses.replace(work, directory=tmp_path / "controls"))
    assert size(work, "random") == size(work, "scratch") == size(work, "tuned")
    assert (tmp_path / "controls" / "random" / "1" / "checkpoint.safetensors").exists()
