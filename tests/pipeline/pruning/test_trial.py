"""A plan tried out: whether the user's own class can follow it, what is set for that, or what is wrong."""

from __future__ import annotations

import pytest
import torch
from support import nets
from support.halving import done, half_of
from torch import Tensor, nn

from deadweight.pipeline.pruning.compare import Precision, relative_error, run
from deadweight.pipeline.pruning.graphnet import GraphNet
from deadweight.pipeline.pruning.groups import BLOCKS, choose
from deadweight.pipeline.pruning.inputs import Example
from deadweight.pipeline.pruning.plan import earlier_plans
from deadweight.pipeline.pruning.surgery import apply
from deadweight.pipeline.pruning.trace import trace
from deadweight.pipeline.pruning.trial import Trial
from deadweight.pipeline.pruning.verify import verify


class Reshaped(nn.Module):
    """A width as a test wants it: as an attribute, in forward or in a function, or so that it is wrong."""

    def __init__(self, written: str) -> None:
        super().__init__()
        self.fc1, self.fc2, self.out = nn.Linear(4, 8), nn.Linear(8, 6), nn.Linear(6, 2)
        self.written, self.width = written, 8

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.fc1(x))
        if self.written == "attribute":
            y = y.view(-1, self.width)
        elif self.written == "number":
            y = y.view(-1, 8)
        elif self.written == "function":
            y = _eights(y)
        elif self.written == "scale":
            y = y * y.shape[-1] ** -0.5
        out: Tensor = self.out(torch.relu(self.fc2(y)))
        return out


def _eights(x: Tensor) -> Tensor:
    return x.view(-1, 8)


def tried(model: nn.Module, *example: Tensor) -> Trial:
    groups = trace(nets.lively(model), example)
    return Trial(model, half_of(groups), groups)


def test_code_that_follows_the_widths_is_left_alone() -> None:
    small, problem = tried(nets.Mlp(), nets.image(2, 1, 4, 4)).module()
    assert small is not None
    assert problem == ""
    assert (done(small).form, done(small).reason) == ("module", "its forward code follows the widths")
    assert done(small).attributes == {}


def test_a_width_in_an_attribute_is_set_anew_and_that_is_said() -> None:
    small, _ = tried(Reshaped("attribute"), nets.image(2, 4)).module()
    assert small is not None
    assert vars(small)["width"] == 4
    assert done(small).reason.endswith("with changed attributes: width")
    assert done(small).attributes == {"": {"width": 4}}


def test_a_forward_that_fails_is_reported_with_its_error() -> None:
    small, problem = tried(Reshaped("function"), nets.image(2, 4)).module()
    assert small is None
    assert problem.startswith("its forward fails with the new widths: ")
    assert "shape" in problem


class Heads(nn.Module):
    """Attention with a stored head size. Its small weights all point one way: scaled up, tanh saturates."""

    def __init__(self) -> None:
        super().__init__()
        self.size, self.scale = 8, 8**-0.5
        self.q, self.k, self.v, self.pool = (
            nn.Linear(16, 32),
            nn.Linear(16, 32),
            nn.Linear(16, 32),
            nn.Linear(32, 16),
        )
        self.out = nn.Linear(16, 2)
        signs = torch.randn(32).sign()
        with torch.no_grad():
            self.v.weight.copy_(0.01 * signs[:, None].expand(32, 16))
            self.pool.weight.copy_(0.01 * torch.randn(16, 1).sign() * signs)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (-1, self.size)).transpose(1, 2) for f in (self.q, self.k, self.v))
        mixed = (q @ k.mT * self.scale).softmax(-1) @ v
        scores: Tensor = self.out(torch.tanh(self.pool(mixed.transpose(1, 2).flatten(2))).mean(1))
        return scores


def test_a_stale_head_size_that_divides_the_new_width_is_found_and_set_anew() -> None:
    torch.manual_seed(0)
    model, example = Heads().eval(), (nets.image(2, 5, 16) + 2,)
    groups = trace(model, example)
    plan = half_of(groups)
    assert plan.widths["q"].after == 4  # heads that are left have half the size: their pairs look whole
    small = apply(model, plan, groups)
    assert (vars(small)["size"], done(small).attributes[""]) == (4, {"size": 4})
    assert verify(model, small, plan, groups).max_relative_error < 1e-5


class Square(nn.Module):
    """Attention that stores the number of its heads and their size."""

    def __init__(self, heads: int, size: int) -> None:
        super().__init__()
        self.heads, self.size, self.scale = heads, size, size**-0.5
        self.qkv, self.out = nn.Linear(16, 3 * heads * size), nn.Linear(heads * size, 16)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(x).view(len(x), -1, 3, self.heads, self.size)
        q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = (q @ k.mT * self.scale).softmax(-1) @ v
        out: Tensor = self.out(mixed.transpose(1, 2).reshape(len(x), -1, self.heads * self.size))
        return out


@pytest.mark.parametrize("shapes", [[(4, 4)], [(4, 8), (8, 8), (16, 16)]])
def test_as_many_heads_as_features_stay_as_many(shapes: list[tuple[int, int]]) -> None:
    model, example = nn.Sequential(*(Square(*one) for one in shapes)), (nets.image(2, 5, 16),)
    groups = trace(nets.lively(model), example)
    whole = {one.name: torch.rand(one.size) for one in groups if one.kind not in BLOCKS}
    plan = choose(groups, whole, ratio=0.5)
    small = apply(model, plan, groups)
    assert [(vars(one)["heads"], vars(one)["size"]) for one in small.children()] == [
        (heads, size // 2) for heads, size in shapes
    ]
    assert verify(model, small, plan, groups).max_relative_error < 1e-5


class Longest(nn.Module):
    """The number of tokens that it takes is that of a layer's units."""

    def __init__(self, *, normed: bool) -> None:
        super().__init__()
        self.longest, self.width = 16, 16
        self.fc, self.out = nn.Linear(6, 16), nn.Linear(16, 3)
        self.norm = nn.LayerNorm(16) if normed else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, : self.longest]
        out: Tensor = self.out(self.norm(self.fc(x)).view(x.shape[0], x.shape[1], self.width))
        return out


@pytest.mark.parametrize("normed", [False, True])
def test_a_number_that_is_right_at_the_size_of_the_example_alone_is_not_changed(normed: bool) -> None:
    model, example = nets.lively(Longest(normed=normed)), (nets.image(2, 5, 6),)
    groups = trace(model, example)
    small = apply(model, half_of(groups), groups)
    assert done(small).attributes[""] == {"width": 8}
    assert small(nets.image(2, 16, 6)).shape == (2, 16, 3)


def test_a_forward_that_runs_and_is_wrong_is_not_handed_out() -> None:
    trial = tried(Reshaped("scale"), nets.image(2, 4))
    small, problem = trial.module()
    assert small is None
    assert problem.startswith("its forward runs with the new widths, but outputs are wrong by ")
    assert trial.graph_problem is None  # the graph holds the scale as it was


@pytest.mark.parametrize("written", ["attribute", "number", "function", "scale"])
def test_whatever_is_handed_out_is_right(written: str) -> None:
    model, example = nets.lively(Reshaped(written)).double(), nets.image(2, 4).double()
    groups = trace(model, (example,))
    plan = half_of(groups)
    small = apply(model, plan, groups)
    assert isinstance(small, Reshaped) == (written in ("attribute", "number"))
    assert verify(model, small, plan, groups).max_relative_error < 1e-12


def test_what_is_expected_is_the_original_without_the_units() -> None:
    trial = tried(nets.Mlp(), nets.image(2, 1, 4, 4))
    with torch.no_grad():
        trial.model.get_parameter("fc2.weight")[:, list(trial.plan.removed["fc1"])] = 0
        trial.model.get_parameter("fc3.weight")[:, list(trial.plan.removed["fc2"])] = 0
    assert relative_error(run(trial.model, trial.inputs), trial.expected[-1](Precision.OWN)) < 1e-5


def test_a_graph_that_is_wrong_is_reported_with_the_layer() -> None:
    trial = tried(nets.Mlp(), nets.image(2, 1, 4, 4))
    with torch.no_grad():
        trial.tensors["fc2.bias"][0] += 1
    problem = trial.graph_problem
    assert problem is not None
    assert '"fc2"' in problem.what
    assert problem.node is not None


def test_one_sample_is_enough_where_the_batch_is_open() -> None:
    (value,) = tried(nets.Mlp(), nets.image(4, 1, 4, 4)).inputs.args
    assert torch.equal(value, nets.image(4, 1, 4, 4)[:1])
    model = Reshaped("")
    model.register_forward_pre_hook(lambda module, given: (given[0].reshape(4, 4),))
    (value,) = tried(model, nets.image(4, 4)).inputs.args
    assert len(value) == 4


class WithClassToken(nn.Module):
    """A learned row in front of each sample's own: the row is repeated along the batch, and never removed."""

    def __init__(self) -> None:
        super().__init__()
        self.row = nn.Parameter(torch.randn(1, 1, 6))
        self.embed, self.fc, self.head = nn.Linear(4, 6), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = torch.cat([self.row.expand(x.shape[0], -1, -1), self.embed(x)], 1)
        scores: Tensor = self.head(torch.relu(self.fc(tokens))[:, 0])
        return scores


def test_one_sample_is_enough_where_each_gets_the_same_row() -> None:
    model, example = WithClassToken(), (nets.image(3, 5, 4),)
    groups = trace(model, example)
    trial = Trial(model, half_of(groups), groups)
    assert [len(one) for one in trial.inputs.args] == [1]
    small, problem = trial.module()
    assert (type(small), problem) == (WithClassToken, "")


def test_an_input_without_axes_is_given_as_it_is() -> None:
    class Scaled(nets.Mlp):
        def forward(self, image: Tensor, gain: Tensor | None = None) -> Tensor:
            out = super().forward(image)
            return out if gain is None else out * gain

    model = nets.lively(Scaled())
    example: Example = {"image": nets.image(2, 1, 4, 4), "gain": torch.tensor(2.0)}
    groups = trace(model, example)
    assert groups.batch is None
    plan = half_of(groups)
    for form in ("module", "graph"):
        small = apply(model, plan, groups, form=form)
        assert verify(model, small, plan, groups).max_relative_error < 1e-5


def test_earlier_plans_are_in_order_and_each_stands_alone() -> None:
    model: nn.Module = nets.lively(nets.Mlp(16, 32, 16, 4))
    assert earlier_plans(model) == ()
    for form in ("module", "graph", "graph"):
        groups = trace(model, (nets.image(2, 1, 4, 4),))
        model = apply(model, half_of(groups), groups, form=form)
    plans = earlier_plans(model)
    assert [plan.form for plan in plans] == ["module", "graph", "graph"]
    assert [plan.widths["fc1"].before for plan in plans] == [32, 16, 8]
    assert all(plan.earlier == () for plan in plans)
    assert isinstance(model, GraphNet)
