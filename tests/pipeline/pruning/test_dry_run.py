"""Whether training runs other code is found by running it, and never gets in the way."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support import nets, sequence_nets
from torch import Tensor, nn

from deadweight.pipeline.pruning.dry_run import differs_in_training

Step = Callable[[Any, Tensor, bool], Tensor]


class Stepped(nn.Module):
    """Two layers and a step between them, which may ask for the mode."""

    def __init__(self, step: Step) -> None:
        super().__init__()
        self.fc1, self.norm, self.fc2 = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)
        self.step = step
        self.last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.step(self, self.norm(self.fc1(x)), self.training))
        return out


def added(_: Any, x: Tensor, training: bool) -> Tensor:
    return x + x.sigmoid() if training else x


def dropped(_: Any, x: Tensor, training: bool) -> Tensor:
    return F.dropout(x, 0.5, training=training)


def branching(model: Any, x: Tensor, training: bool) -> Tensor:
    return added(model, x, training) if x.sum() > -1e9 else x


def keeping(model: Any, x: Tensor, training: bool) -> Tensor:
    model.last = x * 2
    return added(model, x, training)


EXAMPLE = (nets.image(2, 4),)


@pytest.mark.parametrize(
    ("step", "expected"), [(added, True), (dropped, False), (lambda _, x, training: x, False)]
)
def test_it_is_another_network_where_other_functions_are_called(step: Step, expected: bool) -> None:
    assert differs_in_training(Stepped(step), EXAMPLE) == expected


def test_torchs_own_layers_are_not_asked_though_they_ask_for_their_mode() -> None:
    assert not differs_in_training(nets.ResidualCnn(), (nets.image(2, 3, 8, 8),))
    assert not differs_in_training(sequence_nets.Encoder(), (nets.image(2, 7, 6),))


def test_an_auxiliary_head_is_another_network() -> None:
    assert differs_in_training(nets.Auxiliary(), (nets.image(2, 3, 8, 8),))


def test_a_forward_that_asks_for_values_is_run_with_them() -> None:
    assert differs_in_training(Stepped(branching), EXAMPLE)


def test_a_batch_norm_that_wants_more_than_one_sample_gets_them() -> None:
    assert differs_in_training(Stepped(added), EXAMPLE)  # over (batch, features): one sample has no spread


def shy(_: Any, x: Tensor, training: bool) -> Tensor:
    if not x.any():
        raise ValueError("nothing but zeros")
    return x + x.sigmoid() if training else x


class Convolved(nn.Module):
    """Convolutions of every shape, and code that needs theirs, and says when they were computed."""

    def __init__(self, *, twice: bool) -> None:
        super().__init__()
        self.fine, self.last = nn.Conv2d(3, 8, 3, 2, padding=1), nn.Conv1d(4, 2, 3, padding="same")
        self.grouped = nn.Conv2d(8, 4, (1, 3), stride=(2, 1), dilation=(1, 2), groups=2)
        self.twice = twice

    def forward(self, image: Tensor) -> Tensor:
        x = F.relu(self.grouped(self.fine(image)), inplace=True)
        if x.isnan().any():
            raise ValueError("the weights were read")
        x = x + x if self.twice and self.training else x
        return torch.stack([self.last(one).view(2, 16) for one in x.view(-1, 4, 16)])


@pytest.mark.parametrize("twice", [True, False])
def test_what_is_multiplied_does_not_matter_but_its_shape_does(twice: bool) -> None:
    model, image = Convolved(twice=twice), nets.image(2, 3, 16, 16)
    assert model(image).shape == (2, 2, 16)
    for one in (model.fine, model.grouped, model.last):
        nn.init.constant_(one.weight, math.nan)
    assert differs_in_training(model, (image,)) == twice


def test_a_forward_that_takes_no_zeros_is_run_on_its_own_values() -> None:
    model = Stepped(shy)
    nn.init.zeros_(model.norm.bias)
    assert differs_in_training(model, EXAMPLE)


def test_random_numbers_go_on_as_if_none_had_been_drawn() -> None:
    model = Stepped(dropped)
    torch.manual_seed(0)
    wanted = torch.rand(3)
    torch.manual_seed(0)
    differs_in_training(model, EXAMPLE)
    assert torch.equal(torch.rand(3), wanted)


def test_a_network_that_keeps_what_it_computed_is_asked_all_the_same() -> None:
    model = Stepped(keeping)
    model(nets.image(2, 4))
    assert differs_in_training(model, EXAMPLE)


def test_the_network_and_its_statistics_stay_as_they_were() -> None:
    model = Stepped(added).train()
    model.norm.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert differs_in_training(model, EXAMPLE)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(one.device.type == "cpu" and one.requires_grad for one in model.parameters())
    assert (model.training, model.norm.training, model.last) == (True, False, None)
