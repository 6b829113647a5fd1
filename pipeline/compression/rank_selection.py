"""Rank selection for low-rank factorization: the ranks to choose from, their cost and energy, a greedy path.

A layer is full, or factorized at one of several ranks. The path starts with all layers full; each step lowers
the rank of the layer that loses the least energy for what it saves (the greedy selection of Zhang et al.
2015, section 2.4, on the weights' energy). Cost is multiply-adds, or seconds where they were measured; ranks
that cost more than the full layer are left out. A goal (a score, a speed) is met by a search along the path.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from ...targets.target import Alignment, Target
from ..pruning.factors import METHODS, Parts, cut, energies, full_ranks

COARSE = (0.75, 0.5, 0.375, 0.25, 0.125, 0.0625)
FINE = tuple(step / 32 for step in range(31, 0, -1))
"""Ranks to try, as shares of the rank at which the factors cost as much as the full layer: few where each is
timed, many where costs are counted."""
_NEXT_TO_NONE = 1e-12


@dataclass(frozen=True)
class Choice:
    """Ranks for one layer: the share of `energy` they keep, 0 to 1, and their `cost`."""

    ranks: tuple[int, ...]
    energy: float
    cost: float


Chosen = Mapping[str, Choice]
"""By layer, for the layers that are factorized."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """A layer that can be factorized.

    Attributes:
        parts: its low-rank layers at full rank.
        energies: see `factors.energies`.
        positions: for each low-rank layer, how many positions it computes per sample; `whole` for the layer.
        align: the alignment of ranks on the target.
    """

    name: str
    method: str
    parts: Parts
    energies: Tensor
    size: int
    whole: int
    positions: tuple[int, ...]
    align: Alignment

    @classmethod
    def of(
        cls, name: str, method: str, weight: Tensor, shapes: Sequence[tuple[tuple[int, ...], ...]], to: Target
    ) -> Candidate:
        parts = METHODS[method](weight.detach().cpu())
        rows = [_positions(method, given, made) for given, made in shapes]
        positions = tuple(sum(each) for each in zip(*rows, strict=True))
        whole = sum(_places(made, method) for _, made in shapes)
        kind = "conv" if method != "svd" else "linear" if whole == 1 else "matmul"
        return cls(name, method, parts, energies(parts), weight.numel(), whole, positions, to.align(kind))

    @property
    def macs(self) -> int:
        """Multiply-adds of the full layer per sample."""
        return self.size * self.whole

    def at(self, ranks: tuple[int, ...]) -> Choice:
        """These ranks; the cost is their multiply-adds."""
        sizes = [part.numel() for part in cut(self.parts, ranks)]
        cost = sum(size * places for size, places in zip(sizes, self.positions, strict=True))
        energy = float(self.energies[tuple(rank - 1 for rank in ranks)])
        return Choice(ranks, min(energy, 1.0), float(cost))

    def keeping(self, energy: float) -> Choice:
        """The cheapest ranks that keep this share of the energy, rounded up to the target's alignment."""
        enough = self.energies >= min(energy, float(self.energies.flatten()[-1])) - 1e-12
        if enough.dim() == 1:
            return self.at(self._rounded((int(enough.int().argmax()) + 1,)))
        rows = [row for row in range(len(enough)) if bool(enough[row].any())]
        tried = [self.at(self._rounded((row + 1, int(enough[row].int().argmax()) + 1))) for row in rows]
        return min(tried, key=lambda choice: choice.cost)

    def choices(self, shares: Sequence[float] = FINE) -> list[Choice]:
        """Ranks to try, the highest first; all cost less than the full layer."""
        most, even = full_ranks(self.parts), self._share_at_even()
        wanted = [tuple(max(1, math.floor(even * share * top)) for top in most) for share in shares]
        found = [self.at(ranks) for ranks in dict.fromkeys(self._rounded(ranks) for ranks in wanted)]
        return [choice for choice in found if choice.cost < self.macs]

    def _share_at_even(self) -> float:
        """The share of full rank at which the factors cost as much as the full layer, at most 1."""
        most, low, high = full_ranks(self.parts), 0.0, 1.0
        for _ in range(20):
            middle = (low + high) / 2
            ranks = tuple(max(1, round(middle * top)) for top in most)
            low, high = (middle, high) if self.at(ranks).cost <= self.macs else (low, middle)
        return high

    def _rounded(self, ranks: Sequence[int]) -> tuple[int, ...]:
        most = full_ranks(self.parts)
        return tuple(self.align.rounded(rank, width=top) for rank, top in zip(ranks, most, strict=True))


def way_down(whole: Mapping[str, float], choices: Mapping[str, Sequence[Choice]]) -> list[dict[str, Choice]]:
    """The choices at each step of the greedy path, from all layers full to all at their lowest rank.

    Args:
        whole: by layer, its cost at full rank.
        choices: by layer, its choices; those that cost more than the full layer are never used.
    """
    way: list[dict[str, Choice]] = [{}]
    while True:
        now = way[-1]
        best: tuple[float, str, Choice] | None = None
        for name, own in choices.items():
            energy, cost = (now[name].energy, now[name].cost) if name in now else (1.0, whole[name])
            for choice in own:
                if choice.cost < cost and choice.energy <= energy:
                    lost = math.log(max(energy, _NEXT_TO_NONE) / max(choice.energy, _NEXT_TO_NONE))
                    price = lost / (cost - choice.cost)
                    if best is None or price < best[0]:
                        best = (price, name, choice)
        if best is None:
            return way
        way.append({**now, best[1]: best[2]})


def between(before: Chosen, after: Chosen, found: Mapping[str, Candidate]) -> list[dict[str, Choice]]:
    """One step of the path in smaller steps: with the ranks between, for the layer that it changes."""
    name = next(name for name, choice in after.items() if before.get(name) != choice)
    top = before[name].energy if name in before else math.inf
    finer = [one for one in found[name].choices() if after[name].energy < one.energy < top]
    return [dict(before), *({**before, name: one} for one in finer), dict(after)]


def last_within(count: int, within: Callable[[int], bool]) -> int:
    """The last of `count` places on the path that meets a goal, by bisection; the first is assumed to."""
    low, high = 0, count - 1
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if within(middle) else (low, middle - 1)
    return low


def _positions(method: str, given: tuple[int, ...], made: tuple[int, ...]) -> tuple[int, ...]:
    out = _places(made, method)
    if method == "spatial":
        return made[-2] * given[-1], out
    return (given[-2] * given[-1], out, out) if method == "tucker" else (out, out)


def _places(made: tuple[int, ...], method: str) -> int:
    return math.prod(made[1:-1]) if method == "svd" else made[-2] * made[-1]
