"""What follows from few facts: who is one with whom, who is made of whom, who stays."""

from __future__ import annotations

import torch
from torch import Tensor

from deadweight.pipeline.pruning.identities import Cause, Identities, Solution

CAUSE = Cause("output", "net.py:3", "it is an output")


def units(solution: Solution, vector: Tensor) -> list[Tensor]:
    return [found for _, found in solution.units(solution.of[vector])]


def test_chains_of_pairs_are_one_class() -> None:
    known = Identities()
    a, b, c = known.fresh(4), known.fresh(4), known.fresh(4)
    known.unite(b, c)
    known.unite(c.flip(0), a)
    solution = known.solve()
    assert torch.equal(solution.of[b], solution.of[a.flip(0)])
    assert len(torch.unique(solution.of)) == 4


def test_a_long_chain_is_found_whole() -> None:
    known = Identities()
    a = known.fresh(1000)
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(0))
    known.unite(a[order[:-1]], a[order[1:]])
    assert len(torch.unique(known.solve().of)) == 1


def test_what_is_frozen_keeps_all_it_is_one_with_and_remembers_the_first_cause() -> None:
    known = Identities()
    a, b = known.fresh(3), known.fresh(3)
    known.unite(a, b)
    known.freeze(b[1:2], CAUSE)
    known.freeze(a[1:2], Cause("later", "", ""))
    solution = known.solve()
    assert solution.free[solution.of[a]].tolist() == [True, False, True]
    assert solution.causes[int(solution.of[a[1]])] == CAUSE


def test_a_split_axis_is_heads_times_features() -> None:
    known = Identities()
    whole = known.fresh(12)
    parts = known.factor(whole.reshape(3, 4))
    solution = known.solve()
    heads, features = units(solution, whole)
    assert torch.equal(heads, solution.of[parts[0]].repeat_interleave(4))
    assert torch.equal(features, solution.of[parts[1]].repeat(3))
    alive = solution.alive(torch.tensor([int(heads[0]), int(features[1])]))
    assert alive[whole].reshape(3, 4).int().tolist() == [[0, 0, 0, 0], [1, 0, 1, 1], [1, 0, 1, 1]]


def test_what_was_split_and_merged_is_itself() -> None:
    known = Identities()
    whole, column = known.fresh(12), known.fresh(12)
    parts = known.factor(whole.reshape(3, 4))
    merged = known.fuse([parts[0].repeat_interleave(4), parts[1].repeat(3)])
    known.unite(merged, column)
    again = known.factor(merged.reshape(3, 4))
    solution = known.solve()
    assert torch.equal(solution.of[again[0]], solution.of[parts[0]])
    alive = solution.alive(solution.of[parts[1][:1]])
    assert torch.equal(alive[whole], alive[column])


def test_a_frozen_element_of_a_grid_keeps_its_row_and_its_column() -> None:
    known = Identities()
    whole = known.fresh(6)
    parts = known.factor(whole.reshape(2, 3))
    known.freeze(whole[:1], CAUSE)
    solution = known.solve()
    assert solution.free[solution.of[parts[0]]].tolist() == [False, True]
    assert solution.free[solution.of[parts[1]]].tolist() == [False, True, True]


def test_where_one_factor_is_frozen_the_other_is_the_unit() -> None:
    known = Identities()
    whole = known.fresh(6)
    parts = known.factor(whole.reshape(2, 3))
    known.freeze(parts[0], CAUSE)
    solution = known.solve()
    assert torch.equal(solution.of[whole.reshape(2, 3)], solution.of[parts[1]].expand(2, 3))


def test_groupings_that_do_not_nest_leave_only_what_fits_both() -> None:
    known = Identities()
    whole = known.fresh(36)
    known.factor(whole.reshape(3, 12))  # three groups, then shuffled, then three groups again
    shuffled = whole.reshape(3, 12).T.reshape(-1)
    known.factor(shuffled.reshape(3, 12))
    solution = known.solve()
    free = torch.unique(solution.of[whole][solution.free[solution.of[whole]]])
    assert len(free) == 4
    for unit in free.tolist():
        alive = solution.alive(torch.tensor([unit]))
        for grid in (alive[whole].reshape(3, 12), alive[shuffled].reshape(3, 12)):
            assert grid.sum(1).tolist() == [9, 9, 9]


def test_an_axis_along_which_nothing_changes_has_no_units() -> None:
    known = Identities()
    assert set(known.factor(known.fresh(2).reshape(2, 1).expand(2, 3))) == {0}


def test_where_nothing_but_all_or_none_is_rectangular_all_go_together() -> None:
    known = Identities()
    pair = known.fresh(2)
    rows = known.factor(torch.stack([pair, pair.flip(0)]))[0]  # a b / b a
    solution = known.solve()
    assert solution.alive(solution.of[rows[:1]])[pair].tolist() == [False, False]
