"""Operators that mix units: what is summed over goes with the weight's columns, out come its rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.halving import Axes, free, one, vector

from deadweight.pipeline.pruning.calls import Tracked
from deadweight.pipeline.pruning.mixing import (
    attention,
    cell,
    convolution,
    einsum,
    embedding,
    linear,
    matmul,
    recurrent,
)

aten = torch.ops.aten


def kinds(axes: Axes) -> list[str]:
    return [kind for _, kind in axes.notes.produced]


def test_a_linear_layer_reads_columns_and_makes_rows_with_their_bias() -> None:
    axes = Axes()
    x, weight, bias = (
        axes.value(2, 3, 6, free=(1, 2)),
        axes.value(4, 6, weight=True),
        axes.value(4, weight=True),
    )
    y = one(linear(axes.call(aten.linear.default, x, weight, bias)))
    assert axes.together(x.axes[2], weight.axes[1])
    assert axes.together(y.axes[2], weight.axes[0], bias.axes[0])
    assert axes.together(y.axes[1], x.axes[1])  # tokens pass
    assert kinds(axes) == ["linear"]
    assert list(axes.notes.reads) == [x.node]


def test_a_convolution_reads_columns_and_keeps_places_and_kernel() -> None:
    axes = Axes()
    x, weight = axes.value(2, 6, 5, 5, free=(1, 2)), axes.value(4, 6, 3, 3, weight=True)
    y = one(convolution(axes.call(aten.conv2d.default, x, weight)))
    assert axes.together(x.axes[1], weight.axes[1])
    assert axes.together(y.axes[1], weight.axes[0])
    assert free(y) == [False, True, False, False]
    assert all(axes.stays(x.axes[2]) + axes.stays(weight.axes[2]) + axes.stays(weight.axes[3]))


def test_rows_and_columns_of_a_transposed_convolution_change_places() -> None:
    axes = Axes()
    x, weight, bias = (
        axes.value(2, 6, 5, free=(1,)),
        axes.value(6, 4, 2, weight=True),
        axes.value(4, weight=True),
    )
    y = one(convolution(axes.call(aten.conv_transpose1d.default, x, weight, bias, [2])))
    assert axes.together(x.axes[1], weight.axes[0])
    assert axes.together(y.axes[1], weight.axes[1], bias.axes[0])


def test_a_depthwise_convolution_passes_each_channel_on() -> None:
    axes = Axes()
    x, weight = axes.value(2, 6, 5, 5, free=(1,)), axes.value(6, 1, 3, 3, weight=True)
    y = one(convolution(axes.call(aten.conv2d.default, x, weight, None, [1, 1], [1, 1], [1, 1], 6)))
    assert axes.together(x.axes[1], weight.axes[0], y.axes[1])
    assert kinds(axes) == ["depthwise"]


def test_a_grouped_convolution_reads_the_same_rank_in_each_group() -> None:
    axes = Axes()
    x, weight = axes.value(2, 6, 5, free=(1,)), axes.value(9, 2, 1, weight=True)
    convolution(axes.call(aten.conv1d.default, x, weight, None, [1], [0], [1], 3))
    solution = axes.solve()
    rank = solution.of[vector(weight, 1)[:1]]
    assert solution.alive(rank)[vector(x, 1)].tolist() == [False, True] * 3
    (group, *_) = [
        units for _, units in solution.units(solution.of[vector(x, 1)]) if len(torch.unique(units)) == 3
    ]
    alive = solution.alive(group[:1])
    assert alive[vector(x, 1)].tolist() == [False] * 2 + [True] * 4
    assert alive[vector(weight, 0)].tolist() == [False] * 3 + [True] * 6


def test_the_groups_of_a_transposed_convolution_make_groups() -> None:
    axes = Axes()
    x, weight = axes.value(2, 6, 5, free=(1,)), axes.value(6, 2, 2, weight=True)
    call = axes.call(aten.conv_transpose1d.default, x, weight, None, [2], [0], [0], 3)
    y = one(convolution(call))
    assert y.shape == (2, 6, 10)
    solution = axes.solve()
    dead = solution.of[vector(weight, 1)[:1]]  # the first channel that each group makes
    assert solution.alive(dead)[vector(y, 1)].tolist() == [False, True] * 3
    assert solution.alive(dead)[vector(x, 1)].all()
    blocks = [
        units for _, units in solution.units(solution.of[vector(y, 1)]) if len(torch.unique(units)) == 3
    ]
    dead = blocks[0][:1]  # the first group
    assert solution.alive(dead)[vector(y, 1)].tolist() == [False] * 2 + [True] * 4
    assert solution.alive(dead)[vector(x, 1)].tolist() == [False] * 2 + [True] * 4


@pytest.mark.parametrize("batched", [False, True])
def test_a_product_of_activations_reads_both_and_makes_no_units(batched: bool) -> None:
    axes = Axes()
    lead = (3,) if batched else ()
    at = len(lead)
    a, b = axes.value(*lead, 4, 6, free=(at, at + 1)), axes.value(*lead, 6, 5, free=(at, at + 1))
    y = one(matmul(axes.call(aten.matmul.default, a, b)))
    assert axes.together(a.axes[at + 1], b.axes[at])
    assert axes.together(y.axes[at], a.axes[at])
    assert axes.together(y.axes[at + 1], b.axes[at + 1])
    assert set(axes.notes.reads) == {a.node, b.node}
    assert kinds(axes) == []


def test_a_product_with_a_weight_makes_its_columns() -> None:
    axes = Axes()
    x, weight = axes.value(2, 6, free=(1,)), axes.value(6, 4, weight=True)
    matmul(axes.call(aten.mm.default, x, weight))
    ((rows, kind),) = axes.notes.produced
    assert (rows is weight.axes[1], kind) == (True, "linear")


def test_what_is_added_to_a_product_goes_with_its_columns() -> None:
    axes = Axes()
    x, weight, bias = axes.value(2, 6, free=(1,)), axes.value(6, 4, weight=True), axes.value(4, weight=True)
    y = one(matmul(axes.call(aten.addmm.default, bias, x, weight)))
    assert axes.together(y.axes[1], weight.axes[1], bias.axes[0])
    axes = Axes()
    a, b, c = (axes.value(3, *shape, free=(1, 2)) for shape in ((2, 4), (2, 6), (6, 4)))
    y = one(matmul(axes.call(aten.baddbmm.default, a, b, c)))
    assert axes.together(y.axes[1], a.axes[1], b.axes[1])
    assert axes.together(y.axes[2], a.axes[2], c.axes[2])


def attend(heads: int, shared: int) -> tuple[Axes, list[Tracked], Tracked]:
    axes = Axes()
    q = axes.value(2, heads, 5, 6, free=(1, 2, 3))
    k, v = axes.value(2, shared, 5, 6, free=(1, 2, 3)), axes.value(2, shared, 5, 8, free=(1, 2, 3))
    call = axes.call(aten.scaled_dot_product_attention.default, q, k, v, shape=(2, heads, 5, 8))
    result = attention(call)
    assert isinstance(result, list)
    return axes, [q, k, v], result[0]


def test_attention_ties_queries_to_keys_and_makes_the_features_of_values() -> None:
    axes, (q, k, v), out = attend(4, 4)
    assert axes.together(q.axes[3], k.axes[3])
    assert axes.together(out.axes[3], v.axes[3])
    assert axes.together(out.axes[1], q.axes[1], k.axes[1], v.axes[1])
    assert all(axes.stays(q.axes[2]) + axes.stays(k.axes[2]) + axes.stays(v.axes[2]))


def test_heads_that_share_keys_go_with_them() -> None:
    axes, (q, k, v), _ = attend(4, 2)
    assert axes.together(q.axes[1], vector(k, 1).repeat_interleave(2), vector(v, 1).repeat_interleave(2))
    axes, (q, _, _), _ = attend(4, 1)
    assert len(torch.unique(axes.solve().of[vector(q, 1)])) == 4


def test_the_rows_of_an_embedding_stay_and_its_columns_are_units() -> None:
    axes = Axes()
    weight = axes.value(9, 6, weight=True)
    y = one(embedding(axes.call(aten.embedding.default, weight, torch.zeros(2, 3, dtype=torch.long))))
    assert all(axes.stays(weight.axes[0]))
    assert axes.together(y.axes[2], weight.axes[1])
    assert kinds(axes) == ["embedding"]


def test_a_letter_of_an_einsum_is_one_axis_wherever_it_stands() -> None:
    axes = Axes()
    x, weight = axes.value(2, 5, 6, free=(1, 2)), axes.value(6, 4, weight=True)
    y = one(einsum(axes.call(aten.einsum.default, "bnd,de->ben", [x, weight])))
    assert axes.together(x.axes[2], weight.axes[0])
    assert axes.together(y.axes[1], weight.axes[1])
    assert axes.together(y.axes[2], x.axes[1])
    assert kinds(axes) == ["linear"]


def test_an_einsum_that_is_not_spelt_out_is_read_as_torch_reads_it() -> None:
    for equation, columns in (("...d,de->...e", 3), ("de...,...bd->b...e", 3), ("bnd,de", 1)):
        axes = Axes()
        x, weight = axes.value(2, 5, 6, free=(1, 2)), axes.value(6, 4, weight=True)
        if equation.startswith("de"):
            x = axes.value(7, 5, 2, 6, free=(1, 3))
            y = one(einsum(axes.call(aten.einsum.default, equation, [weight, x])))
        else:
            y = one(einsum(axes.call(aten.einsum.default, equation, [x, weight])))
        assert axes.together(x.axes[-1], weight.axes[0])
        assert axes.together(y.axes[1 if columns == 1 else -1], weight.axes[1])
        assert axes.together(y.axes[-1 if columns == 1 else -2], x.axes[1])


def test_an_einsum_with_a_diagonal_keeps_its_operands() -> None:
    axes = Axes()
    x, weight = axes.value(2, 6, 6, free=(2,)), axes.value(6, 4, weight=True)
    einsum(axes.call(aten.einsum.default, "bdd,de->be", [x, weight]))
    assert all(axes.stays(x.axes[2]) + axes.stays(weight.axes[0]) + axes.stays(weight.axes[1]))


def weights_of(axes: Axes, gates: int, inputs: int, units: int) -> list[Tracked]:
    shapes = [(gates * units, inputs), (gates * units, units), (gates * units,), (gates * units,)]
    return [axes.value(*shape, weight=True) for shape in shapes]


@pytest.mark.parametrize(("operator", "gates"), [(aten.lstm.input, 4), (aten.gru.input, 3)])
def test_a_unit_of_a_recurrent_layer_is_a_row_of_each_gate_and_a_state(operator: Any, gates: int) -> None:
    axes = Axes()
    x, weights = axes.value(2, 7, 6, free=(2,)), weights_of(axes, gates, 6, 5)
    state = axes.value(1, 2, 5, free=(2,))
    states = [state, state] if gates == 4 else state
    call = axes.call(operator, x, states, weights, True, 1, 0.0, False, False, True)
    result = recurrent(call)
    assert isinstance(result, list)
    for gate in vector(weights[0], 0).chunk(gates):
        assert axes.together(gate, weights[1].axes[1], result[0].axes[2], result[1].axes[2], state.axes[2])
    assert axes.together(x.axes[2], weights[0].axes[1])
    assert set(kinds(axes)) == {"recurrent"}


def test_both_directions_are_read_side_by_side_by_the_layer_above() -> None:
    axes = Axes()
    x = axes.value(2, 7, 6, free=(2,))
    below = [weights_of(axes, 3, 6, 5) for _ in range(2)]
    above = [weights_of(axes, 3, 10, 5) for _ in range(2)]
    flat = [weight for one_way in (*below, *above) for weight in one_way]
    call = axes.call(aten.gru.input, x, axes.value(4, 2, 5), flat, True, 2, 0.0, False, True, True)
    recurrent(call)
    both = torch.cat([vector(one_way[1], 1) for one_way in below])
    assert axes.together(above[0][0].axes[1], above[1][0].axes[1], both)


def test_a_projection_makes_what_a_recurrent_layer_returns_and_reads_its_units() -> None:
    axes = Axes()
    x, states = (
        axes.value(2, 7, 6, free=(2,)),
        [axes.value(1, 2, 3, free=(2,)), axes.value(1, 2, 5, free=(2,))],
    )
    inward, _, *biases = weights_of(axes, 4, 6, 5)
    recur, project = axes.value(20, 3, weight=True), axes.value(3, 5, weight=True)
    settings = (True, 1, 0.0, False, False, True)
    weights = [inward, recur, *biases, project]
    result = recurrent(axes.call(aten.lstm.input, x, states, weights, *settings))
    assert isinstance(result, list)
    assert axes.together(project.axes[1], states[1].axes[2], result[2].axes[2], *vector(recur, 0).chunk(4))
    assert axes.together(
        project.axes[0], recur.axes[1], states[0].axes[2], result[0].axes[2], result[1].axes[2]
    )
    assert len(torch.unique(axes.solve().of[torch.cat([vector(project, 0), vector(project, 1)])])) == 8


def test_one_step_of_a_cell_ties_the_state_before_and_after() -> None:
    axes = Axes()
    x, state, weights = axes.value(2, 6, free=(1,)), axes.value(2, 5, free=(1,)), weights_of(axes, 3, 6, 5)
    result = cell(axes.call(aten.gru_cell.default, x, state, *weights))
    assert isinstance(result, list)
    assert axes.together(result[0].axes[1], state.axes[1], weights[1].axes[1])
    assert state.node in axes.notes.reads
