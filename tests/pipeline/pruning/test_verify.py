"""The check sees one wrong number, names the layer, and tells a changed function from a wrong one."""

from __future__ import annotations

import pytest
import torch
from support import nets, sequence_nets
from torch import Tensor, nn

from deadweight.pipeline.pruning.groups import Groups, choose
from deadweight.pipeline.pruning.plan import Plan
from deadweight.pipeline.pruning.surgery import apply
from deadweight.pipeline.pruning.trace import trace
from deadweight.pipeline.pruning.verify import verify
from deadweight.targets.errors import ModelError


def halved(model: nn.Module, example: Tensor, form: str = "") -> tuple[nn.Module, Plan, Groups]:
    groups = trace(model, (example,))
    generator = torch.Generator().manual_seed(3)
    scores = {group.name: torch.rand(group.size, generator=generator) for group in groups}
    plan = choose(groups, scores, ratio=0.5)
    return apply(model, plan, groups, form=form), plan, groups


@pytest.mark.parametrize("form", ["module", "graph"])
@pytest.mark.parametrize("parameter", ["stem.weight", "norm1.weight", "conv2.weight", "fc.bias"])
def test_a_wrong_unit_anywhere_is_seen_and_the_first_layer_named(parameter: str, form: str) -> None:
    model = nets.lively(nets.ResidualCnn()).double()
    small, plan, groups = halved(model, nets.image(2, 3, 8, 8).double(), form)
    with torch.no_grad():
        small.get_parameter(parameter)[:2] *= -1.01
    layer = parameter.rpartition(".")[0]
    with pytest.raises(ModelError, match=f'first layer that differs is "{layer}" .*nets.py'):
        verify(model, small, plan, groups)


def test_a_wrong_column_is_seen() -> None:
    model = nets.lively(nets.Mlp()).double()
    small, plan, groups = halved(model, nets.image(2, 1, 4, 4).double())
    with torch.no_grad():
        weight = small.get_parameter("fc2.weight")
        weight[:, [0, 1]] = weight[:, [1, 0]]
    with pytest.raises(ModelError, match='"fc2"'):
        verify(model, small, plan, groups)


def test_a_norm_over_fewer_features_is_reported_as_another_function() -> None:
    model = nets.lively(sequence_nets.Vit()).double()
    small, plan, groups = halved(model, nets.image(2, 3, 8, 8).double())
    verification = verify(model, small, plan, groups)
    assert verification.max_relative_error < 1e-12
    assert len(verification.function_changed_by) == 2
    for words in verification.function_changed_by:
        assert words.startswith("layer_norm at")
        assert "sequence_nets.py" in words


def test_the_example_alone_is_enough() -> None:
    model = nets.lively(nets.Mlp())
    small, plan, _ = halved(model, nets.image(2, 1, 4, 4))
    assert verify(model, small, plan, {"image": nets.image(3, 1, 4, 4)}).max_relative_error < 1e-5


def test_another_original_is_refused() -> None:
    small, plan, groups = halved(nets.lively(nets.Mlp()), nets.image(2, 1, 4, 4))
    with pytest.raises(ModelError, match="not made for this original"):
        verify(nets.Mlp(16, 10, 8, 4), small, plan, groups)


def test_other_weights_than_those_that_were_traced_are_reported_as_such() -> None:
    model, other = nets.lively(nets.Mlp()), nets.lively(nets.Mlp())
    with torch.no_grad():
        other.get_parameter("fc2.weight").mul_(1.5)
    small, plan, groups = halved(model, nets.image(2, 1, 4, 4))
    message = r'not the one that was traced: "fc2\.weight" has other values'
    with pytest.raises(ModelError, match=message):
        verify(other, small, plan, groups)
    with pytest.raises(ModelError, match=message):
        apply(other, plan, groups, form="graph")


def test_random_numbers_in_eval_mode_are_named_and_no_layer_is_blamed() -> None:
    class Noisy(nets.Mlp):
        def forward(self, image: Tensor) -> Tensor:
            return super().forward(image + torch.rand_like(image))

    for form in ("", "graph"):
        with pytest.raises(ModelError, match=r"(?s)depends on more than .*random numbers.*seed it"):
            halved(nets.lively(Noisy()), nets.image(2, 1, 4, 4), form)


def test_a_network_that_returns_nan_is_not_called_equal() -> None:
    model = nets.lively(nets.Mlp())
    small, plan, groups = halved(model, nets.image(2, 1, 4, 4))
    with torch.no_grad():
        small.get_parameter("fc3.bias")[0] = torch.nan
    with pytest.raises(ModelError, match='"fc3"'):
        verify(model, small, plan, groups)
