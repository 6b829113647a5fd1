from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from support.digits import Digits
from support.halving import halved
from support.workloads import Images
from torch import nn

from deadweight.pipeline.budget.resolutions import at_resolution
from deadweight.pipeline.pruning.plan import plan_of
from deadweight.pipeline.stage import settings_of
from deadweight.pipeline.stages.controls import Controls, recovery, rescale
from deadweight.pipeline.stages.export import Export
from deadweight.pipeline.stages.finetune import Finetune
from deadweight.pipeline.stages.prune import Prune
from deadweight.pipeline.stages.statistics import Statistics
from deadweight.pipeline.stages.train import Train
from deadweight.pipeline.training.networks import NetworkFiles
from deadweight.pipeline.work import Done, Facts, Work
from deadweight.targets.errors import RecipeError
from deadweight.targets.target import load_target


@pytest.fixture
def work(tmp_path: Path) -> Work:
    result = Work(Digits(), load_target("x86-cpu"), tmp_path, networks=NetworkFiles())
    for stage in (Train(epochs=4), Statistics(), Prune(ratio=0.5), Finetune(epochs=2)):
        result = stage(dataclasses.replace(result, directory=tmp_path / type(stage).__name__))
    return dataclasses.replace(result, directory=tmp_path / "controls")


def test_both_controls_have_the_widths_of_the_pruned_network(work: Work) -> None:
    result = Controls()(work)
    sizes = {v.name: sum(p.numel() for p in result.model(v).parameters()) for v in result.variants}
    assert sizes["random"] == sizes["scratch"] == sizes["tuned"] < sizes["original"]
    assert [v.role for v in result.variants] == ["chain", "chain", "chain", "control", "control"]
    assert result.latest().name == "tuned"


def test_the_random_control_keeps_other_neurons(work: Work) -> None:
    result = Controls(scratch=False)(work)
    chosen, drawn = result.plan(result.variant("tuned")), result.plan(result.variant("random"))
    assert chosen is not None
    assert drawn is not None
    assert chosen.removed != drawn.removed
    assert {name: len(units) for name, units in chosen.removed.items()} == {
        name: len(units) for name, units in drawn.removed.items()
    }


def test_the_network_from_scratch_has_learned(work: Work) -> None:
    result = Controls(random=False)(work)
    x, y = next(iter(Digits().batches("test"))).values()
    found = result.model(result.variant("scratch"))(x).argmax(1)
    assert float((found == y).float().mean()) > 0.6


def test_controls_of_a_network_at_a_lower_resolution_resize_their_images_too(tmp_path: Path) -> None:
    work = Work(Images(), load_target("x86-cpu"), tmp_path, networks=NetworkFiles())
    for stage in (Train(epochs=1), Statistics(), Prune(ratio=0.5)):
        work = stage(dataclasses.replace(work, directory=tmp_path / type(stage).__name__))
    resized = at_resolution(work.model(), (4, 4))
    work = dataclasses.replace(work, directory=tmp_path / "resized")
    work = work.with_model("pruned", resized, plan=plan_of(resized))
    result = Controls(epochs=1)(dataclasses.replace(work, directory=tmp_path / "controls"))
    for name in ("random", "scratch"):
        plan = result.plan(result.variant(name))
        assert plan is not None
        assert [step.resized for step in (*plan.earlier, plan)] == [(), (4, 4)]


def test_without_pruning_there_is_nothing_to_control(tmp_path: Path) -> None:
    work = Train(epochs=1)(Work(Digits(), load_target("x86-cpu"), tmp_path, networks=NetworkFiles()))
    with pytest.raises(RecipeError, match="need a pruned network"):
        Controls()(work)


def test_only_what_trains_after_pruning_is_recovery() -> None:
    stages = (Train(), Finetune(), Prune(ratio=0.5), Finetune(epochs=5), Export())
    log = tuple(Done(type(stage).__name__, settings_of(stage), facts=Facts.of(stage)) for stage in stages)
    assert [(done.stage, done.settings["epochs"]) for done in recovery(log)] == [("Finetune", 5)]
    assert recovery(log[:2]) == []


def test_weights_are_as_if_drawn_for_the_small_network_and_biases_as_the_user_set_them() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 400), nn.ReLU(), nn.Linear(400, 300))
    nn.init.constant_(model[2].bias, -4.0)  # type: ignore[arg-type]
    small, plan, _ = halved(model, torch.rand(2, 64))
    rescale(small, plan)
    twin = nn.Linear(200, 300)
    assert small[2].weight.shape == twin.weight.shape
    assert float(small[2].weight.std().detach()) == pytest.approx(float(twin.weight.std().detach()), rel=0.02)
    assert float(small[0].weight.std().detach()) == pytest.approx(64**-0.5 / 3**0.5, rel=0.02)
    assert torch.equal(small[2].bias, torch.full((300,), -4.0))
