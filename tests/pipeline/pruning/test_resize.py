"""Operators with a width among their arguments get the living width, and the graph computes the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support import nets
from support.halving import Between, done, half_of
from torch import Tensor, nn

from deadweight.pipeline.pruning.groups import Groups, remove
from deadweight.pipeline.pruning.plan import Plan
from deadweight.pipeline.pruning.resize import living_shape, resized
from deadweight.pipeline.pruning.surgery import apply
from deadweight.pipeline.pruning.trace import trace
from deadweight.pipeline.pruning.verify import verify

EXAMPLE = nets.image(2, 4, 5).double()
"""Values in `Between` are (2, 4, 12): batch, tokens, units."""

Changed = set[tuple[str, str, Any, Any]]


def changed(groups: Groups, plan: Plan) -> Changed:
    """The changed arguments of the graph: the operator, its argument, before and after."""
    _, changes = resized(groups.tracing, groups.tracing.alive(plan.removed))
    return {
        (change.operator, change.argument, _hashable(change.before), _hashable(change.after))
        for change in changes
    }


def _hashable(value: Any) -> Any:
    return tuple(str(one) for one in value) if isinstance(value, (list, tuple)) else value


def checked(model: nn.Module, groups: Groups, plan: Plan) -> None:
    """The graph form is right, for another batch size too, and no group was spared."""
    small = apply(model, plan, groups, form="graph")
    assert done(small).removed == plan.removed
    assert verify(model, small, plan, groups).max_relative_error < 1e-12
    assert small(torch.cat([EXAMPLE] * 2)).shape == (4, 4, 3)


def removed_with(model: nn.Module, layer: str, rows: list[int]) -> Changed:
    """The changed arguments without the units of these rows of a layer; the graph is right."""
    groups = trace(model, (EXAMPLE,))
    dead = {}
    for group in groups:
        for piece in group.slices:
            if piece.parameter == f"{layer}.weight" and piece.axis == 0:
                gone = piece.units[torch.tensor(rows, dtype=torch.long)]
                dead[group.name] = torch.isin(torch.arange(group.size), gone)
    plan = remove(groups, dead)
    checked(model, groups, plan)
    return changed(groups, plan)


def without(operator: Callable[[Tensor], Tensor], rows: list[int], after: int = 12) -> Changed:
    """The same for an operator between two layers, and some of the 12 units of the first."""
    return removed_with(nets.lively(Between(operator, after=after)).double(), "before", rows)


SIZES: dict[str, tuple[Callable[[Tensor], Tensor], int, tuple[str, str]]] = {
    "view": (lambda x: x.view(-1, 12).view(-1, 4, 12), 12, ("view", "size")),
    "reshape": (lambda x: x.mT.reshape(-1, 12, 4).mT, 12, ("reshape", "shape")),
    "unflatten": (lambda x: torch.unflatten(x.mT, 1, (3, 4)).flatten(1, 2).mT, 12, ("unflatten", "sizes")),
    "expand": (lambda x: x + x.mean(2, True).expand(-1, 4, 12), 12, ("expand", "size")),
    "repeat": (lambda x: x + x.mean(2, True).repeat(1, 1, 12), 12, ("repeat", "repeats")),
    "zeros": (lambda x: x + torch.zeros(12, dtype=x.dtype), 12, ("zeros", "size")),
    "full": (lambda x: x * torch.full((4, 12), 2.0, dtype=x.dtype), 12, ("full", "size")),
    "new ones": (lambda x: x + x.new_ones(4, 12), 12, ("new_ones", "size")),
    "uneven chunks": (lambda x: torch.cat(x[..., 1:].chunk(3, 2)[::-1], 2), 11, ("chunk", "sizes")),
    "split": (lambda x: torch.cat(torch.split(x, 4, 2)[::-1], 2), 12, ("split", "split_size")),
    "sizes": (lambda x: torch.cat(torch.split(x, [2, 7, 3], 2)[::-1], 2), 12, ("split_with_sizes", "sizes")),
    "uneven split": (lambda x: torch.cat(torch.split(x, 5, 2)[::-1], 2), 12, ("split", "sizes")),
    "tensor split": (lambda x: torch.cat(x.tensor_split(5, 2)[::-1], 2), 12, ("tensor_split", "sizes")),
    "layer norm": (lambda x: F.layer_norm(x, (12,)), 12, ("layer_norm", "normalized_shape")),
    "rms norm": (lambda x: F.rms_norm(x, (12,)), 12, ("rms_norm", "normalized_shape")),
    "group norm": (lambda x: F.group_norm(x.mT, 3).mT, 12, ("group_norm", "num_groups")),
    "shuffle": (
        lambda x: F.channel_shuffle(x.mT[..., None], 3)[..., 0].mT,
        12,
        ("channel_shuffle", "groups"),
    ),
}


@pytest.mark.parametrize("name", SIZES)
def test_an_operator_with_a_width_gets_the_new_one(name: str) -> None:
    operator, after, argument = SIZES[name]
    model = nets.lively(Between(operator, after=after)).double()
    groups = trace(model, (EXAMPLE,))
    plan = half_of(groups)
    checked(model, groups, plan)
    assert argument in {(which, what) for which, what, _, _ in changed(groups, plan)}


def test_equal_chunks_are_not_changed() -> None:
    assert without(lambda x: torch.cat(x.chunk(3, 2)[::-1], 2), [0, 2]) == set()


def test_a_width_that_stays_is_not_changed() -> None:
    assert without(lambda x: x.view(-1, 4, 12), []) == set()


def test_a_size_that_is_left_open_is_not_changed() -> None:
    assert without(lambda x: x.view(x.shape[0], 4, -1), [0, 5]) == set()


def test_a_slice_begins_and_ends_at_the_same_units() -> None:
    swapped = without(lambda x: torch.cat([x[..., 8:], x[..., :8]], 2), [0, 1, 9])
    assert swapped == {("slice", "start", 8, 6), ("slice", "end", 8, 6)}
    assert without(lambda x: x[..., 2:-3], [0, 4, 10, 11], after=7) == {
        ("slice", "start", 2, 1),
        ("slice", "end", -3, 7),
    }


def test_a_strided_slice_begins_at_the_same_place_of_a_period() -> None:
    assert without(lambda x: x[..., 1::3], [3, 4, 5], after=4) == set()  # a whole period goes
    assert without(lambda x: x[..., 1::3], [0, 1, 2], after=4) == set()
    assert without(lambda x: x[..., -2::5], [5, 6, 7, 8, 9], after=1) == {("slice", "start", -2, 5)}
    assert without(lambda x: x[..., 7::3], [0, 1, 2], after=2) == {("slice", "start", 7, 4)}


def test_one_unit_that_is_picked_is_found_at_its_new_place() -> None:
    def picked(x: Tensor) -> Tensor:
        return torch.unflatten(x, 2, (2, 6)).select(2, 1)  # of two halves the second

    assert without(picked, [0, 5], after=6) == {("unflatten", "sizes", ("2", "6"), ("2", "4"))}
    assert without(lambda x: x * x.select(2, 7)[..., None], [0, 1, 9]) == {("select", "index", 7, 5)}
    assert without(lambda x: x * x.select(2, -5)[..., None], [0, 1, 9]) == {("select", "index", -5, 5)}


def test_narrow_keeps_start_and_length_in_what_lives() -> None:
    assert without(lambda x: x.narrow(2, 4, 6), [0, 5, 6, 11], after=6) == {
        ("narrow", "start", 4, 3),
        ("narrow", "length", 6, 4),
    }


def test_a_roll_goes_round_as_far_as_what_lives_goes() -> None:
    assert without(lambda x: x.roll(5, 2), [0, 8, 11]) == {("roll", "shifts", ("5",), ("3",))}
    assert without(lambda x: x.roll((1, -5), (1, 2)), [0, 8]) == {("roll", "shifts", ("1", "-5"), ("1", "6"))}


def test_padding_beside_units_is_as_wide_as_what_lives_there() -> None:
    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.narrow, self.wide, self.after = nn.Linear(5, 4), nn.Linear(5, 9), nn.Linear(9, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.after(self.wide(x) + F.pad(self.narrow(x), (2, 3)))
            return out

    found = removed_with(nets.lively(Padded()).double(), "wide", [0, 3, 7, 8])
    assert found == {("pad", "pad", ("2", "3"), ("1", "1"))}


@pytest.mark.parametrize("transposed", [False, True])
def test_a_convolution_has_as_many_groups_as_live(transposed: bool) -> None:
    class Grouped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            kind = nn.ConvTranspose1d if transposed else nn.Conv1d
            self.before, self.conv, self.after = nn.Linear(5, 12), kind(12, 12, 1, groups=6), nn.Linear(12, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.after(self.conv(self.before(x).mT).mT)
            return out

    model = nets.lively(Grouped()).double()
    groups = trace(model, (EXAMPLE,))
    whole = next(group for group in groups if group.size == 6)
    plan = remove(groups, {whole.name: torch.arange(6) < 2})
    checked(model, groups, plan)
    assert {change[1:] for change in changed(groups, plan)} == {("groups", 6, 4)}


@pytest.mark.parametrize("scale", [None, 0.7])
def test_the_scale_of_attention_is_what_it_was(scale: float | None) -> None:
    def attend(x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x, x, scale=scale)

    found = without(attend, [0, 1, 2])
    assert found == (set() if scale else {("scaled_dot_product_attention", "scale", None, 12**-0.5)})


def test_an_open_batch_that_is_multiplied_with_a_width_is_scaled_where_it_is_used() -> None:
    def folded(x: Tensor) -> Tensor:
        b, n, _ = x.shape
        heads = x.view(b, n, 3, 4).transpose(1, 2).reshape(b * 3, n, 4)
        return (heads @ heads.mT @ heads).view(b, 3, n, 4).transpose(1, 2).reshape(b, n, 12)

    model = nets.lively(Between(folded)).double()
    groups = trace(model, (EXAMPLE,))
    assert groups.batch is None
    plan = half_of(groups)
    assert {width.before for width in plan.widths.values()} == {3, 4}
    checked(model, groups, plan)


def test_a_shape_of_what_lives_counts_the_living_of_each_axis() -> None:
    groups = trace(nets.Mlp(), (nets.image(2, 1, 4, 4),))
    alive = groups.tracing.alive({"fc1": (0, 1, 2)})
    value = groups.tracing.values[groups["fc1"].reads[0].node]
    assert not isinstance(value, list)
    assert (value.shape, living_shape(value, alive)) == ((2, 12), (2, 9))


def test_the_captured_graph_stays_as_it_was() -> None:
    groups = trace(nets.lively(Between(lambda x: x.view(-1, 4, 12))).double(), (EXAMPLE,))
    before = str(groups.tracing.graph.graph)
    graph, changes = resized(groups.tracing, groups.tracing.alive({"before": (0,)}))
    assert str(groups.tracing.graph.graph) == before != str(graph)
    assert [change.module for change in changes] == [""]  # forward of the network itself
