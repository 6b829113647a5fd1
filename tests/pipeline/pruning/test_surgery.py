"""The smaller network is the old one without the removed units, in whichever form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support import nets
from support.halving import half_of
from torch import Tensor, nn

from deadweight.pipeline.pruning.graphnet import GraphNet
from deadweight.pipeline.pruning.groups import Groups, choose
from deadweight.pipeline.pruning.plan import Plan, plan_of
from deadweight.pipeline.pruning.surgery import apply
from deadweight.pipeline.pruning.trace import trace
from deadweight.pipeline.pruning.verify import verify
from deadweight.targets.errors import ModelError

CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (nets.Mlp, (2, 1, 4, 4)),
    "residual": (nets.ResidualCnn, (2, 3, 8, 8)),
    "flattened": (nets.Flattened, (2, 1, 8, 8)),
    "separable": (nets.Separable, (2, 3, 6, 6)),
    "concatenated": (nets.Concatenated, (2, 2, 6, 6)),
}


def done(model: nn.Module) -> Plan:
    plan = plan_of(model)
    assert plan is not None
    return plan


def halved(model: nn.Module, example: Tensor, form: str = "") -> tuple[Any, Plan, Groups]:
    groups = trace(model, (example,))
    generator = torch.Generator().manual_seed(3)
    scores = {group.name: torch.rand(group.size, generator=generator) for group in groups}
    plan = choose(groups, scores, ratio=0.5)
    return apply(model, plan, groups, form=form), plan, groups


@pytest.mark.parametrize("form", ["module", "graph"])
@pytest.mark.parametrize("name", CASES)
def test_half_of_every_group_can_go_and_the_rest_computes_the_same(name: str, form: str) -> None:
    build, shape = CASES[name]
    model = nets.lively(build()).double()
    example = nets.image(*shape).double()
    small, plan, groups = halved(model, example, form)
    verification = verify(model, small, plan, groups)
    assert verification.max_relative_error < 1e-12
    assert verification.function_changed_by == ()
    assert isinstance(small, GraphNet if form == "graph" else type(model))
    before = sum(parameter.numel() for parameter in model.parameters())
    assert sum(parameter.numel() for parameter in small.parameters()) < 0.55 * before
    assert small(torch.cat([example] * 3)).shape[0] == 6


@pytest.mark.parametrize("form", ["module", "graph"])
@pytest.mark.parametrize("name", CASES)
def test_what_is_left_trains(name: str, form: str) -> None:
    build, shape = CASES[name]
    small, _, _ = halved(nets.lively(build()), nets.image(*shape), form)
    statistics = {name: value.clone() for name, value in small.named_buffers()}
    small.train()
    small(nets.image(*shape, seed=5)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in small.parameters())
    assert all(not torch.equal(value, statistics[name]) for name, value in small.named_buffers())
    small.eval()
    assert torch.equal(small(nets.image(*shape)), small(nets.image(*shape)))


def test_both_forms_have_the_users_parameter_names_and_the_same_values() -> None:
    model = nets.lively(nets.ResidualCnn())
    module, _, _ = halved(model, nets.image(2, 3, 8, 8), "module")
    graph, _, _ = halved(model, nets.image(2, 3, 8, 8), "graph")
    assert module.state_dict().keys() == graph.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(value, graph.state_dict()[name]) for name, value in module.state_dict().items())


def test_attributes_say_the_new_widths() -> None:
    small, _, _ = halved(nets.lively(nets.Separable()), nets.image(2, 3, 6, 6))
    assert (small.expand.in_channels, small.expand.out_channels) == (3, 6)
    assert (small.depthwise.groups, small.depthwise.in_channels, small.depthwise.out_channels) == (6, 6, 6)
    assert small.norm.num_features == 6
    assert (small.fc.in_features, small.fc.out_features) == (3, 3)
    assert done(small).attributes == {"depthwise": {"groups": 6}}


def test_the_original_is_untouched() -> None:
    model = nets.lively(nets.ResidualCnn())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    halved(model, nets.image(2, 3, 8, 8))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert plan_of(model) is None


def test_a_width_written_into_a_function_is_left_whole_or_taken_over_by_the_graph() -> None:
    model = nets.lively(nets.Flattened(hard_coded=True))
    example = nets.image(2, 1, 8, 8)
    module, plan, groups = halved(model, example, "module")
    assert "conv2" not in done(module).removed
    assert "the widths of conv2 were not pruned" in done(module).reason
    assert verify(model, module, plan, groups).function_changed_by == ()
    free, plan, groups = halved(model, example)
    assert isinstance(free, GraphNet)
    assert "forward fails with the new widths" in done(free).reason
    assert verify(model, free, plan, groups).function_changed_by == ()


def test_a_group_that_no_graph_can_follow_is_left_whole_and_the_rest_is_cut() -> None:
    class Repeating(nets.Concatenated):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("times", torch.tensor([1, 1, 2, 1, 0, 1]))  # one number a channel

        def forward(self, image: Tensor) -> Tensor:
            a = self.a(image).repeat_interleave(self.get_buffer("times"), 1, output_size=6)
            out: Tensor = self.fc(self.c(self.norm(torch.cat([a, self.b(a)], 1))).relu().mean((2, 3)))
            return out

    model = nets.lively(Repeating())
    small, plan, groups = halved(model, nets.image(2, 2, 6, 6))
    assert "a" in plan.removed
    assert set(done(small).removed) == {"b", "c"}
    assert "the widths of a" in done(small).reason
    assert verify(model, small, plan, groups).max_relative_error < 1e-5


def test_a_network_can_be_pruned_three_times() -> None:
    model: Any = nets.lively(nets.ResidualCnn(16))
    example = nets.image(2, 3, 8, 8)
    for times in range(3):
        small, plan, groups = halved(model, example, "graph" if times == 1 else "")
        verify(model, small, plan, groups)
        model = small
    assert [plan.form for plan in done(model).earlier] == ["module", "graph"]
    assert done(model).form == "graph"
    assert model.stem.weight.shape[0] == 2


def test_a_plan_for_another_network_is_refused() -> None:
    _, plan, _ = halved(nets.Mlp(), nets.image(2, 1, 4, 4))
    other = nets.Mlp(16, 12, 9, 4)
    with pytest.raises(ModelError, match="another network"):
        apply(other, plan, example=(nets.image(2, 1, 4, 4),))


def test_the_large_mlp_of_the_demo_is_cut() -> None:
    model = nets.lively(nets.Mlp(784, 1024, 512, 10))
    small, plan, groups = halved(model, nets.image(2, 1, 28, 28))
    assert verify(model, small, plan, groups).max_relative_error < 1e-5
    assert (small.fc1.out_features, small.fc2.in_features, small.fc2.out_features) == (512, 512, 256)


def test_a_network_without_values_is_refused_with_the_cure() -> None:
    with torch.device("meta"):
        model, image = nets.Mlp(), torch.empty(2, 1, 4, 4)
    groups = trace(model, (image,))
    with pytest.raises(ModelError, match=r"(?s)meta device.*to_empty"):
        apply(model, half_of(groups), groups)
