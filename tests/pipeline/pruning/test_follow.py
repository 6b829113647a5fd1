"""What follows from a trace and a plan can be cut without another capture; what does not is traced anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support import nets, sequence_nets
from support.halving import done
from torch import nn

from deadweight.pipeline.pruning import trace as tracing
from deadweight.pipeline.pruning.follow import following
from deadweight.pipeline.pruning.groups import Groups, choose
from deadweight.pipeline.pruning.surgery import apply
from deadweight.pipeline.pruning.trace import trace
from deadweight.pipeline.pruning.verify import verify


def cut(model: nn.Module, groups: Groups, ratio: float, form: str = "") -> nn.Module:
    generator = torch.Generator().manual_seed(3)
    scores = {group.name: torch.rand(group.size, generator=generator) for group in groups}
    return apply(model, choose(groups, scores, ratio=ratio), groups, form=form)


def test_what_no_longer_nests_for_a_new_trace_can_still_be_cut() -> None:
    """Three groups of three channels, shuffled: only the wider original says which of them are the groups."""
    model, example = nets.lively(nets.Grouped()).double(), (nets.image(2, 3, 6, 6).double(),)
    groups = trace(model, example)
    small = cut(model, groups, 0.25)
    again, anew = trace(small, groups), trace(small, example)
    assert ([one.size for one in again], [one.name for one in anew]) == ([3, 2], ["up"])
    smaller = cut(small, again, 0.4)
    assert verify(small, smaller, done(smaller), again).max_relative_error < 1e-12
    assert smaller.get_parameter("stem.weight").shape[0] == 6


def test_the_second_and_third_cut_capture_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, example = nets.lively(nets.ResidualCnn(24)), (nets.image(2, 3, 8, 8),)
    groups = trace(model, example)
    small = cut(model, groups, 0.25, "graph")  # it has captured the graph for training

    def refused(*_: Any, **__: Any) -> Any:
        raise AssertionError("captured again")

    monkeypatch.setattr(torch.export, "export", refused)
    for ratio in (0.25, 0.25):
        groups = trace(small, groups)
        smaller = cut(small, groups, ratio)
        verify(small, smaller, done(smaller), groups)
        small = smaller
    assert small.train()(nets.image(3, 3, 8, 8)).requires_grad


def test_trained_weights_are_those_of_the_next_cut() -> None:
    model, example = nets.lively(nets.Mlp()), (nets.image(2, 16),)
    groups = trace(model, example)
    small = cut(model, groups, 0.5)
    with torch.no_grad():
        small.get_parameter("fc2.weight").mul_(2)
    again = trace(small, groups)
    smaller = cut(small, again, 0.5)
    verify(small, smaller, done(smaller), again)
    assert any(torch.equal(row, small.get_parameter("fc3.bias")) for row in smaller.state_dict().values())


def test_a_network_whose_code_was_changed_is_traced_anew() -> None:
    model, example = nets.lively(nets.Mlp()), (nets.image(2, 16),)
    groups = trace(model, example)
    small = cut(model, groups, 0.5)
    assert following(small, groups) is not None
    small.relu = nn.Sigmoid()
    assert following(small, groups) is None
    assert "sigmoid" in str(trace(small, groups).graph.graph)


def test_a_network_with_one_more_parameter_or_from_elsewhere_is_traced_anew(tmp_path: Path) -> None:
    model, example = nets.lively(nets.Mlp()), (nets.image(2, 16),)
    groups = trace(model, example)
    small = cut(model, groups, 0.5)
    small.register_parameter("more", nn.Parameter(torch.zeros(3)))
    assert following(small, groups) is None
    assert following(nets.Mlp(16, 6, 4, 4), groups) is None
    assert following(cut(small, trace(small, example), 0.5), groups) is None


def test_a_width_of_one_is_traced_anew() -> None:
    model, example = nets.lively(sequence_nets.Vit()), (nets.image(2, 3, 8, 8),)
    groups = trace(model, example)
    plan = choose(groups, {"attention.qkv:heads": torch.arange(4.0)}, keep={"attention.qkv:heads": 1})
    small = apply(model, plan, groups)
    assert following(small, groups) is None
    assert "attention.qkv:heads" not in {group.name for group in trace(small, groups)}


def test_other_weights_of_the_traced_network_need_no_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = trace(nets.lively(nets.Mlp()), (nets.image(2, 16),))
    other = nets.lively(nets.Mlp(), seed=5)
    monkeypatch.setattr(tracing, "capture", None)
    again = trace(other, groups)
    assert again.tracing.graph.get_parameter("fc1.weight") is other.get_parameter("fc1.weight")
    small = cut(other, again, 0.5)
    verify(other, small, done(small), again)
