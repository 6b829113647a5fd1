"""Skip connections are recognised from the functions that are called on a module's input, in one run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support import nets
from torch import Tensor, nn

from deadweight.pipeline.pruning.blocks import Call, watched
from deadweight.targets.errors import ModelError

X = nets.image(2, 4)


class Once(nn.Module):
    """A function of the input and a linear layer, in a module of its own."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.linear, self.function = nn.Linear(4, 4), function
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Any:
        return self.function(x, self.linear, self.scale)


def call(function: Callable[..., Any]) -> Call:
    """What was seen of a module with this forward."""
    inner = Once(function)
    outer = nn.Sequential(inner).eval()
    (seen,) = watched(outer, (X,))[inner]
    return seen


def in_place(x: Tensor, linear: nn.Module, _: Tensor) -> Tensor:
    out: Tensor = linear(x)
    out += x
    return out


@pytest.mark.parametrize(
    "function",
    [
        lambda x, f, _: x + f(x),
        lambda x, f, _: f(x) - x,
        lambda x, f, _: F.relu(F.layer_norm(f(x) + x, (4,))),
        lambda x, f, s: (x.unsqueeze(1) + f(x).unsqueeze(1)).squeeze(1) * 2.0 + s,
        lambda x, f, _: torch.add(F.dropout(x, 0.1, False), f(x)),
        in_place,
    ],
)
def test_sums_norms_activations_and_views_carry_the_input_on(function: Callable[..., Any]) -> None:
    seen = call(function)
    assert seen.carried
    assert seen.reason == ""


@pytest.mark.parametrize(
    "function",
    [
        lambda x, f, _: f(x),
        lambda x, f, _: x * f(x),
        lambda x, f, _: f(x) + f(f(x)),
        lambda x, _, s: x + s,  # a bias is nothing that the block worked out
        lambda x, _, __: F.relu(x),
        lambda x, f, _: torch.cat([x[:, :2], f(x)[:, 2:]], 1),
        lambda x, f, _: torch.matmul(x, f.weight) + 1.0,
    ],
)
def test_what_mixes_the_input_with_weights_or_adds_nothing_does_not(function: Callable[..., Any]) -> None:
    assert not call(function).carried


@pytest.mark.parametrize(
    ("function", "outputs", "reason"),
    [
        (lambda x, f, _: (f(x),), 1, ""),
        (lambda x, f, _: (f(x), None, None), 3, ""),
        (lambda x, f, _: (f(x), x), 2, "returns more than its input"),
        (lambda x, f, _: {"hidden": f(x)}, 0, "returns a dict"),
        (lambda x, f, _: f(x)[:, :2], 0, "turns 2 x 4 (float32) into 2 x 2 (float32)"),
        (lambda x, f, _: f(x).double(), 0, "turns 2 x 4 (float32) into 2 x 4 (float64)"),
    ],
)
def test_an_input_stands_for_an_output_of_its_shape_and_type_alone(
    function: Callable[..., Any], outputs: int, reason: str
) -> None:
    seen = call(function)
    assert seen.outputs == outputs
    assert reason in seen.reason
    assert bool(seen.reason) == bool(reason)


def test_every_call_of_a_module_is_seen_in_order() -> None:
    inner = nn.Linear(4, 4)
    seen = watched(nn.Sequential(inner, nn.ReLU(), inner).eval(), (X,))[inner]
    assert len(seen) == 2
    assert seen[0].number < seen[1].number
    assert seen[0].taken is X


def test_a_module_without_a_tensor_to_work_on_has_nothing_to_hand_on() -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.value = nn.Parameter(torch.ones(4))

        def forward(self) -> Tensor:
            return self.value

    class Uses(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.constant = Constant()

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = x + self.constant()
            return out

    model = Uses().eval()
    assert watched(model, (X,))[model.constant][0].reason == "it takes no tensor"


def test_no_hook_is_left_behind_even_where_the_network_fails() -> None:
    model = nn.Sequential(nn.Linear(3, 3))
    with pytest.raises(ModelError, match="does not run"):
        watched(model, (X,))
    assert not any(one._forward_hooks or one._forward_pre_hooks for one in model.modules())
