"""Half of every group goes, in one network for each way in which parts hang together; what is left is right.

Each case says the share of parameters that may be left at most, so that nothing is over-frozen unseen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from support import nets, sequence_nets
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from deadweight.pipeline.pruning.follow import following
from deadweight.pipeline.pruning.graphnet import GraphNet
from deadweight.pipeline.pruning.groups import Groups, choose
from deadweight.pipeline.pruning.plan import Plan, plan_of
from deadweight.pipeline.pruning.saved import load_pruned, save_pruned
from deadweight.pipeline.pruning.surgery import apply
from deadweight.pipeline.pruning.trace import trace
from deadweight.pipeline.pruning.verify import verify


@dataclass(frozen=True)
class Case:
    """A network, the shape of its input, the share of parameters left at most, and what is to be seen."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    left: float
    form: str = "module"
    changes: bool = False
    tokens: bool = False

    def example(self) -> Tensor:
        if self.tokens:
            return torch.randint(0, 30, self.shape, generator=torch.Generator().manual_seed(0))
        return nets.image(*self.shape).double()

    def model(self) -> nn.Module:
        model = nets.lively(self.build())
        return model if self.tokens else model.double()


CASES = {
    "shuffled": Case(nets.Shuffled, (2, 3, 8, 8), 0.43),
    "grouped": Case(nets.Grouped, (2, 3, 6, 6), 0.50, changes=True),
    "detector": Case(nets.Detector, (2, 3, 8, 8), 0.28),
    "pixel shuffle": Case(nets.PixelUNet, (2, 3, 8, 8), 0.28),
    "auxiliary": Case(nets.Auxiliary, (2, 3, 8, 8), 0.31),
    "vit": Case(sequence_nets.Vit, (2, 3, 8, 8), 0.35, changes=True),
    "llama": Case(sequence_nets.Llama, (2, 9), 0.25, form="graph", changes=True, tokens=True),
    "encoder": Case(sequence_nets.Encoder, (2, 7, 6), 0.22, form="graph", changes=True),
    "recurrent": Case(sequence_nets.Recurrent, (2, 6, 5), 0.28),
    "linked": Case(sequence_nets.Linked, (2, 9, 6), 0.37, changes=True),
}


def halved(case: Case, form: str = "") -> tuple[nn.Module, nn.Module, Plan, Groups]:
    model = case.model()
    groups = trace(model, (case.example(),))
    plan = drawn(groups, 0.5)
    return model, apply(model, plan, groups, form=form), plan, groups


def drawn(groups: Groups, ratio: float) -> Plan:
    generator = torch.Generator().manual_seed(3)
    scores = {group.name: torch.rand(group.size, generator=generator) for group in groups}
    return choose(groups, scores, ratio=ratio)


def size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", CASES)
def test_half_goes_and_the_rest_computes_the_same(name: str) -> None:
    case = CASES[name]
    model, small, plan, groups = halved(case)
    verification = verify(model, small, plan, groups)
    assert verification.max_relative_error < (1e-5 if case.tokens else 1e-12)
    assert bool(verification.function_changed_by) == case.changes
    assert size(small) <= case.left * size(model)
    done = plan_of(small)
    assert done is not None
    assert done.form == case.form
    larger = torch.cat([case.example()] * 3)
    assert all(len(leaf) == 6 for leaf in pytree.tree_leaves(small(larger)))


@pytest.mark.parametrize("name", CASES)
def test_the_graph_form_trains_and_comes_back_from_disk(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    model, small, plan, groups = halved(case, "graph")
    assert isinstance(small, GraphNet)
    verify(model, small, plan, groups)
    small.train()
    outputs = pytree.tree_leaves(small(torch.cat([case.example()] * 2)))
    torch.autograd.backward(torch.stack([output.square().sum() for output in outputs]).sum())
    assert [key for key, parameter in small.named_parameters() if parameter.grad is None] == []
    torch.optim.SGD(small.parameters(), lr=1e-3).step()
    small.eval()
    save_pruned(tmp_path, small, plan, (case.example(),))
    loaded = load_pruned(case.model, tmp_path).eval()
    saved, found = (pytree.tree_leaves(net(case.example())) for net in (small, loaded))
    assert all(torch.equal(one, other) for one, other in zip(saved, found, strict=True))


@pytest.mark.parametrize("form", ["", pytest.param("graph", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", [name for name in CASES if name != "grouped"])
def test_groups_that_follow_from_the_cut_are_those_of_a_new_trace(name: str, form: str) -> None:
    case = CASES[name]
    model, example = case.model(), (case.example(),)
    groups = trace(model, example)
    ratio = 0.25 if name in ("shuffled", "llama", "encoder") else 0.5  # a width of one would be traced anew
    small = apply(model, drawn(groups, ratio), groups, form=form)
    again = following(small, groups)
    assert again is not None
    assert facts(again) == facts(trace(small, example))
    plan = drawn(again, 0.3)
    verify(small, apply(small, plan, again), plan, again)


def facts(groups: Groups) -> Any:
    """All but lines of code, which a graph does not have, and the names of its nodes."""
    frozen = {(one.parameter, one.axis, one.operator, one.reason) for one in groups.frozen}
    slices = [[(s.parameter, s.axis, s.units.tolist(), s.role) for s in one.slices] for one in groups]
    reads = [[one.units.tolist() for one in group.reads] for group in groups]
    kinds = [(one.name, one.size, one.kind, one.kinds) for one in groups]
    return groups.batch, groups.fingerprint, frozen, kinds, slices, reads


def test_an_auxiliary_head_is_cut_with_the_rest_though_only_training_runs_it() -> None:
    _, small, _, _ = halved(CASES["auxiliary"], "graph")
    assert small.get_parameter("aux.weight").shape == (3, 4, 1, 1)
    example = CASES["auxiliary"].example()
    assert isinstance(small.eval()(example), Tensor)
    main, aux = small.train()(example)
    assert (main.shape, aux.shape) == ((2, 3), (2, 3, 8, 8))


def test_attention_dropout_is_on_in_training_and_off_after() -> None:
    _, small, _, _ = halved(CASES["encoder"])
    example = CASES["encoder"].example()
    small.train()
    assert not torch.equal(small(example)[0], small(example)[0])
    small.eval()
    assert torch.equal(small(example)[0], small(example)[0])


def test_heads_go_whole_and_their_features_alike_in_all_heads() -> None:
    groups = trace(sequence_nets.Vit(), (nets.image(2, 3, 8, 8),))
    assert (groups["attention.qkv:heads"].size, groups["attention.qkv:heads"].kind) == (4, "heads")
    features = groups["attention.qkv"]
    assert (features.size, features.kind) == (6, "attention")
    (rows,) = [piece for piece in features.slices if piece.parameter == "attention.qkv.weight"]
    assert rows.units.tolist() == list(range(6)) * 12


def test_query_heads_that_share_keys_go_together() -> None:
    groups = trace(sequence_nets.Llama(), (torch.zeros(2, 9, dtype=torch.long),))
    heads = next(group for group in groups if group.kind == "heads")
    assert heads.size == 2
    rows = {piece.parameter: piece.units.tolist() for piece in heads.slices}
    assert rows["k.weight"] == [0] * 8 + [1] * 8
    assert rows["q.weight"] == [0] * 16 + [1] * 16


def test_tied_weights_stay_tied() -> None:
    _, small, _, _ = halved(CASES["llama"])
    assert small.get_parameter("embed.weight") is small.get_parameter("head.weight")


def test_a_batch_that_the_code_fixes_is_said_so() -> None:
    class Counted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.fc2(self.fc1(x).reshape(len(x), 6))
            return out

    model = nets.lively(Counted())
    groups = trace(model, (nets.image(2, 4),))
    assert groups.batch == 2
    small = apply(model, choose(groups, {"fc1": torch.arange(6.0)}, ratio=0.5), groups, form="graph")
    done = plan_of(small)
    assert done is not None
    assert "batch fixed at 2" in done.reason
