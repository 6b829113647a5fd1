"""Blocks go in the order in which the validation split misses them least, within a budget."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support import block_nets
from support.workloads import Deep
from torch import Tensor, nn

from deadweight.pipeline.stage import Stage, make_stage
from deadweight.pipeline.stages.controls import Controls
from deadweight.pipeline.stages.depth import Depth
from deadweight.pipeline.stages.export import Export
from deadweight.pipeline.stages.finetune import Finetune
from deadweight.pipeline.stages.prune import Prune
from deadweight.pipeline.training.networks import NetworkFiles
from deadweight.pipeline.work import Work
from deadweight.targets.errors import ModelError, RecipeError
from deadweight.targets.runtimes.open import open_session
from deadweight.targets.target import load_target


def trained() -> nn.Module:
    """A few steps of training, in which the idle block stays idle."""
    torch.manual_seed(0)
    workload = Deep()
    model = workload.build_model()
    learning = [value for name, value in model.named_parameters() if not name.startswith("layer1.1.bn2")]
    optimizer = torch.optim.Adam(learning, lr=5e-3)
    for epoch in range(4):
        for batch in workload.batches("train", seed=epoch):
            optimizer.zero_grad()
            workload.loss(model(batch["image"]), batch).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return model.eval()


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Work:
    place = tmp_path_factory.mktemp("depth")
    return Work(Deep(), load_target("x86-cpu"), place, networks=NetworkFiles()).with_model(
        "original", trained()
    )


def at(work: Work, place: Path) -> Work:
    place.mkdir(parents=True, exist_ok=True)
    return dataclasses.replace(work, directory=place)


def size(work: Work, name: str) -> int:
    return sum(parameter.numel() for parameter in work.model(work.variant(name)).parameters())


def dropped(work: Work, name: str = "shallow") -> list[str]:
    plan = work.plan(work.variant(name))
    assert plan is not None
    return [path for step in (*plan.earlier, plan) for path in step.dropped]


def measured(work: Work) -> Mapping[str, Any]:
    value: Mapping[str, Any] = json.loads(work.artifacts["depth"].checked().read_text())
    return value


def test_the_block_that_adds_nothing_goes_first_and_costs_nothing(start: Work, tmp_path: Path) -> None:
    work = Depth(blocks=1, norms=0)(at(start, tmp_path))
    assert dropped(work) == ["layer1.1"]
    found = measured(work)
    first = found["rounds"][0]
    assert first["dropped"] == "layer1.1"
    assert set(first["scores"]) == {"layer1.0", "layer1.1", "layer2.0", "layer2.1"}
    assert first["scores"]["layer1.1"] == found["score"] > 0.5
    image = start.workload.example_inputs()["image"]
    assert torch.allclose(work.model()(image), start.model()(image), rtol=1e-5, atol=1e-6)


def test_the_score_is_measured_anew_after_each_and_never_of_what_went(start: Work, tmp_path: Path) -> None:
    work = Depth(blocks=3, norms=0)(at(start, tmp_path))
    rounds = measured(work)["rounds"]
    assert [len(one["scores"]) for one in rounds] == [4, 3, 2]
    for one in rounds:
        assert one["scores"][one["dropped"]] == max(one["scores"].values())
        assert one["dropped"] not in [
            path for later in rounds[rounds.index(one) + 1 :] for path in later["scores"]
        ]
    assert set(dropped(work)) == {one["dropped"] for one in rounds}
    assert work.log[-1].words[0].startswith("3 of 4 dropped")


def test_a_share_of_the_parameters_is_reached_and_not_overshot_by_a_block(
    start: Work, tmp_path: Path
) -> None:
    work = Depth(parameters=0.3, norms=0)(at(start, tmp_path))
    whole, left = size(work, "original"), size(work, "shallow")
    assert left <= 0.7 * whole
    last = measured(work)["rounds"][-1]["dropped"]
    block = whole_block(work, last)
    assert left + block > 0.7 * whole


def whole_block(work: Work, path: str) -> int:
    names = {name for name, _ in work.model().named_parameters()}
    original = work.model(work.variant("original"))
    return sum(
        value.numel()
        for name, value in original.named_parameters()
        if name.startswith(path) and name not in names
    )


def test_a_drop_that_is_allowed_ends_it_and_what_would_break_it_stays(start: Work, tmp_path: Path) -> None:
    work = Depth(score_drop=0.001, norms=0)(at(start, tmp_path))
    found = measured(work)
    costs = [found["score"] - one["scores"][one["dropped"]] for one in found["rounds"] if one["dropped"]]
    assert costs
    assert all(cost <= 0.001 for cost in costs)
    assert found["rounds"][-1]["dropped"] == "" or len(costs) == 4
    assert len(dropped(work)) == len(costs)
    assert "stays, as without it" in work.log[-1].words[-1]


def test_a_first_block_that_costs_too_much_is_an_error_with_a_cure(start: Work, tmp_path: Path) -> None:
    stage = Depth(score_drop=0.0, only=("layer2.0",))
    with pytest.raises(ModelError, match=r"costs more than is allowed \(score_drop 0\.0\): layer2\.0 stays"):
        stage(at(start, tmp_path))
    assert not (tmp_path / "shallow").exists()


class Dividing(block_nets.Stages):
    """It divides by what its first block adds: nothing, without that block."""

    def forward(self, image: Tensor) -> Tensor:
        before = F.relu(self.stem(image))
        after = self.layer1[0](before)
        scores: Tensor = self.fc(self.layer2(self.layer1[1](after)).mean((2, 3)))
        out: Tensor = scores / (after - before).abs().amax((1, 2, 3))[:, None]
        return out


def test_a_block_without_which_outputs_are_no_numbers_stays(start: Work, tmp_path: Path) -> None:
    class Divided(Deep):
        def build_model(self) -> nn.Module:
            return Dividing()

    model = Dividing()
    model.load_state_dict(start.model().state_dict())
    work = dataclasses.replace(start, workload=Divided(), variants=())
    work = at(work, tmp_path).with_model("original", model.eval())
    work = Depth(blocks=1, norms=0)(work)
    assert set(measured(work)["rounds"][0]["scores"]) == {"layer1.1", "layer2.0", "layer2.1"}
    with pytest.raises(ModelError, match="the outputs are NaN or infinite"):
        Depth(blocks=1, only=("layer1.0",), norms=0)(at(work, tmp_path / "only"))


def test_a_score_that_is_better_lower_is_read_that_way(start: Work, tmp_path: Path) -> None:
    class Loss(Deep):
        score_name = "loss"
        higher_is_better = False

        def score(self, predict: Any, batches: Any) -> float:
            losses = []
            for batch in batches:
                out = torch.from_numpy(predict({"image": batch["image"].numpy()})["output"])
                losses.append(float(self.loss(out, batch)))
            return float(np.mean(losses))

    work = Depth(blocks=2, norms=0)(at(dataclasses.replace(start, workload=Loss()), tmp_path))
    for one in measured(work)["rounds"]:
        assert one["scores"][one["dropped"]] == min(one["scores"].values())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"blocks": 9}, "asks for 9 blocks, but only 4 can be dropped"),
        ({"parameters": 0.99}, "all blocks that can be dropped have"),
    ],
)
def test_more_than_can_go_is_refused_before_anything_is_scored(
    start: Work, tmp_path: Path, settings: Any, message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        Depth(**settings)(at(start, tmp_path))


@pytest.mark.parametrize("settings", [{}, {"blocks": 1, "parameters": 0.5}])
def test_one_budget_is_given(settings: Any) -> None:
    with pytest.raises(RecipeError, match="Give a number of blocks, or a share"):
        make_stage("depth", settings, "stages[1]")


def test_layers_go_by_the_same_rule(start: Work, tmp_path: Path) -> None:
    work = Depth(blocks=2, kind="layers", norms=0)(at(start, tmp_path))
    gone = dropped(work)
    assert len(gone) == 2
    assert all(isinstance(start.model().get_submodule(path), nn.Conv2d) for path in gone)
    assert any("cannot be dropped: stem: it turns" in words for words in work.log[-1].words)


def test_what_stands_for_the_idle_block_goes_at_random_too(start: Work, tmp_path: Path) -> None:
    drawn = {
        dropped(
            Depth(blocks=1, order="random", norms=0)(at(dataclasses.replace(start, seed=seed), tmp_path))
        )[0]
        for seed in range(6)
    }
    assert len(drawn) > 1


def test_batch_norms_are_estimated_anew_on_demand(start: Work, tmp_path: Path) -> None:
    stage = Depth(blocks=1, only=("layer1.0",), norms=4)
    mean = "layer2.0.downsample.1.running_mean"
    after = stage(at(start, tmp_path)).model().state_dict()[mean]
    assert not torch.equal(after, start.model().state_dict()[mean])


def test_blocks_neurons_and_tuning_go_together_to_a_file_that_computes_the_same(
    start: Work, tmp_path: Path
) -> None:
    work = start
    stages: dict[str, Stage] = {
        "depth": Depth(blocks=1, norms=2),
        "prune": Prune(ratio=0.5, criterion="weight_l2", align=False, norms=2),
        "tune": Finetune(epochs=1),
        "again": Depth(blocks=1, norms=0),
        "export": Export(),
    }
    for place, stage in stages.items():
        work = stage(at(work, tmp_path / place))
    assert [variant.name for variant in work.variants] == ["original", "pruned", "tuned", "shallow"]
    plan = work.plan(work.latest())
    assert plan is not None
    assert [len(step.dropped) for step in (*plan.earlier, plan)] == [1, 0, 1]
    image = start.workload.example_inputs()["image"]
    session = open_session(work.latest("onnx").path("onnx"))
    found = session.run({"image": image.numpy()})["output"]
    session.close()
    assert np.allclose(found, work.model()(image).detach().numpy(), rtol=1e-3, atol=1e-4)


def test_controls_are_random_blocks_and_the_shallow_network_from_scratch(start: Work, tmp_path: Path) -> None:
    work = Depth(blocks=1, norms=0)(at(start, tmp_path / "depth"))
    work = Finetune(epochs=1)(at(work, tmp_path / "tune"))
    work = Controls(epochs=1)(at(work, tmp_path / "controls"))
    assert [variant.name for variant in work.variants[-2:]] == ["random_blocks", "scratch"]
    assert len(dropped(work, "random_blocks")) == 1
    assert size(work, "scratch") == size(work, "tuned") < size(work, "original")
    assert (tmp_path / "controls" / "random" / "0" / "checkpoint.safetensors").exists()


def test_where_neurons_went_too_the_control_draws_neurons_and_keeps_the_blocks(
    start: Work, tmp_path: Path
) -> None:
    work = Depth(blocks=1, norms=0)(at(start, tmp_path / "depth"))
    work = Prune(ratio=0.5, criterion="weight_l2", align=False)(at(work, tmp_path / "prune"))
    work = Controls(scratch=False)(at(work, tmp_path / "controls"))
    assert dropped(work, "random") == dropped(work, "pruned")
    assert size(work, "random") == size(work, "pruned")
    chosen, drawn = work.plan(work.variant("pruned")), work.plan(work.variant("random"))
    assert chosen is not None
    assert drawn is not None
    assert chosen.removed != drawn.removed
