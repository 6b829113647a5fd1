"""The reference by which surgery is judged: it cuts nothing, and says what the narrower network computes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from support import nets, sequence_nets
from support.halving import half_of, halved
from torch import Tensor, nn

from deadweight.pipeline.pruning.compare import relative_error, run
from deadweight.pipeline.pruning.groups import Groups, remove
from deadweight.pipeline.pruning.narrow import cut_tensors, named_tensors
from deadweight.pipeline.pruning.plan import Plan
from deadweight.pipeline.pruning.resize import resized
from deadweight.pipeline.pruning.survivors import (
    Recorder,
    Survivors,
    first_difference,
    place_of,
    renormalised_by,
)
from deadweight.pipeline.pruning.trace import trace

PLAIN: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (nets.Mlp, (2, 1, 4, 4)),
    "residual": (nets.ResidualCnn, (2, 3, 8, 8)),
    "separable": (nets.Separable, (2, 3, 6, 6)),
    "shuffled": (nets.Shuffled, (2, 3, 8, 8)),
    "recurrent": (sequence_nets.Recurrent, (2, 6, 5)),
}


class Normed(nn.Module):
    """A layer norm and a mean over units."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.norm, self.fc2 = nn.Linear(5, 8), nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.fc1(x)
        return self.fc2(F.relu(self.norm(y))), y.mean(-1)


def reference(groups: Groups, plan: Plan, *, keep: bool = False) -> Survivors:
    alive = groups.tracing.alive(plan.removed)
    found = Survivors(groups.tracing, alive, resized(groups.tracing, alive)[0])
    found.keep = keep
    return found


def zeroed(model: nn.Module, plan: Plan) -> nn.Module:
    """The network with what is removed at zero, in place; written without the code under test."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            for axis, indices in plan.cut.get(name, {}).items():
                parameter.index_fill_(axis, torch.tensor(indices), 0)
    return model


def double(build: Callable[[], nn.Module]) -> nn.Module:
    return nets.lively(build()).double()


@pytest.mark.parametrize("name", PLAIN)
def test_without_norms_over_units_it_is_the_network_with_zeros(name: str) -> None:
    build, shape = PLAIN[name]
    model, example = double(build), nets.image(*shape).double()
    groups = trace(model, (example,))
    plan = half_of(groups)
    assert renormalised_by(groups, groups.tracing.alive(plan.removed)) == ()
    with torch.no_grad():
        found = list(reference(groups, plan).run(example))
    expected = run(zeroed(double(build), plan), (example,))
    assert relative_error(expected, found) < 1e-12
    assert relative_error(run(model, (example,)), found) > 1e-3


def test_norms_and_means_are_taken_over_those_that_live() -> None:
    model, example = double(Normed), nets.image(2, 4, 5).double()
    groups = trace(model, (example,))
    dead = torch.tensor([True, False, True, False, False, False, False, True])
    plan = remove(groups, {"fc1": dead})
    with torch.no_grad():
        out, mean = reference(groups, plan).run(example)
        units = F.linear(example, model.get_parameter("fc1.weight"), model.get_parameter("fc1.bias"))[
            ..., ~dead
        ]
        weight, bias = (model.get_parameter(f"norm.{name}")[~dead] for name in ("weight", "bias"))
        normed = F.layer_norm(units, (5,), weight, bias)
        expected = F.linear(
            F.relu(normed), model.get_parameter("fc2.weight")[:, ~dead], model.get_parameter("fc2.bias")
        )
    assert torch.allclose(mean, units.mean(-1), rtol=1e-12)
    assert torch.allclose(out, expected, rtol=1e-12)
    assert not torch.allclose(out, zeroed(model, plan)(example)[0], rtol=1e-3)


def test_operators_over_fewer_units_are_listed_once_with_their_line() -> None:
    groups = trace(Normed(), (nets.image(2, 4, 5),))
    words = renormalised_by(groups, groups.tracing.alive({"fc1": (0,)}))
    assert [word.split(" at ")[0] for word in words] == ["layer_norm", "mean"]
    assert "return self.fc2(F.relu(self.norm(y))), y.mean(-1)" in words[1]
    assert renormalised_by(groups, groups.tracing.alive({})) == ()

    class Twice(Normed):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            y = self.fc1(x)
            for _ in range(2):
                y = F.relu(self.norm(y))
            out: Tensor = self.fc2(y)
            return out

    groups = trace(Twice(), (nets.image(2, 4, 5),))
    assert len(renormalised_by(groups, groups.tracing.alive({"fc1": (0,)}))) == 1


def test_what_an_operator_makes_of_a_removed_zero_is_not_read() -> None:
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(5, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.fc2(torch.cos(self.fc1(x)))  # cos(0) is not 0
            return out

    model, example = double(Shifted), nets.image(2, 5).double()
    small, plan, groups = halved(model, example)
    with torch.no_grad():
        (found,) = reference(groups, plan).run(example)
    assert torch.allclose(found, small(example), rtol=1e-12)
    with torch.no_grad():
        for name in ("fc1.weight", "fc1.bias"):
            model.get_parameter(name)[list(plan.removed["fc1"])] = 0
    assert not torch.allclose(found, model(example), rtol=1e-3)


def test_the_parameters_of_the_original_are_not_touched() -> None:
    model = nets.lively(nets.ResidualCnn())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    groups = trace(model, (nets.image(2, 3, 8, 8),))
    reference(groups, half_of(groups)).run(nets.image(2, 3, 8, 8))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_values_are_kept_where_they_are_asked_for() -> None:
    groups = trace(nets.lively(nets.Mlp()), (nets.image(2, 1, 4, 4),))
    kept = reference(groups, half_of(groups), keep=True)
    kept.run(nets.image(2, 1, 4, 4))
    assert kept.results[groups["fc1"].reads[0].node].shape == (2, 12)  # at full width
    forgetful = reference(groups, half_of(groups))
    forgetful.run(nets.image(2, 1, 4, 4))
    assert forgetful.results == {}


@pytest.mark.parametrize("spoilt", ["conv1.weight", "norm1.bias", "fc.weight"])
def test_the_first_layer_that_differs_is_found_and_named(spoilt: str) -> None:
    model, example = double(nets.ResidualCnn), nets.image(2, 3, 8, 8).double()
    groups = trace(model, (example,))
    plan = half_of(groups)
    expected = reference(groups, plan, keep=True)
    tensors = cut_tensors(named_tensors(model), plan.cut)
    found = Recorder(groups.tracing.graph, expected_graph(groups, plan), tensors)
    found.keep = True
    with torch.no_grad():
        expected.run(example)
        found.run(example)
        assert first_difference(expected, found.results) is None
        tensors[spoilt][0] += 1
        found.run(example)
    node = first_difference(expected, found.results)
    assert node is not None
    assert place_of(node).startswith(f'"{spoilt.split(".")[0]}" (')
    assert "nets.py:" in place_of(node)


def expected_graph(groups: Groups, plan: Plan) -> torch.fx.Graph:
    return resized(groups.tracing, groups.tracing.alive(plan.removed))[0]


def test_a_value_that_is_missing_is_a_difference() -> None:
    model, example = nets.lively(nets.Mlp()), nets.image(2, 1, 4, 4)
    groups = trace(model, (example,))
    expected = reference(groups, half_of(groups), keep=True)
    expected.run(example)
    node = first_difference(expected, {})
    assert node is not None
    assert node.op == "call_function"


def test_an_operator_in_the_networks_own_forward_is_named_with_its_line() -> None:
    groups = trace(nets.Mlp(), (nets.image(2, 1, 4, 4),))
    (node,) = [node for node in groups.tracing.graph.graph.nodes if node.name == "flatten"]
    words = place_of(node)
    assert words.startswith("flatten (flatten) at ")
    assert words.endswith("self.fc1(image.flatten(1))))")
