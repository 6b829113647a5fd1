"""The lower bound against every order there is, on graphs small enough to try them all."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import pytest

from deadweight.export.memory.bounds import Kernel, least_bytes


def orders(kernels: Sequence[Kernel]) -> list[list[Kernel]]:
    """Every order in which the kernels can run."""
    makers = {value: at for at, kernel in enumerate(kernels) for value in kernel.writes}
    found = []
    for order in itertools.permutations(range(len(kernels))):
        place = {at: position for position, at in enumerate(order)}
        if all(
            place[makers[value]] < place[at]
            for at, kernel in enumerate(kernels)
            for value, _ in kernel.reads
            if value in makers
        ):
            found.append([kernels[at] for at in order])
    return found


def peak(sizes: Sequence[int], order: Sequence[Kernel], kept: frozenset[int], *, fused: bool) -> int:
    """The most that is alive at once; with `fused`, sums cost nothing and write over an input that dies."""
    made = {value for kernel in order for value in kernel.writes}
    last = {value: at for at, kernel in enumerate(order) for value, _ in kernel.reads}
    alive: dict[int, int] = {}
    most = 0
    for at, kernel in enumerate(order):
        dying = [v for v, _ in kernel.reads if last[v] == at and v in alive and v not in kept]
        over = fused and kernel.sum and bool(dying)
        if over:
            alive.pop(dying.pop())
        for value in kernel.writes:
            alive[value] = sizes[value]
        most = max(most, sum(alive.values()))
        for value in dying:
            alive.pop(value, None)
        for value in kernel.writes:
            if value not in last and value not in kept:
                alive.pop(value)
    assert made >= set(alive)
    return most


def conv(name: str, reads: Sequence[int], writes: int, sizes: Sequence[int]) -> Kernel:
    return Kernel(name, tuple((value, sizes[value]) for value in reads), (writes,))


def added(name: str, reads: Sequence[int], writes: int, sizes: Sequence[int]) -> Kernel:
    return Kernel(name, tuple((value, sizes[value]) for value in reads), (writes,), whole=False, sum=True)


def random_graph(seed: int) -> tuple[list[int], list[Kernel], frozenset[int]]:
    """Up to seven kernels on values of random sizes; value 0 is the caller's. Sums join equal sizes."""
    draw = random.Random(seed)
    sizes, kernels = [0], []
    for step in range(draw.randint(3, 7)):
        alike = [
            pair
            for pair in itertools.combinations(range(1, len(sizes)), 2)
            if sizes[pair[0]] == sizes[pair[1]]
        ]
        number = len(sizes)
        if alike and draw.random() < 0.4:
            first, second = draw.choice(alike)
            sizes.append(sizes[first])
            kernels.append(added(f"sum{step}", (first, second), number, sizes))
        else:
            sizes.append(draw.choice((1, 2, 2, 4)))
            reads = draw.sample(range(number), k=min(number, draw.choice((1, 1, 2))))
            kernels.append(conv(f"conv{step}", reads, number, sizes))
    read = {value for kernel in kernels for value, _ in kernel.reads}
    return sizes, kernels, frozenset(set(range(1, len(sizes))) - read)


@pytest.mark.parametrize("seed", range(150))
def test_no_order_needs_less_even_if_sums_are_written_over_their_inputs(seed: int) -> None:
    sizes, kernels, kept = random_graph(seed)
    bound = least_bytes(sizes, kernels, kept).bytes
    assert bound <= min(peak(sizes, order, kept, fused=True) for order in orders(kernels))


@pytest.mark.parametrize("seed", range(20))
def test_the_bound_is_exact_beyond_32_bits(seed: int) -> None:
    sizes, kernels, kept = random_graph(seed)
    scale = (3 << 31) + 1
    large = [
        Kernel(k.name, tuple((value, scale * size) for value, size in k.reads), k.writes, k.whole, k.sum)
        for k in kernels
    ]
    bound = least_bytes([scale * size for size in sizes], large, kept).bytes
    assert bound == scale * least_bytes(sizes, kernels, kept).bytes


def test_a_chain_needs_its_widest_neighbours() -> None:
    sizes = [0, 3, 5, 2]
    kernels = [conv(f"c{at}", [at], at + 1, sizes) for at in range(3)]
    assert least_bytes(sizes, kernels, frozenset({3})).bytes == 8
    assert least_bytes(sizes, kernels, frozenset({3})).kernel == "c1"


def test_a_short_cut_lives_across_the_layers_that_it_skips() -> None:
    sizes = [0, 4, 7, 4, 4]
    kernels = [
        *(conv(f"c{at}", [at], at + 1, sizes) for at in range(3)),
        added("sum", (1, 3), 4, sizes),
    ]
    # At c1 the short cut is what c1 reads; at c2 it lies beside 7, and the sum is written over it.
    assert least_bytes(sizes, kernels, frozenset({4})).bytes == 11


def test_of_branches_the_last_one_runs_beside_the_results_of_the_others() -> None:
    sizes = [0, 5, 2, 2, 2, 6]
    kernels = [
        conv("stem", [0], 1, sizes),
        *(conv(f"b{at}", [1], at + 2, sizes) for at in range(3)),
        conv("join", [2, 3, 4], 5, sizes),
    ]
    assert least_bytes(sizes, kernels, frozenset({5})).bytes == 12
    without = [*kernels[:-1], Kernel("join", kernels[-1].reads, (5,), whole=False)]
    assert (
        least_bytes([*sizes[:5], 0], without, frozenset({5})).bytes == 5 + 2 + 2
    )  # the last may be joined as it is made


def test_what_may_be_done_on_the_way_needs_nothing() -> None:
    sizes = [0, 8, 1]
    conv_only = conv("c", [0], 1, sizes)
    tail = Kernel("slice", ((1, 8),), (2,), whole=False)
    assert least_bytes([0, 8, 0], [conv_only, tail], frozenset({2})).bytes == 0
