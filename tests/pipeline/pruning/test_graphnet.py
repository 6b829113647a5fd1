"""The graph form is a module like the user's own: names, arguments, modes, copies, precision."""

from __future__ import annotations

import copy
import inspect
import io
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support import nets, sequence_nets
from support.halving import halved
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from deadweight.pipeline.pruning.graphnet import GraphNet, Program
from deadweight.targets.errors import ModelError

IMAGES = nets.image(2, 3, 8, 8)


class Choosy(nn.Module):
    """Two inputs of which one has a default; a kernel made in forward; a buffer that is not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = nn.Conv1d(3, 8, 1), nn.Linear(8, 2)
        self.register_buffer("shift", torch.linspace(0, 1, 8), persistent=False)

    def forward(self, signal: Tensor, *, gain: float = 2.0) -> dict[str, Any]:
        x = F.relu(self.before(signal)) * torch.tensor([0.5, 0.25])
        x = x.sum(2) + self.get_buffer("shift")
        return {"scores": self.after(x) * gain, "parts": (x.mean(1), x.amax(1))}


class Undecided(nn.Module):
    """Only in training it takes a path that depends on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.fc1(x))
        if self.training and y.sum() > 3:
            y = y * 2
        out: Tensor = self.fc2(y)
        return out


def graph(model: nn.Module, example: Tensor) -> Any:
    small, _, _ = halved(nets.lively(model), example, "graph")
    assert isinstance(small, GraphNet)
    return small.eval()


def test_its_widths_can_be_read_where_it_is_printed() -> None:
    printed = repr(graph(nets.ResidualCnn(), IMAGES))
    assert "(norm): BatchNorm2d(4, eps=1e-05" in printed
    assert "(conv1): Conv2d(4, 8, kernel_size=(3, 3)" in printed


def test_it_takes_arguments_by_place_and_by_name_as_the_users_forward_did() -> None:
    small = graph(nets.ResidualCnn(), IMAGES)
    assert list(inspect.signature(small.forward).parameters) == ["image"]
    assert torch.equal(small(IMAGES), small(image=IMAGES))
    for wrong in ({}, {"picture": IMAGES}):
        with pytest.raises(TypeError, match="'image'"):
            small(**wrong)


def test_an_argument_that_the_example_left_at_its_default_is_part_of_the_graph() -> None:
    signal = nets.image(2, 3, 2)
    with pytest.raises(TypeError, match="'gain'"):
        graph(Choosy(), signal)(signal, gain=3.0)


def test_it_returns_the_structure_that_the_users_forward_returned() -> None:
    model = nets.lively(Choosy())
    signal = nets.image(2, 3, 2)
    small = graph(model, signal)
    found, expected = small(signal), model(signal)
    assert found.keys() == expected.keys()
    assert found["scores"].shape == expected["scores"].shape
    assert isinstance(found["parts"], tuple)


def test_names_in_the_state_dict_are_the_users_and_nothing_else_is_in_it() -> None:
    model = Choosy()
    small = graph(model, nets.image(2, 3, 2))
    assert small.state_dict().keys() == model.state_dict().keys()
    buffers = dict(small.named_buffers())
    assert len(buffers.pop("shift")) == 4
    assert [value.tolist() for value in buffers.values()] == [[0.5, 0.25]]  # the constant of its code
    assert small.get_submodule("before").get_parameter("weight").shape == (4, 3, 1)


def test_names_that_shared_a_parameter_share_it_here() -> None:
    small, _, _ = halved(nets.lively(sequence_nets.Llama()), torch.randint(0, 30, (2, 9)), "graph")
    assert small.get_parameter("embed.weight") is small.get_parameter("head.weight")
    assert len(list(small.parameters())) == len(small.state_dict()) - 2  # one is tied, one is a buffer


def test_training_updates_statistics_of_norms_and_inference_does_not() -> None:
    small = graph(nets.ResidualCnn(), IMAGES)
    before = small.get_buffer("norm.running_mean").clone()
    small(IMAGES)
    assert torch.equal(small.get_buffer("norm.running_mean"), before)
    small.train()(IMAGES)
    assert not torch.equal(small.get_buffer("norm.running_mean"), before)
    assert int(small.get_buffer("norm.num_batches_tracked")) == 1


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.conv2, self.norm2 = nn.Conv2d(8, 6, 3), nn.BatchNorm2d(6)

    def forward(self, image: Tensor) -> Tensor:
        return F.relu(self.norm2(self.conv2(F.relu(self.norm1(self.conv1(image))))))


def test_a_norm_that_is_frozen_in_training_computes_as_in_the_users_class() -> None:
    own, _, _ = halved(nets.lively(Normed()), IMAGES, "module")
    small, other = graph(nets.lively(Normed()), IMAGES), graph(nets.lively(Normed()), IMAGES)
    twin = copy.deepcopy(small)
    small.load_state_dict(own.state_dict())
    for model in (own, small, twin):
        model.train()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d) and len(module.weight) == 4:
                module.eval()
    twin.load_state_dict(own.state_dict())
    expected = own(IMAGES)
    for model in (small, twin):
        assert torch.allclose(model(IMAGES), expected, atol=1e-5)
        for name, value in own.state_dict().items():
            assert torch.allclose(model.state_dict()[name], value, atol=1e-6), name
    again, _, _ = halved(small.eval(), IMAGES)
    assert [len(one.weight) for one in again.modules() if isinstance(one, nn.BatchNorm2d)] == [2, 6]
    other.load_state_dict(own.state_dict())
    assert not torch.allclose(other.train()(IMAGES), expected, atol=1e-3)  # with all norms in training


def test_dropout_draws_in_training_and_not_after() -> None:
    small = graph(nets.Mlp(16, 64, 8, 4), nets.image(2, 1, 4, 4))
    x = nets.image(2, 1, 4, 4)
    assert torch.equal(small(x), small(x))
    small.train()
    assert not torch.equal(small(x), small(x))
    assert torch.equal(small.eval()(x), small(x))


def test_it_is_born_in_the_mode_of_the_original() -> None:
    model = nets.lively(nets.Mlp())
    for mode in (True, False):
        small, _, _ = halved(model.train(mode), nets.image(2, 1, 4, 4), "graph")
        assert all(module.training == mode for module in small.modules())


def test_without_a_graph_for_training_it_says_why_and_still_infers() -> None:
    small = graph(Undecided(), nets.image(2, 4))
    assert small(nets.image(5, 4)).shape == (5, 2)
    with pytest.raises(ModelError, match=r"(?s)no graph for training: .*if self.training and y.sum\(\) > 3"):
        small.train()(nets.image(5, 4))


class Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        return -grad_outputs[0]


class Adversarial(nn.Module):
    """Gradients are reversed behind a hard-coded width, by a function or by a hook."""

    def __init__(self, by: str) -> None:
        super().__init__()
        self.by = by
        self.fc1, self.fc2 = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.fc1(x)).view(-1, 8)
        if self.by == "Reverse":
            y = Reverse.apply(y)  # type: ignore[no-untyped-call]
        elif self.by == "register_hook" and y.requires_grad:
            y.register_hook(torch.neg)  # type: ignore[no-untyped-call]
        out: Tensor = self.fc2(y)
        return out


@pytest.mark.parametrize("by", ["Reverse", "register_hook"])
def test_a_backward_of_the_users_own_is_never_replaced_by_another(by: str) -> None:
    small = graph(Adversarial(by), nets.image(2, 4))
    assert small(nets.image(5, 4)).shape == (5, 2)
    assert by == "register_hook" or not small(nets.image(5, 4)).requires_grad
    with pytest.raises(ModelError, match=f"no graph for training: its forward uses {by}"):
        small.train()(nets.image(5, 4))


def test_a_copy_runs_and_learns_on_its_own() -> None:
    small = graph(nets.ResidualCnn(), IMAGES)
    expected = small(IMAGES)
    for twin in (copy.deepcopy(small), copy.deepcopy(copy.deepcopy(small))):
        assert torch.equal(twin(IMAGES), expected)
        twin.train()(IMAGES).square().sum().backward()
        torch.optim.SGD(twin.parameters(), lr=0.1).step()
        assert not torch.equal(twin.eval()(IMAGES), expected)
    assert torch.equal(small(IMAGES), expected)
    assert all(parameter.grad is None for parameter in small.parameters())


def test_a_backward_hook_of_a_layer_is_refused_by_its_name() -> None:
    model = Adversarial("")
    model.fc2.register_full_backward_hook(lambda *_: None)
    small = graph(model, nets.image(2, 4))
    with pytest.raises(ModelError, match='its forward uses the backward hook of "fc2"'):
        small.train()(nets.image(5, 4))


def test_shallow_copies_and_replicas_run_on_their_own_tensors() -> None:
    small = graph(nets.ResidualCnn(), IMAGES)
    for twin in (copy.copy(small), small._replicate_for_data_parallel()):
        assert twin.forward.__self__ is twin
    shallow = copy.copy(small)
    assert torch.equal(shallow(IMAGES), small(IMAGES))
    assert shallow.get_parameter("fc.weight") is small.get_parameter("fc.weight")


def test_it_is_pickled_whole_and_nothing_of_it_is_code() -> None:
    for small, given in (
        (graph(nets.ResidualCnn(), IMAGES), IMAGES),
        (graph(Choosy(), nets.image(2, 3, 2)), nets.image(5, 3, 2)),
    ):
        expected = small(given)
        file = io.BytesIO()
        torch.save(small, file)
        again = torch.load(io.BytesIO(file.getvalue()), weights_only=False)
        same = map(torch.equal, tree_leaves(again(given)), tree_leaves(expected))
        assert all(same)
        assert type(again(given)) is type(expected)
        assert b"def forward" not in file.getvalue()
        again.train()(given)


def test_an_operator_that_is_not_known_here_is_named() -> None:
    state = graph(nets.ResidualCnn(), IMAGES).program.__getstate__()
    for rows in state["graphs"].values():
        kind, name, _, given = rows[-2]
        rows[-2] = ("call_function", name, "os.system", given)
        assert kind in ("call_function", "call_module")
    with pytest.raises(ModelError, match=r"operator os\.system, which is not known"):
        Program.__new__(Program).__setstate__(state)


class Dropped(nn.Module):
    """A batch norm, a dropout, and a branch of the user's own that asks for the mode, in front of a width."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.drop = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout(0.5)
        self.noise, self.head = Noise(), nn.Linear(8, 2)

    def forward(self, image: Tensor) -> Tensor:
        y = self.noise(self.drop(F.relu(self.norm(self.conv(image)))).mean((2, 3)).view(-1, 8))
        scores: Tensor = self.head(y)
        return scores


class Noise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand_like(x) if self.training else x


def test_settings_of_torchs_layers_have_their_effect() -> None:
    small = graph(Dropped(), IMAGES)
    expected = small(IMAGES)
    small.drop.train()
    assert not torch.equal(small(IMAGES), small(IMAGES))  # dropout at inference
    small.drop.p = 0.0
    assert torch.equal(small(IMAGES), expected)
    small.norm.eps = 10.0
    assert not torch.allclose(small(IMAGES), expected)
    small.norm.momentum = 1.0
    small.train()(IMAGES)
    mean = small.conv(IMAGES).mean((0, 2, 3))
    assert torch.allclose(small.norm.running_mean, mean, atol=1e-6)


def test_hooks_run_on_torchs_layers_and_are_refused_by_name_elsewhere() -> None:
    small = graph(Dropped(), IMAGES)
    seen: list[Any] = []
    for layer in (small.conv, small):
        layer.register_forward_hook(lambda module, *_: seen.append(module))
    small(IMAGES)
    assert seen == [small.conv, small]
    small.noise.register_forward_hook(lambda *_: None)
    with pytest.raises(ModelError, match='A hook on "noise" would never run'):
        small(IMAGES)


def test_a_part_with_code_for_training_has_the_mode_of_the_network() -> None:
    small = graph(Dropped(), IMAGES).train()
    small.drop.eval()
    small(IMAGES)
    small.noise.eval()
    with pytest.raises(ModelError, match='"noise" is in eval mode and the network is not'):
        small(IMAGES)


def test_a_copy_that_was_made_before_the_first_run_runs_too() -> None:
    small = graph(nets.ResidualCnn(), IMAGES)
    twin = copy.deepcopy(small)
    with torch.no_grad():
        twin.get_parameter("fc.bias").add_(1)
    assert torch.allclose(twin(IMAGES), small(IMAGES) + 1, atol=1e-5)


def test_it_goes_to_another_precision_as_modules_do() -> None:
    small = graph(nets.ResidualCnn(), IMAGES)
    expected = small(IMAGES)
    found = copy.deepcopy(small).double()(IMAGES.double())
    assert found.dtype == torch.float64
    assert torch.allclose(found, expected.double(), rtol=1e-4, atol=1e-5)


def test_weights_of_one_graph_load_into_another_and_names_are_checked() -> None:
    one, other = graph(nets.ResidualCnn(), IMAGES), graph(nets.ResidualCnn(), IMAGES)
    with torch.no_grad():
        one.get_parameter("stem.weight").mul_(3)
    other.load_state_dict(one.state_dict())
    assert torch.equal(one(IMAGES), other(IMAGES))
    with pytest.raises(RuntimeError, match=r"Missing key.*stem.weight"):
        other.load_state_dict(
            {name: value for name, value in one.state_dict().items() if name != "stem.weight"}
        )


def test_parameters_that_were_frozen_stay_frozen() -> None:
    model = nets.lively(nets.Mlp())
    model.get_submodule("fc1").requires_grad_(False)
    small = graph(model, nets.image(2, 1, 4, 4))
    small.train()(nets.image(2, 1, 4, 4)).sum().backward()
    assert {name for name, one in small.named_parameters() if one.grad is None} == {"fc1.weight", "fc1.bias"}
