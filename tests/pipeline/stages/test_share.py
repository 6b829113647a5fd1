from __future__ import annotations

import dataclasses
from pathlib import Path

import onnx
import pytest
import torch
from support.digits import Digits
from torch import Tensor, nn

from deadweight.pipeline.pruning.groups import choose
from deadweight.pipeline.pruning.plan import plan_of
from deadweight.pipeline.pruning.surgery import apply, replay
from deadweight.pipeline.pruning.trace import trace
from deadweight.pipeline.stages.export import Export
from deadweight.pipeline.stages.factorize import Factorize
from deadweight.pipeline.stages.finetune import Finetune
from deadweight.pipeline.stages.prune import Prune
from deadweight.pipeline.stages.share import Share, drift, equal_layers, merged, owners, parameters_of, tied
from deadweight.pipeline.training.networks import NetworkFiles
from deadweight.pipeline.work import Work
from deadweight.targets.errors import ModelError, RecipeError
from deadweight.targets.target import load_target


class Repeated(nn.Module):
    """An embedding, three layers of one shape, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(64, 32)
        self.steps = nn.ModuleList(nn.Linear(32, 32) for _ in range(3))
        self.head = nn.Linear(32, 10)

    def forward(self, pixels: Tensor) -> Tensor:
        x = torch.relu(self.embed(pixels))
        for step in self.steps:
            x = torch.relu(step(x))
        out: Tensor = self.head(x)
        return out


class Repeats(Digits):
    def build_model(self) -> nn.Module:
        return Repeated()


def twins() -> Repeated:
    """The last two of the three are equal."""
    model = Repeated().eval()
    model.steps[2].load_state_dict(model.steps[1].state_dict())
    return model


def work_with(model: nn.Module, folder: Path) -> Work:
    return Work(Repeats(), load_target("x86-cpu"), folder, networks=NetworkFiles()).with_model(
        "original", model
    )


def test_named_layers_are_tied_and_start_at_their_mean(tmp_path: Path) -> None:
    model = Repeated()
    made = Share(ties=(("steps.0", "steps.1", "steps.2"),))(work_with(model, tmp_path))
    shared = made.model()
    assert isinstance(shared, Repeated)
    assert shared.steps[0].weight is shared.steps[1].weight is shared.steps[2].weight
    assert shared.steps[0].bias is shared.steps[2].bias
    mean = torch.stack([model.get_parameter(f"steps.{at}.weight") for at in range(3)]).mean(0)
    assert torch.allclose(shared.get_parameter("steps.0.weight"), mean, atol=1e-7)
    assert made.log[-1].words[0] == "5,578 parameters -> 3,466"
    assert made.log[-1].words[1].startswith("steps.0.weight = steps.1.weight = steps.2.weight: moved by 0.")


def test_layers_found_equal_are_tied_and_the_network_stays_what_it_was(tmp_path: Path) -> None:
    model = twins()
    shared = Share()(work_with(model, tmp_path)).model()
    assert isinstance(shared, Repeated)
    assert shared.steps[1].weight is shared.steps[2].weight is not shared.steps[0].weight
    x = torch.rand(3, 64)
    assert torch.equal(shared(x), model(x))


def test_tied_parameters_stay_tied_in_training(tmp_path: Path) -> None:
    work = Share()(work_with(twins(), tmp_path))
    tuned = Finetune(epochs=2)(work).model()
    assert isinstance(tuned, Repeated)
    assert tuned.steps[1].weight is tuned.steps[2].weight
    assert not torch.equal(
        tuned.get_parameter("steps.1.weight"), work.model().get_parameter("steps.1.weight")
    )


def test_tied_layers_are_pruned_together_and_come_back(tmp_path: Path) -> None:
    work = Share(ties=(("steps.0", "steps.1"),))(work_with(twins(), tmp_path))
    work = Prune(ratio=0.5, criterion="weight_l2")(dataclasses.replace(work, directory=tmp_path / "p"))
    small = work.model()
    assert isinstance(small, Repeated)
    assert len({id(step.weight) for step in small.steps}) == 1
    assert small.steps[0].weight.shape == (16, 16)


def test_a_network_in_the_graph_form_is_tied_too() -> None:
    model, example = twins().eval(), {"pixels": torch.rand(2, 64)}
    groups = trace(model, example)
    plan = choose(groups, {group.name: torch.rand(group.size) for group in groups}, ratio=0.25)
    small = apply(model, plan, groups, form="graph")
    shapes = {name: tuple(one.shape) for name, one in small.named_parameters()}
    pair = next((a, b) for a in shapes for b in shapes if a < b and "weight" in a and shapes[a] == shapes[b])
    shared = tied(small, (pair,))
    assert shared.get_parameter(pair[0]) is shared.get_parameter(pair[1])
    done = plan_of(shared)
    assert done is not None
    again = replay(twins(), done, example)
    again.load_state_dict(shared.state_dict())
    assert torch.allclose(again.eval()(example["pixels"]), shared(example["pixels"]), atol=1e-6)


def test_thin_layers_are_tied(tmp_path: Path) -> None:
    model = twins()
    work = Factorize(energy=0.5, layers=("steps.1", "steps.2"))(work_with(model, tmp_path))
    shared = Share()(dataclasses.replace(work, directory=tmp_path / "s")).model()
    one, other = shared.get_submodule("steps.1.reduce"), shared.get_submodule("steps.2.reduce")
    assert one.weight is other.weight


def test_the_file_holds_a_tied_weight_once(tmp_path: Path) -> None:
    work = Share(ties=(("steps.0", "steps.1", "steps.2"),))(work_with(Repeated(), tmp_path))
    work = Export()(dataclasses.replace(work, directory=tmp_path / "e"))
    sizes = {}
    for variant in work.variants:
        path = variant.path("onnx")
        shapes = [list(tensor.dims) for tensor in onnx.load(path).graph.initializer]
        sizes[variant.name] = (shapes.count([32, 32]), path.stat().st_size)
    assert (sizes["original"][0], sizes["shared"][0]) == (3, 1)
    assert sizes["original"][1] - sizes["shared"][1] > 2 * 4 * 32 * 32


def test_where_no_layers_are_equal_nothing_is_made(tmp_path: Path) -> None:
    work = Share()(work_with(Repeated(), tmp_path))
    assert [variant.name for variant in work.variants] == ["original"]
    assert work.log[-1].words == ("no two layers are equal: nothing was tied",)


def test_layers_that_hold_one_value_only_are_not_taken_for_equal() -> None:
    model = Repeated()
    for step in model.steps:
        nn.init.zeros_(step.weight)  # type: ignore[arg-type]
        nn.init.zeros_(step.bias)  # type: ignore[arg-type]
    assert equal_layers(model) == []


def test_a_layer_that_differs_in_a_bit_or_in_its_kind_is_not_equal() -> None:
    model = twins()
    with torch.no_grad():
        model.steps[2].weight[0, 0] += 1e-6  # type: ignore[index, operator]
    assert equal_layers(model) == []

    class Other(nn.Linear):
        pass

    pair = nn.Sequential(nn.Linear(4, 4), Other(4, 4))
    pair[1].load_state_dict(pair[0].state_dict())
    assert equal_layers(pair) == []


def test_ties_that_meet_are_one_and_those_that_hold_already_are_none() -> None:
    model = twins()
    names = [f"steps.{at}.weight" for at in range(3)]
    assert merged(model, [(names[1], names[2]), (names[0], names[1])]) == (tuple(names),)
    shared = tied(model, ((names[1], names[2]),))
    assert owners(shared) == ((names[1], names[2]),)
    assert merged(shared, [(names[2], names[1])]) == ()
    assert merged(shared, [(names[0], names[2])]) == (tuple(names),)


def test_how_far_tied_parameters_move_is_reported() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        model.get_parameter("0.weight").fill_(1.0)
        model.get_parameter("1.weight").fill_(3.0)
    assert drift(model, (("0.weight", "1.weight"),)) == {
        ("0.weight", "1.weight"): pytest.approx((8 / 40) ** 0.5)
    }


def test_layers_of_other_shapes_are_refused_with_the_shapes() -> None:
    with pytest.raises(
        ModelError, match=r"embed and head cannot be tied: weight \(32, 64\), bias \(32,\) against"
    ):
        parameters_of(Repeated(), ("embed", "head"))
    with pytest.raises(ModelError, match=r"embed.weight and head.weight cannot be tied: \(32, 64\) against"):
        parameters_of(Repeated(), ("embed.weight", "head.weight"))
    pair = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4, bias=False))
    with pytest.raises(ModelError, match="cannot be tied"):
        parameters_of(pair, ("0", "1"))


def test_a_name_that_is_not_there_is_refused_with_the_nearest() -> None:
    with pytest.raises(ModelError, match=r'no layer or parameter "step\.1"') as caught:
        parameters_of(Repeated(), ("steps.0", "step.1"))
    assert "steps.1" in caught.value.cure
    with pytest.raises(ModelError, match='"1" with parameters of its own'):
        parameters_of(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), ("0", "1"))


def test_a_stage_without_anything_to_do_is_refused() -> None:
    with pytest.raises(RecipeError, match="nothing to do"):
        Share(equal=False)
    with pytest.raises(RecipeError, match="a list of 1 names to tie"):
        Share(ties=(("steps.0", "steps.0"),))
