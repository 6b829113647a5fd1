"""Axes that a graph hides or fixes: under vmap, in branches of torch.cond, of experts, and of size one."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from support import nets
from support.halving import done, halved
from torch import Tensor, nn
from torch._C._functorch import get_interpreter_stack

from deadweight.pipeline.pruning.compare import run_graph
from deadweight.pipeline.pruning.graphnet import GraphNet
from deadweight.pipeline.pruning.survivors import Recorder
from deadweight.pipeline.pruning.verify import verify
from deadweight.targets.errors import ModelError


class Vmapped(nn.Module):
    """The first layer runs on one sample at a time, as users of `torch.func` write it."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.head = nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        def one(sample: Tensor) -> Tensor:
            return torch.relu(self.fc(sample))

        hidden: Tensor = torch.vmap(one)(x)
        out: Tensor = self.head(hidden)
        return out


@pytest.mark.parametrize("form", ["module", "graph"])
def test_units_inside_vmap_are_removed(form: str) -> None:
    model = nets.lively(Vmapped())
    small, plan, groups = halved(model, nets.image(4, 6), form)
    assert small.get_parameter("fc.weight").shape == (8, 6)
    assert "batch open" in verify(model, small, plan, groups, wide=True).also
    again = pickle.loads(pickle.dumps(small))
    assert torch.equal(again(nets.image(3, 6)), small(nets.image(3, 6)))


def test_a_graph_that_fails_inside_vmap_leaves_it() -> None:
    model = nets.lively(Vmapped())
    _, _, groups = halved(model, nets.image(4, 6))
    tensors = {"fc.weight": torch.ones(16, 7), "fc.bias": torch.ones(16)}
    narrow = Recorder(groups.tracing.graph, groups.tracing.graph.graph, tensors)
    with pytest.raises(RuntimeError, match="shape"):
        run_graph(narrow, (nets.image(4, 6),))
    assert not get_interpreter_stack()


class Branching(nn.Module):
    """A part whose path is chosen by the data, and layers beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.one, self.other = nn.Linear(6, 12), nn.Linear(6, 6), nn.Linear(6, 6)
        self.mid, self.head = nn.Linear(12, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.mid(torch.relu(self.fc(x)))
        chosen: Any = torch.cond(x.sum() > 0, lambda y: self.one(y), lambda y: self.other(y), (hidden,))
        out: Tensor = self.head(chosen)
        return out


def test_what_meets_a_branch_stays_and_the_reason_is_said() -> None:
    model = nets.lively(Branching())
    small, plan, groups = halved(model, nets.image(4, 6))
    assert [one.name for one in groups] == ["fc"]
    assert "torch.where" in next(one.reason for one in groups.frozen if one.parameter == "one.weight")
    assert verify(model, small, plan, groups).max_relative_error < 1e-5
    with pytest.raises(ModelError, match="cannot hold the branches"):
        halved(model, nets.image(4, 6), "graph")


GROUPED: Any = torch._grouped_mm  # pyright: ignore[reportPrivateImportUsage]


class Experts(nn.Module):
    """Two experts by one grouped product each, which takes bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = (
            nn.Parameter(torch.randn(2, 32, 64) / 6),
            nn.Parameter(torch.randn(2, 64, 32) / 8),
        )
        self.register_buffer("ends", torch.tensor([3, 8], dtype=torch.int32))

    def forward(self, x: Tensor) -> Tensor:
        ends = self.get_buffer("ends")
        up = GROUPED(x.bfloat16(), self.up.bfloat16(), offs=ends)
        down: Tensor = GROUPED(torch.relu(up), self.down.bfloat16(), offs=ends)
        return down.float()


def test_all_experts_lose_the_same_features() -> None:
    model = Experts().eval()
    small, plan, groups = halved(model, nets.image(8, 32))
    assert [tuple(one.shape) for one in small.parameters()] == [(2, 32, 32), (2, 32, 32)]
    assert verify(model, small, plan, groups).max_relative_error < 1e-2  # bfloat16


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.head = nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.relu(self.fc(x)).mean(1))
        return out


def test_a_graph_form_of_one_token_takes_any_number() -> None:
    model = nets.lively(Tokens())
    small, _, groups = halved(model, nets.image(2, 1, 6), "graph")
    assert isinstance(small, GraphNet)
    assert "takes any length of axis 1" in verify(model, small, done(small), groups, wide=True).also
    assert small(nets.image(2, 5, 6)).shape == (2, 3)
    grey = nets.lively(nets.Mlp())  # its one channel is no such axis
    small, _, _ = halved(grey, nets.image(2, 1, 4, 4), "graph")
    assert small(nets.image(5, 1, 4, 4)).shape == small(nets.image(2, 1, 4, 4))[:1].expand(5, -1).shape
