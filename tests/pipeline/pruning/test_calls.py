"""What every rule builds on: who agrees with whom, what freezes, what is noted of an operator."""

from __future__ import annotations

import torch
from support.halving import Axes

from deadweight.pipeline.pruning.calls import along_channels, meet, unknown

ADD = torch.ops.aten.add.Tensor


def test_what_meets_is_narrowed_alike() -> None:
    axes = Axes()
    a, b = axes.value(2, 6, free=(1,)), axes.value(2, 6, free=(1,))
    result = meet(axes.call(ADD, a, b), [a, b], (2, 6))
    assert axes.together(result.axes[1], a.axes[1], b.axes[1])


def test_an_axis_that_is_stretched_says_nothing_of_the_other() -> None:
    axes = Axes()
    a, b = axes.value(2, 1, 6, free=(2,)), axes.value(4, 1, free=(0,))
    result = meet(axes.call(ADD, a, b), [a, b], (2, 4, 6))
    assert result.axes[0] is None
    assert axes.together(result.axes[1], b.axes[0])
    assert axes.together(result.axes[2], a.axes[2])
    assert not any(axes.stays(a.axes[2]) + axes.stays(b.axes[0]))


def test_what_meets_a_fixed_width_stays_whichever_side_it_is_on() -> None:
    for fixed_first in (True, False):
        axes = Axes()
        free, fixed = axes.value(2, 6, free=(1,)), axes.value(2, 6)
        operands = [fixed, free] if fixed_first else [free, fixed]
        result = meet(axes.call(ADD, *operands), operands, (2, 6))
        assert result.axes == (None, None)
        assert all(axes.stays(free.axes[1]))


def test_of_three_that_meet_one_fixed_width_keeps_the_others() -> None:
    axes = Axes()
    a, b, fixed = axes.value(6, free=(0,)), axes.value(6, free=(0,)), axes.value(6)
    call = axes.call(torch.ops.aten.addcmul.default, a, fixed, b)
    meet(call, [a, fixed, b], (6,))
    assert all(axes.stays(a.axes[0]) + axes.stays(b.axes[0]))


def test_the_first_operator_that_keeps_a_unit_is_named_with_its_reason() -> None:
    axes = Axes()
    x = axes.value(2, 6, free=(1,))
    axes.call(torch.ops.aten.cumsum.default, x, 1).freeze(x.axes[1], "order matters")
    axes.call(torch.ops.aten.relu.default, x).freeze(x.axes[1], "another")
    causes = set(axes.solve().causes.values())
    assert [(cause.operator, cause.reason) for cause in causes] == [("cumsum", "order matters")]


def test_only_activations_are_read_but_weights_are_masked_too() -> None:
    axes = Axes()
    call = axes.call(torch.ops.aten.mm.default, axes.value(2, 6, free=(1,)), axes.value(6, 3, weight=True))
    x, weight = call["self"], call["mat2"]
    call.read(x)
    call.read(weight)
    call.read(axes.value(2, 6))  # nothing in it may be narrowed
    assert list(axes.notes.reads) == [x.node]
    assert {x.node, weight.node} < axes.notes.masked[call.node.name]


def test_a_contraction_ties_what_is_summed_over_to_the_columns() -> None:
    axes = Axes()
    x, weight = axes.value(2, 6, free=(1,)), axes.value(3, 6, weight=True)
    axes.call(torch.ops.aten.linear.default, x, weight).contract(x, -1, weight, 1)
    assert axes.together(x.axes[1], weight.axes[1])
    (consumed,) = axes.notes.consumed
    assert consumed is weight.axes[1]


def test_groups_and_ranks_of_a_split_are_parts_of_each_unit() -> None:
    axes = Axes()
    x = axes.value(2, 6, free=(1,))
    groups, ranks = axes.call(torch.ops.aten.relu.default, x).split(x.axes[1], 3)
    assert groups is not None
    assert ranks is not None
    assert (len(groups), len(ranks)) == (3, 2)
    solution = axes.solve()
    alive = solution.alive(solution.of[groups[:1]])
    assert alive[x.axes[1]].tolist() == [False, False, True, True, True, True]


def test_what_has_no_rule_keeps_its_operands_and_lists_their_weights() -> None:
    axes = Axes()
    x, weight = axes.value(2, 6, free=(1,)), axes.value(6, 2, weight=True)
    result = unknown(axes.call(torch.ops.aten.mm.default, x, weight))
    assert isinstance(result, list)
    assert all(axes.stays(result[0].axes[0]) + axes.stays(result[0].axes[1]))
    assert all(axes.stays(x.axes[1]) + axes.stays(weight.axes[0]) + axes.stays(weight.axes[1]))
    assert [kind for _, kind in axes.notes.produced] == ["unknown"]


def test_a_vector_of_channels_stands_on_the_second_axis() -> None:
    axes = Axes()
    bias = axes.value(6, weight=True)
    shaped = along_channels(bias, 4)
    assert shaped is not None
    result = meet(axes.call(torch.ops.aten.relu.default, bias), [shaped], (2, 6, 5, 5))
    assert [vector is not None for vector in result.axes] == [False, True, False, False]
    assert along_channels(None, 4) is None
