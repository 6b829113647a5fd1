from __future__ import annotations

import itertools
import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from deadweight.pipeline.compression.rank_selection import (
    COARSE,
    Candidate,
    Choice,
    between,
    last_within,
    way_down,
)
from deadweight.targets.target import load_target

TARGET = load_target("x86-cpu")


def candidate(method: str, *shape: int, place: int = 6) -> Candidate:
    weight = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    if method == "svd":
        shapes: tuple[tuple[int, ...], ...] = ((1, shape[1]), (1, shape[0]))
    else:
        shapes = ((1, shape[1], place, place), (1, shape[0], place, place))
    return Candidate.of("layer", method, weight, [shapes], TARGET)


def test_the_ranks_that_keep_an_energy_are_the_least_that_do() -> None:
    one = candidate("svd", 40, 30)
    for energy in (0.2, 0.5, 0.9, 1.0):
        choice = one.keeping(energy)
        rank = choice.ranks[0]
        assert choice.energy >= energy - 1e-9
        assert rank == 1 or float(one.energies[rank - 2]) < energy


def test_of_the_pairs_of_ranks_that_keep_an_energy_the_cheapest_is_taken() -> None:
    one = candidate("tucker", 5, 3, 3, 3)
    every = [one.at((a, b)) for a in (1, 2, 3) for b in (1, 2, 3, 4, 5)]
    for energy in (0.3, 0.6, 0.9):
        # No step of the target is as small as this layer's ranks, so none is rounded.
        least = min(choice.cost for choice in every if choice.energy >= energy)
        rounded = one.keeping(energy)
        assert rounded.energy >= energy
        assert rounded.cost >= least


def test_ranks_are_rounded_up_to_what_the_target_likes() -> None:
    one = candidate("channel", 64, 64, 3, 3)
    assert all(choice.ranks[0] % 16 == 0 for choice in one.choices())
    assert one.keeping(0.5).ranks[0] % 16 == 0
    assert candidate("svd", 100, 100).choices()[0].ranks == (48,)  # batch 1: any width is fine


def test_every_choice_costs_less_than_the_whole_layer_and_the_highest_rank_is_first() -> None:
    for one in (
        candidate("svd", 100, 80),
        candidate("spatial", 64, 32, 3, 3),
        candidate("tucker", 64, 64, 3, 3),
    ):
        choices = one.choices()
        assert choices
        assert all(choice.cost < one.macs for choice in choices)
        assert choices == sorted(choices, key=lambda choice: -choice.cost)


def test_a_layer_that_is_thin_already_has_no_choices() -> None:
    assert candidate("svd", 2, 1).choices() == []
    assert candidate("spatial", 16, 1, 3, 3).choices() == []  # one input channel: nothing is to be had


def test_the_way_down_takes_what_loses_least_for_what_it_saves() -> None:
    whole = {"good": 100.0, "bad": 100.0}
    choices = {
        "good": [Choice((8,), 0.99, 60.0), Choice((4,), 0.9, 30.0)],
        "bad": [Choice((8,), 0.5, 60.0)],
    }
    way = way_down(whole, choices)
    assert [{name: choice.ranks for name, choice in step.items()} for step in way] == [
        {},
        {"good": (8,)},
        {"good": (4,)},
        {"good": (4,), "bad": (8,)},
    ]


def test_a_choice_that_costs_more_than_the_whole_layer_is_never_taken() -> None:
    assert way_down({"a": 10.0}, {"a": [Choice((8,), 0.99, 11.0), Choice((9,), 1.0, 10.0)]}) == [{}]


COSTS = st.integers(1000, 100_000).map(lambda thousandths: thousandths / 1000)  # distinguishable in any sum


@given(st.lists(st.lists(st.tuples(st.floats(0, 1), COSTS), max_size=5), max_size=4))
def test_on_the_way_down_cost_and_energy_only_fall(layers: list[list[tuple[float, float]]]) -> None:
    choices = {str(at): [Choice((1,), *pair) for pair in own] for at, own in enumerate(layers)}
    whole = dict.fromkeys(choices, 50.0)
    way = way_down(whole, choices)
    costs = [sum(step[name].cost if name in step else 50.0 for name in choices) for step in way]
    assert all(after < before for before, after in itertools.pairwise(costs))
    energies = [math.prod(choice.energy for choice in step.values()) for step in way]
    assert all(after <= before for before, after in itertools.pairwise(energies))


def test_a_step_of_the_way_is_taken_as_many_small_ones() -> None:
    found = {"a": candidate("svd", 100, 80), "b": candidate("svd", 90, 80)}
    coarse = {name: one.choices(COARSE) for name, one in found.items()}
    way = way_down({name: float(one.macs) for name, one in found.items()}, coarse)
    for before, after in itertools.pairwise(way):
        fine = between(before, after, found)
        assert (fine[0], fine[-1]) == (before, after)
        name = next(name for name in after if before.get(name) != after[name])
        ranks = [step[name].ranks for step in fine if name in step]
        assert ranks == sorted(set(ranks), reverse=True)
        assert all({**step, name: None} == {**after, name: None} for step in fine)
    assert len(between(way[0], way[1], found)) > 2


@given(st.integers(1, 50), st.integers(0, 60))
def test_halving_finds_the_last_place_within_a_goal(count: int, last: int) -> None:
    asked: list[int] = []

    def within(at: int) -> bool:
        asked.append(at)
        return at <= last

    assert last_within(count, within) == min(last, count - 1)
    assert len(asked) <= count.bit_length()
