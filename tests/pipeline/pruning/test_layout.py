"""Operators that move elements: identities go where the elements go, and are tied where they must be."""

from __future__ import annotations

import torch
from support.halving import Axes, free, one, vector

from deadweight.pipeline.pruning.layout import (
    concatenation,
    gathering,
    halves,
    indexing,
    layout,
    padding,
    patches,
    shuffle,
    stack,
    unpatched,
)

aten = torch.ops.aten


def test_a_transpose_takes_the_units_along() -> None:
    axes = Axes()
    x = axes.value(2, 3, 6, free=(2,))
    y = one(layout(axes.call(aten.permute.default, x, [0, 2, 1])))
    assert free(y) == [False, True, False]
    assert axes.together(y.axes[1], x.axes[2])


def test_a_flatten_repeats_a_channel_at_each_of_its_pixels() -> None:
    axes = Axes()
    x = axes.value(2, 3, 2, 2, free=(1,))
    y = one(layout(axes.call(aten.view.default, x, [2, 12])))
    assert axes.together(y.axes[1], vector(x, 1).repeat_interleave(4))


def test_heads_and_features_that_a_view_splits_are_units_and_the_product_is_not() -> None:
    axes = Axes()
    x = axes.value(2, 6, free=(1,))
    y = one(layout(axes.call(aten.view.default, x, [2, 3, 2])))
    assert [len(vector(y, axis)) for axis in (1, 2)] == [3, 2]
    back = one(layout(axes.call(aten.view.default, y, [2, 6])))
    axes.notes.identities.unite(vector(back, 1), vector(x, 1))
    solution = axes.solve()
    assert not bool(solution.free[solution.of[vector(x, 1)]].any())
    alive = solution.alive(solution.of[vector(y, 2)[:1]])  # the first feature of all heads
    assert alive[vector(x, 1)].tolist() == alive[vector(back, 1)].tolist() == [False, True] * 3


def test_equal_pieces_stay_equal_and_unequal_ones_are_free() -> None:
    axes = Axes()
    x = axes.value(2, 6, free=(1,))
    first, second = layout(axes.call(aten.chunk.default, x, 2, 1))  # type: ignore[misc]
    assert axes.together(first.axes[1], second.axes[1])
    axes = Axes()
    x = axes.value(2, 6, free=(1,))
    layout(axes.call(aten.split_with_sizes.default, x, [2, 4], 1))
    assert len(torch.unique(axes.solve().of[vector(x, 1)])) == 6


def test_a_strided_slice_ties_the_units_of_a_period() -> None:
    axes = Axes()
    x = axes.value(2, 6, free=(1,))
    layout(axes.call(aten.slice.Tensor, x, 1, 1, 6, 2))
    assert axes.together(vector(x, 1)[::2], vector(x, 1)[1::2])


def test_a_unit_that_is_picked_out_alone_stays() -> None:
    axes = Axes()
    x = axes.value(2, 4, free=(1,))
    layout(axes.call(aten.select.int, x, 1, 2))
    assert axes.stays(x.axes[1]) == [False, False, True, False]


def test_what_is_repeated_may_be_repeated_less_often() -> None:
    axes = Axes()
    x, wide = axes.value(2, 1, 3, free=(2,)), axes.value(2, 6, 3, free=(1,))
    y = one(layout(axes.call(aten.expand.default, x, [2, 6, 3])))
    axes.notes.identities.unite(vector(y, 1), vector(wide, 1))
    assert not any(axes.stays(wide.axes[1]))
    assert axes.together(y.axes[2], x.axes[2])


def test_a_channel_shuffle_takes_whole_groups_or_one_rank_of_each() -> None:
    axes = Axes()
    x = axes.value(2, 6, 4, 4, free=(1,))
    y = one(shuffle(axes.call(aten.channel_shuffle.default, x, 3)))
    assert axes.together(y.axes[1], vector(x, 1).reshape(3, 2).T.reshape(-1))
    solution = axes.solve()
    assert len(list(solution.units(solution.of[vector(x, 1)]))) == 2


def test_a_concat_puts_units_side_by_side_and_ties_the_other_axes() -> None:
    axes = Axes()
    a, b = axes.value(2, 3, 5, free=(1, 2)), axes.value(2, 4, 5, free=(1, 2))
    y = one(concatenation(axes.call(aten.cat.default, [a, b], 1)))
    assert axes.together(y.axes[1], torch.cat([vector(a, 1), vector(b, 1)]))
    assert axes.together(y.axes[2], a.axes[2], b.axes[2])


def test_beside_a_fixed_part_of_a_concat_the_others_are_free() -> None:
    axes = Axes()
    a, fixed = axes.value(2, 3, free=(1,)), axes.value(2, 2)
    y = one(concatenation(axes.call(aten.cat.default, [a, fixed], -1)))
    assert axes.stays(y.axes[1]) == [False, False, False, True, True]


def test_along_the_new_axis_of_a_stack_nothing_goes() -> None:
    axes = Axes()
    a, b = axes.value(2, 3, free=(1,)), axes.value(2, 3, free=(1,))
    y = one(stack(axes.call(aten.stack.default, [a, b], 1)))
    assert free(y) == [False, False, True]
    assert axes.together(y.axes[2], a.axes[1], b.axes[1])


def test_a_padded_axis_is_as_wide_as_whoever_it_meets() -> None:
    axes = Axes()
    x, wide = axes.value(2, 4, 3, 3, free=(1,)), axes.value(2, 7, 3, 3, free=(1,))
    y = one(padding(axes.call(aten.constant_pad_nd.default, x, [0, 0, 0, 0, 1, 2], 0)))
    assert y.shape == (2, 7, 3, 3)
    assert torch.equal(vector(y, 1)[1:5], vector(x, 1))
    axes.notes.identities.unite(vector(y, 1), vector(wide, 1))
    assert not any(axes.stays(wide.axes[1]))


def test_an_axis_that_is_cropped_stays() -> None:
    axes = Axes()
    x = axes.value(2, 4, 3, free=(1,))
    y = one(padding(axes.call(aten.constant_pad_nd.default, x, [0, 0, -1, 0], 0)))
    assert free(y) == [False, False, False]
    assert all(axes.stays(x.axes[1]))


def test_an_index_keeps_its_own_axis_and_moves_the_others() -> None:
    axes = Axes()
    x = axes.value(5, 4, 6, free=(1, 2))
    y = one(indexing(axes.call(aten.index.Tensor, x, [None, torch.tensor([0, 3, 1])])))
    assert (y.shape, free(y)) == ((5, 3, 6), [False, False, True])
    assert all(axes.stays(x.axes[1]))
    assert axes.together(y.axes[2], x.axes[2])


def test_two_indices_apart_bring_their_new_axis_to_the_front() -> None:
    axes = Axes()
    x = axes.value(5, 4, 6, 3, free=(0, 2))
    places = torch.tensor([0, 2])
    y = one(indexing(axes.call(aten.index.Tensor, x, [None, places, None, places])))
    assert (y.shape, free(y)) == ((2, 5, 6), [False, True, True])
    assert axes.together(y.axes[1], x.axes[0])


def test_index_select_and_gather_keep_the_axis_that_values_choose() -> None:
    axes = Axes()
    x = axes.value(2, 4, 6, free=(1, 2))
    y = one(gathering(axes.call(aten.index_select.default, x, 1, torch.tensor([1, 1]))))
    assert free(y) == [False, False, True]
    assert all(axes.stays(x.axes[1]))
    axes = Axes()
    x, index = axes.value(2, 4, 6, free=(1, 2)), axes.value(2, 4, 3, free=(1,))
    y = one(gathering(axes.call(aten.gather.default, x, 2, index, shape=(2, 4, 3))))
    assert axes.together(y.axes[1], x.axes[1], index.axes[1])
    assert all(axes.stays(x.axes[2]))


def test_a_gate_and_what_it_gates_go_in_pairs() -> None:
    axes = Axes()
    x = axes.value(2, 8, free=(1,))
    y = one(halves(axes.call(aten.glu.default, x, 1)))
    first, second = vector(x, 1).chunk(2)
    assert axes.together(y.axes[1], first, second)


def test_the_pixels_of_a_patch_are_one_channel_there_and_back() -> None:
    axes = Axes()
    x = axes.value(2, 3, 4, 4, free=(1,))
    columns = one(patches(axes.call(aten.im2col.default, x, [2, 2], [1, 1], [0, 0], [2, 2])))
    assert axes.together(columns.axes[1], vector(x, 1).repeat_interleave(4))
    axes = Axes()
    loose = axes.value(2, 12, 4, free=(1,))
    y = one(unpatched(axes.call(aten.col2im.default, loose, [4, 4], [2, 2], [1, 1], [0, 0], [2, 2])))
    assert axes.together(vector(y, 1).repeat_interleave(4), loose.axes[1])
