"""The plan of one order, on graphs where the best plan is seen at a glance."""

from __future__ import annotations

import random

from deadweight.export.memory.bounds import GRAIN, Kernel, depth_first, least_bytes, planned_bytes


def chain(*sizes: int) -> list[Kernel]:
    return [Kernel(f"k{at}", ((at, sizes[at]),) if at else (), (at + 1,)) for at in range(len(sizes) - 1)]


def test_a_chain_takes_its_two_widest_neighbours() -> None:
    sizes = [0, 4 * GRAIN, 2 * GRAIN, 3 * GRAIN, GRAIN]
    assert planned_bytes(sizes, chain(*sizes), frozenset()) == 6 * GRAIN


def test_sizes_are_rounded_up_to_whole_grains() -> None:
    assert planned_bytes([0, 1], [Kernel("k", (), (1,))], frozenset()) == GRAIN


def test_what_is_kept_lies_beside_the_block_and_what_is_held_costs_nothing() -> None:
    sizes = [5 * GRAIN, 4 * GRAIN, 2 * GRAIN]
    kernels = [Kernel("a", ((0, 0),), (1,)), Kernel("b", ((1, 0),), (2,))]
    assert planned_bytes(sizes, kernels, frozenset({2}), held=frozenset({0})) == 6 * GRAIN


def test_a_dead_buffer_of_the_same_form_is_taken_over_and_one_of_another_form_is_not() -> None:
    sizes = [2 * GRAIN] * 5
    kernels = [Kernel(str(at), ((at - 1, 0),) if at else (), (at,)) for at in range(5)]
    assert planned_bytes(sizes, kernels, frozenset()) == 4 * GRAIN
    forms = list(range(5))
    assert (
        planned_bytes(sizes, kernels, frozenset(), forms=forms) == 4 * GRAIN
    )  # gaps are filled all the same


def test_later_branches_run_first_depth_first() -> None:
    kernels = [
        Kernel("stem", (), (0,)),
        Kernel("left", ((0, 0),), (1,)),
        Kernel("right", ((0, 0),), (2,)),
        Kernel("join", ((1, 0), (2, 0)), (3,)),
    ]
    assert [kernel.name for kernel in depth_first(kernels)] == ["stem", "right", "left", "join"]


def test_no_plan_is_below_the_lower_bound() -> None:
    for seed in range(60):
        draw = random.Random(seed)
        sizes = [draw.randint(1, 9) * GRAIN for _ in range(12)]
        kernels = [
            Kernel(str(at), tuple((v, sizes[v]) for v in draw.sample(range(at), k=min(at, 2))), (at,))
            for at in range(12)
        ]
        read = {value for kernel in kernels for value, _ in kernel.reads}
        kept = frozenset(set(range(12)) - read)
        low = least_bytes(sizes, kernels, kept).bytes
        for order in (kernels, depth_first(kernels)):
            assert sorted(kernel.name for kernel in order) == sorted(kernel.name for kernel in kernels)
            assert planned_bytes(sizes, order, kept) >= low
