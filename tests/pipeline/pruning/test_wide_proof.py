"""The wider proof finds what is wrong in gradients, in training, at other sizes and in copies."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from support import nets, sequence_nets
from support.halving import done, halved
from torch import Tensor, nn

from deadweight.pipeline.pruning.survivors import MismatchError
from deadweight.pipeline.pruning.verify import Verification, verify
from deadweight.targets.errors import ModelError


def proven(small: nn.Module, model: nn.Module, groups: Any) -> Verification:
    return verify(model, small, done(small), groups, wide=True)


class Reverse(torch.autograd.Function):
    """Passes values on, and gradients with the other sign."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return -gradients[0]


class Changed(nets.ResidualCnn):
    """A network whose forward a test changes afterwards."""

    change = ""

    def forward(self, image: Tensor) -> Tensor:
        out = super().forward(image)
        if self.change == "backward":
            out = Reverse.apply(out)  # type: ignore[no-untyped-call]
        if self.change == "training" and self.training:
            out = 2 * out
        if self.change == "size":
            out = out * (image.shape[-1] / 8)
        if self.change == "fixed" and image.shape[-1] != 8:
            raise ModelError("This network was traced for a width of 8.", "Trace it again.")
        return out

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        if self.change == "pickle":
            self.fc.bias.data += 1


def test_a_network_of_convolutions_is_right_in_everything_and_says_so() -> None:
    model = nets.lively(nets.ResidualCnn())
    small, _, groups = halved(model, nets.image(2, 3, 8, 8))
    found = proven(small, model, groups)
    assert found.gradient_error is not None
    assert found.gradient_error < 1e-4
    words = (
        "training mode too",
        "takes any height and width",
        "batch open",
        "can be pickled",
        "can be saved",
    )
    assert found.also == words
    assert verify(model, small, done(small), groups).also == ()
    assert str(Verification(3e-7, gradient_error=1e-6, also=words[1:3])) == (
        "outputs equal to 3e-7, gradients to 1e-6; takes any height and width; batch open"
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("backward", "in its gradients, in training mode: they differ by 2"),
        ("training", "in its gradients, in training mode"),
        ("size", r"at another size of its inputs, \(\d, 3, \d+, \d+\)"),
        ("pickle", "after a round trip through pickle"),
    ],
)
def test_what_is_wrong_beyond_one_forward_pass_is_found(change: str, words: str) -> None:
    model = nets.lively(Changed())
    small, _, groups = halved(model, nets.image(2, 3, 8, 8))
    small.change = change
    verify(model, small, done(small), groups)
    with pytest.raises(MismatchError, match=words):
        proven(small, model, groups)


def test_a_size_that_the_pruned_network_refuses_is_fixed_and_one_that_the_original_refuses_is_its_own() -> (
    None
):
    model = nets.lively(Changed())
    small, _, groups = halved(model, nets.image(2, 3, 8, 8))
    small.change = "fixed"
    found = proven(small, model, groups)
    assert found.also[1:4] == ("takes any height", "batch open", "fixed: width 8")
    flat = nets.lively(nets.Mlp())
    small, _, groups = halved(flat, nets.image(2, 1, 4, 4))
    assert proven(small, flat, groups).also[1:3] == ("batch open", "fixed in the original: height 4, width 4")


class Faint(nn.Module):
    """What is in the middle hardly reaches the outputs: a mistake there is below their tolerance."""

    def __init__(self, scale: float = 1e-7, noise: float = 0.0, drawn: Any = torch.randn_like) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 3)
        self.scale, self.noise, self.drawn = scale, noise, drawn

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.fc2(torch.relu(self.fc1(x))))
        if self.training and self.noise:
            hidden = hidden + self.noise * self.drawn(hidden)
        return torch.tanh(self.fc3(self.scale * hidden))


def test_a_wrong_channel_that_outputs_hardly_show_is_found_by_the_gradients() -> None:
    model = nets.lively(Faint())
    small, _, groups = halved(model, nets.image(4, 6))
    proven(small, model, groups)
    with torch.no_grad():
        small.fc2.weight[0] = small.fc2.weight[1]
    assert verify(model, small, done(small), groups).max_relative_error < 1e-5
    with pytest.raises(MismatchError, match="in its gradients"):
        proven(small, model, groups)


def test_random_numbers_in_training_are_said_and_dropout_is_left_out() -> None:
    model = nets.lively(Faint(1.0, noise=1.0))
    small, _, groups = halved(model, nets.image(4, 6))
    found = proven(small, model, groups)
    assert found.also[0] == "training mode not compared: it is random"
    assert found.gradient_error is not None


def _of_python(x: Tensor) -> Any:
    return random.random()


def _of_numpy(x: Tensor) -> Any:
    return torch.from_numpy(np.random.uniform(size=(len(x), 1))).to(x)


def _of_no_seed(x: Tensor) -> Any:
    return random.SystemRandom().random()


@pytest.mark.parametrize(
    ("drawn", "words"),
    [
        (_of_python, "training mode too"),
        (_of_numpy, "training mode too"),
        (_of_no_seed, "training mode not compared: it is random"),
    ],
)
def test_random_numbers_of_python_and_numpy_are_the_same_for_both_and_what_no_seed_holds_is_said(
    drawn: Any, words: str
) -> None:
    model = nets.lively(Faint(1.0, 1.0, drawn))
    small, _, groups = halved(model, nets.image(4, 6))
    random.seed(7)
    following = random.random()
    random.seed(7)
    found = proven(small, model, groups)
    assert found.also[0] == words
    assert random.random() == following  # as if none had been drawn


def test_a_norm_over_fewer_features_has_the_gradients_of_the_living_in_both_forms() -> None:
    model = nets.lively(sequence_nets.Vit())
    for form in ("module", "graph"):
        small, _, groups = halved(model, nets.image(2, 3, 8, 8), form)
        found = proven(small, model, groups)
        assert found.function_changed_by
        assert found.gradient_error is not None
        assert found.gradient_error < 1e-4
        assert found.also[:2] == ("training mode too", "batch open")


class Permuted(nn.Module):
    """A batch norm before tokens: torch 2.13's gradient of it is wrong for one sample."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, image: Tensor) -> Tensor:
        out: Tensor = self.head(self.norm(self.bn(self.conv(image)).flatten(2).transpose(1, 2))).mean(1)
        return out


def test_batch_norms_are_compared_on_several_samples_and_are_other_functions_in_training() -> None:
    model = nets.lively(Permuted())
    small, _, groups = halved(model, nets.image(2, 3, 8, 8))
    found = proven(small, model, groups)
    assert found.also[0] == "training mode not compared: it is another function than in eval mode"
    assert found.gradient_error is not None
    assert found.gradient_error < 1e-4


class Stochastic(sequence_nets.Vit):
    """Drops its result at random in training, as stochastic depth does."""

    draw = "bernoulli_"

    def forward(self, image: Tensor) -> Tensor:
        out = super().forward(image)
        if self.training and self.draw == "bernoulli_":
            out = out * out.new_empty(len(out), 1).bernoulli_(0.8).div_(0.8)
        if self.training and self.draw == "randn_like":
            out = out + torch.randn_like(out)
        return 2 * out if self.training and self.draw == "twice" else out


@pytest.mark.parametrize(
    ("draw", "words"),
    [
        ("bernoulli_", "training mode too"),
        ("randn_like", "training mode not compared: it is random"),
        ("twice", "training mode not compared: it is another function than in eval mode"),
    ],
)
def test_stochastic_depth_is_left_out_of_training_and_what_else_is_random_there_is_said(
    draw: str, words: str
) -> None:
    net = Stochastic()
    net.draw = draw
    model = nets.lively(net)
    small, _, groups = halved(model, nets.image(2, 3, 8, 8))
    found = proven(small, model, groups)
    assert found.function_changed_by
    assert found.also[0] == words


def test_both_networks_keep_their_statistics_and_counts() -> None:
    model = nets.lively(nets.ResidualCnn())
    small, _, groups = halved(model, nets.image(2, 3, 8, 8))
    before = [{name: one.clone() for name, one in net.state_dict().items()} for net in (model, small)]
    proven(small, model, groups)
    for net, state in zip((model, small), before, strict=True):
        assert all(torch.equal(one, state[name]) for name, one in net.state_dict().items())


class LastStep(nn.Module):
    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.layer, self.norm = kind(6, 12, batch_first=True), nn.LayerNorm(12)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        last: Tensor = self.layer(x)[0][:, -1]
        out: Tensor = self.head(self.norm(last).view(-1, 12))
        return out


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM])
def test_the_graph_form_of_a_recurrent_layer_takes_any_length_and_its_last_step(kind: Any) -> None:
    model = nets.lively(LastStep(kind))
    small, _, groups = halved(model, nets.image(2, 7, 6), "graph")
    assert "takes any length of axis 1" in proven(small, model, groups).also
    longer = nets.image(2, 9, 6)
    tail = small(torch.cat([longer, longer[:, -1:] + 1], 1))
    assert not torch.allclose(small(longer), tail)
    assert small.train()(longer).shape == (2, 3)
