"""Networks with unusual structure: each is pruned and right, or refused with a reason."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support import nets
from support.halving import done, half_of, halved
from torch import Tensor, nn

from deadweight.pipeline.pruning.graphnet import GraphNet
from deadweight.pipeline.pruning.groups import Groups, choose
from deadweight.pipeline.pruning.surgery import apply
from deadweight.pipeline.pruning.trace import trace
from deadweight.pipeline.pruning.verify import Verification, verify
from deadweight.targets.errors import ModelError

FORMS = ("module", "graph")
EXAMPLE = nets.image(2, 6, 5)


class Layers(nn.Module):
    """Two layers; what they mean is each test's own."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Any:
        return self.fc2(F.relu(self.fc1(x)))


def cut(model: nn.Module, form: str, example: Tensor = EXAMPLE) -> tuple[Any, Verification, Groups]:
    """Half of each group less, in that form; verified."""
    small, plan, groups = halved(model, example, form)
    return small, verify(model, small, plan, groups), groups


def reason(groups: Groups, parameter: str) -> tuple[str, str]:
    frozen = next(one for one in groups.frozen if one.parameter == parameter)
    return frozen.operator, frozen.reason


class Spectral(Layers):
    """A global filter (Rao et al. 2021): complex weights over the frequencies of the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.filter = nn.Parameter(torch.randn(4, 8, dtype=torch.complex64))
        self.between, self.last = nn.Linear(8, 6), nn.Linear(6, 8)

    def forward(self, x: Tensor) -> Tensor:
        waves = torch.fft.rfft(self.fc1(x), dim=1) * self.filter
        y: Tensor = torch.fft.irfft(waves, n=x.shape[1], dim=1)
        out: Tensor = self.fc2(self.last(F.relu(self.between(y))))
        return out


@pytest.mark.parametrize("form", FORMS)
def test_what_a_complex_weight_touches_stays_and_the_rest_is_cut(form: str) -> None:
    model = Spectral()
    small, verification, groups = cut(model, form)
    assert verification.max_relative_error < 1e-5
    assert reason(groups, "fc1.weight") == ("parameter", "its elements are complex numbers")
    assert torch.equal(small.filter, model.filter)
    assert small.between.weight.shape == (3, 8)
    small.train()(EXAMPLE).square().sum().backward()
    assert all(parameter.grad is not None for parameter in small.parameters())


@pytest.mark.parametrize("form", FORMS)
def test_complex_outputs_are_compared_to_rounding(form: str) -> None:
    class Waves(Layers):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(5, 700), nn.Linear(700, 8)  # few terms round alike anyway

        def forward(self, x: Tensor) -> Tensor:
            waves: Tensor = torch.fft.rfft(super().forward(x))
            return waves

    model = nets.lively(Waves())
    small, verification, groups = cut(model, form, nets.image(64, 6, 5))
    assert 0 < verification.max_relative_error < 1e-5  # sums in another order; not bit by bit
    with torch.no_grad():
        small.get_parameter("fc2.bias")[0] += 1
    with pytest.raises(ModelError, match='"fc2"'):
        verify(model, small, half_of(groups), groups)


def test_a_layer_of_complex_weights_stays_whole() -> None:
    class Phases(Layers):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Linear(8, 8, dtype=torch.complex64)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.fc2(self.mix(self.fc1(x).to(torch.complex64)).abs())
            return out

    groups = trace(Phases(), (EXAMPLE,))
    assert len(groups) == 0
    assert reason(groups, "mix.weight")[1] == reason(groups, "fc1.weight")[1]
    assert reason(groups, "mix.weight")[1] == "its elements are complex numbers"


@pytest.mark.parametrize("kind", ["factors", "places", "mask"])
def test_a_buffer_of_integers_as_wide_as_a_layer_keeps_that_layer(kind: str) -> None:
    class Counted(Layers):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("numbers", torch.arange(8).flip(0))
            self.hidden = nn.Linear(3, 6)
            self.last = nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            y, numbers = self.fc1(x), self.get_buffer("numbers")
            if kind == "factors":
                y = y * numbers
            elif kind == "places":
                y = y[..., numbers]
            else:
                y = torch.where(numbers > 3, y, 0.0)
            out: Tensor = self.last(F.relu(self.hidden(self.fc2(y))))
            return out

    for form in FORMS:
        model = nets.lively(Counted())
        small, verification, groups = cut(model, form)
        assert verification.max_relative_error < 1e-5
        assert torch.equal(small.get_buffer("numbers"), model.get_buffer("numbers"))
        assert [group.name for group in groups] == ["fc2", "hidden"]
        assert "fixed width" in reason(groups, "fc1.weight")[1] or kind == "places"


@pytest.mark.parametrize("form", FORMS)
def test_a_parameter_under_two_modules_is_cut_once_and_stays_one(form: str) -> None:
    class Siamese(Layers):
        def __init__(self) -> None:
            super().__init__()
            self.twin = nn.Linear(5, 8)
            self.twin.weight = self.fc1.weight

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.fc2(F.relu(self.fc1(x) - self.twin(x * 2)))
            return out

    small, verification, groups = cut(nets.lively(Siamese()), form)
    assert verification.max_relative_error < 1e-5
    assert [(group.name, group.size) for group in groups] == [("fc1", 8)]
    assert small.get_parameter("twin.weight") is small.get_parameter("fc1.weight")
    assert small.get_parameter("twin.weight").shape == (4, 5)
    assert {"fc1.weight", "twin.weight"} <= small.state_dict().keys()


@pytest.mark.parametrize("form", FORMS)
def test_a_module_that_is_an_attribute_in_two_places_is_still_one(form: str) -> None:
    class Again(Layers):
        def __init__(self) -> None:
            super().__init__()
            self.loop = nn.Linear(8, 8)
            self.again = nn.ModuleDict({"same": self.loop})

        def forward(self, x: Tensor) -> Tensor:
            y = F.relu(self.fc1(x))
            y = y + F.relu(self.again["same"](F.relu(self.loop(y))))
            out: Tensor = self.fc2(y)
            return out

    small, verification, groups = cut(nets.lively(Again()), form)
    assert verification.max_relative_error < 1e-5
    assert [(group.name, group.size) for group in groups] == [("fc1", 8)]
    assert small.get_parameter("loop.weight") is small.get_parameter("again.same.weight")
    assert small.get_parameter("loop.weight").shape == (4, 4)


@pytest.mark.parametrize("form", FORMS)
def test_a_parameter_that_no_forward_uses_stays_as_it_is(form: str) -> None:
    class Leftover(Layers):
        def __init__(self) -> None:
            super().__init__()
            self.unused = nn.Linear(8, 8)
            self.loose = nn.Parameter(torch.ones(8))

    model = nets.lively(Leftover())
    small, verification, groups = cut(model, form)
    assert verification.max_relative_error < 1e-5
    assert [group.name for group in groups] == ["fc1"]
    assert small.state_dict().keys() == model.state_dict().keys()
    assert torch.equal(small.get_parameter("unused.weight"), model.get_parameter("unused.weight"))
    assert torch.equal(small.get_parameter("loose"), model.get_parameter("loose"))


@pytest.mark.parametrize(
    "model",
    [
        nn.Linear(5, 3),
        nn.ReLU(),
        nn.Sequential(nn.Linear(5, 1), nn.ReLU(), nn.Linear(1, 3)),
        nn.Sequential(nn.Linear(5, 5), nn.Softmax(-1)),
    ],
    ids=["one layer", "no parameter", "one unit", "outputs alone"],
)
def test_a_network_without_units_has_no_groups_and_an_empty_plan_changes_nothing(model: nn.Module) -> None:
    groups = trace(model.eval(), (EXAMPLE,))
    assert len(groups) == 0
    plan = choose(groups, {}, ratio=0.5)
    assert (plan.removed, plan.cut, plan.widths) == ({}, {}, {})
    for form in FORMS:
        small = apply(model, plan, groups, form=form)
        assert verify(model, small, plan, groups) == Verification(0.0)
        assert torch.equal(small(EXAMPLE), model(EXAMPLE))
    with pytest.raises(ModelError, match="Its groups are: none"):
        groups["0"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_half_precision_is_cut_and_a_wrong_layer_is_still_seen(kind: torch.dtype, form: str) -> None:
    model, example = nets.lively(nets.ResidualCnn()).to(kind), nets.image(2, 3, 8, 8).to(kind)
    small, _, groups = cut(model, form, example)
    assert small.state_dict()["stem.weight"].shape == (4, 3, 3, 3)
    floats = [value for value in small.state_dict().values() if value.is_floating_point()]
    assert {value.dtype for value in floats} == {kind}
    with torch.no_grad():
        small.get_parameter("fc.weight")[0, 0] += 0.02  # less than what bfloat16 rounds away
    with pytest.raises(ModelError, match='"fc"'):
        verify(model, small, half_of(groups), groups)


@pytest.mark.parametrize("form", FORMS)
def test_channels_last_is_kept(form: str) -> None:
    model: Any = nets.lively(nets.ResidualCnn())
    model.to(memory_format=torch.channels_last)
    example = nets.image(2, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    small, verification, _ = cut(model, form, example)
    assert verification.max_relative_error < 1e-5
    for name in ("stem.weight", "conv1.weight", "conv2.weight"):
        weight = small.get_parameter(name)
        assert weight.is_contiguous(memory_format=torch.channels_last)
        assert not weight.is_contiguous()


def test_a_parameter_in_a_list_of_the_users_is_cut_and_learns() -> None:
    class Listed(Layers):
        def __init__(self) -> None:
            super().__init__()
            self.all = [self.fc1.weight, self.fc2.weight]

        def forward(self, x: Tensor) -> Tensor:
            y = F.relu(F.linear(x, self.all[0], self.fc1.bias))
            return F.linear(y, self.all[1], self.fc2.bias)

    for form in FORMS:
        small, verification, groups = cut(nets.lively(Listed()), form)
        assert verification.max_relative_error < 1e-5
        assert [group.name for group in groups] == ["fc1"]
        small.train()(EXAMPLE).sum().backward()
        assert all(parameter.grad is not None for parameter in small.parameters())


def test_masked_scores_among_the_outputs_are_no_obstacle() -> None:
    class Masked(Layers):
        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = super().forward(x)
            return out.masked_fill(torch.tensor([False, True, False]), -torch.inf)

    for form in FORMS:
        _, verification, _ = cut(nets.lively(Masked()), form)
        assert verification.max_relative_error < 1e-5


def test_a_network_whose_layers_are_not_made_yet_is_refused() -> None:
    with pytest.raises(ModelError, match=r"(?s)uninitialized parameter.*Run model\(\*inputs\) once"):
        trace(nn.Sequential(nn.LazyLinear(8), nn.Linear(8, 3)), (EXAMPLE,))


def test_a_graph_form_is_cut_again_in_that_form_alone() -> None:
    small, _, _ = cut(nets.lively(Layers()), "graph")
    again, verification, _ = cut(small, "")
    assert isinstance(again, GraphNet)
    assert verification.max_relative_error < 1e-5
    assert "pruned in that form before" in done(again).reason
