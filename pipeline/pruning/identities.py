"""Identities: which indices of a network must be removed together, and a solver for these facts.

An *identity* is an integer that represents one removable index: a row of a weight, a channel of an
activation, a head. Three kinds of facts are collected while a network is read, and solved once at the end:

    a and b are one            unite(a, b)       they are combined in an addition or a matrix product
    w lives if p, q, ... live  factor / fuse     a view split an axis (heads x features), or merged it
    a stays                    freeze(a, cause)  it is combined with an axis that cannot be narrowed

The second kind keeps every tensor rectangular: whatever units are removed, each axis keeps one set of
indices, the same in every row. The identities that are free after solving are the units that may be removed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Cause:
    """Why identities were frozen: the operator, the line of the user's code, and the reason."""

    operator: str
    line: str
    reason: str


@dataclass
class _Product:
    """whole[i] lives exactly if parts[0, i], parts[1, i], ... all live."""

    whole: Tensor
    parts: Tensor


class Identities:
    """Creates identities and collects facts about them."""

    def __init__(self) -> None:
        self.count = 0
        self._pairs: list[Tensor] = []
        self._products: list[_Product] = []
        self._frozen: list[tuple[Tensor, Cause]] = []

    def fresh(self, size: int) -> Tensor:
        self.count += size
        return torch.arange(self.count - size, self.count)

    def unite(self, a: Tensor, b: Tensor) -> None:
        """Records that a[i] and b[i] are one for every i."""
        self._pairs.append(torch.stack([a, b]).reshape(2, -1))

    def freeze(self, identities: Tensor, cause: Cause) -> None:
        """Records that these can never be removed."""
        self._frozen.append((identities.reshape(-1), cause))

    def factor(self, grid: Tensor) -> dict[int, Tensor]:
        """Splits identities that vary along several axes into one vector for each of those axes.

        Two indices of an axis get the same part exactly if their slices are equal; an element of the grid
        lives exactly if its part along every axis lives.
        """
        for axis, size in enumerate(grid.shape):
            if size > 1 and (grid.stride(axis) == 0 or bool((grid == grid.narrow(axis, 0, 1)).all())):
                grid = grid.narrow(axis, 0, 1)  # nothing changes along this axis
        axes = [axis for axis, size in enumerate(grid.shape) if size > 1]
        if len(axes) < 2:
            return {axis: grid.flatten().clone() for axis in axes}  # a view would keep the grid in memory
        vectors, parts = {}, []
        for axis, (first, at) in {axis: _distinct(grid, axis) for axis in axes}.items():
            part = self.fresh(len(first))
            vectors[axis] = part[at]
            grid = grid.index_select(axis, first)
            parts.append(part.reshape([-1 if other == axis else 1 for other in range(grid.dim())]))
        parts = [part.expand(grid.shape).reshape(-1) for part in parts]
        self._products.append(_Product(grid.reshape(-1), torch.stack(parts)))
        return vectors

    def fuse(self, vectors: Sequence[Tensor]) -> Tensor:
        """One vector whose elements live exactly if those of all `vectors` (outermost first) live."""
        if len(vectors) == 1:
            return vectors[0]
        distinct, at = torch.unique(torch.stack(list(vectors)), dim=1, return_inverse=True)
        whole = self.fresh(distinct.shape[1])
        self._products.append(_Product(whole, distinct))
        return whole[at]

    def solve(self) -> Solution:
        """Solves all facts; see `Solution`."""
        causes = [cause for _, cause in self._frozen]
        causes.append(Cause("view", "", "its units are grouped in two ways that do not nest"))
        cause_of = torch.full((self.count,), len(causes))
        for number, (identities, _) in enumerate(self._frozen):
            _lower(cause_of, identities, torch.tensor(number).expand(len(identities)))
        of = torch.arange(self.count)
        pairs, products = [*self._pairs, torch.empty(2, 0, dtype=torch.long)], list(self._products)
        while pairs:
            of = _join(of, torch.cat(pairs, dim=1))
            cause_of = torch.full_like(cause_of, len(causes)).scatter_reduce_(0, of, cause_of, "amin")
            products = [_Product(of[product.whole], of[product.parts]) for product in products]
            products, pairs = _conclude(products, cause_of, len(causes))
        return _solution(of, products, cause_of, causes)


@dataclass(frozen=True)
class Solution:
    """The solution of the facts. A class is named by its smallest identity.

    Attributes:
        of: int64[identities], the class of each identity; those of one class are removed together.
        free: bool[identities], by class: whether it is a unit, which may be removed on its own.
        parts: int64[identities, k], by class: the classes that must all live for it to live, then -1.
        causes: why a class is frozen.
    """

    of: Tensor
    free: Tensor
    parts: Tensor
    causes: dict[int, Cause]

    def units(self, classes: Tensor, path: tuple[int, ...] = ()) -> Iterator[tuple[tuple[int, ...], Tensor]]:
        """The units on which a vector of classes depends: for each path from product to part, a vector of
        units, -1 for none. A plain axis yields one vector; heads x features yield two."""
        known = classes >= 0
        units = torch.where(known & self.free[classes.clamp_min(0)], classes, -1)
        if bool((units >= 0).any()):
            yield path, units
        for number in range(self.parts.shape[1] if len(path) < _DEEPEST else 0):
            parts = torch.where(known, self.parts[classes.clamp_min(0), number], -1)
            if bool((parts >= 0).any()):
                yield from self.units(parts, (*path, number))

    def alive(self, dead: Tensor) -> Tensor:
        """bool[identities]: which of them live when the units of these classes are removed."""
        living = torch.ones(len(self.of) + 1, dtype=torch.bool)  # the last one represents "no part": it lives
        living[dead] = False
        wholes = (self.parts >= 0).any(dim=1).nonzero().reshape(-1)
        before = -1
        while before != (before := int(living.sum())):
            living[wholes] &= living[self.parts[wholes]].all(dim=1)
        return living[self.of]


_DEEPEST = 8  # nested splits: heads x halves x ...; a limit that is never reached


def _distinct(grid: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """The first index of each distinct slice along an axis, and for each slice which of them it equals.

    Slices are distinguished by a random linear combination of their elements, in 62-bit integers.
    """
    generator = torch.Generator().manual_seed(0)
    key = grid
    for other, size in enumerate(grid.shape):
        weights = torch.randint(-(2**62), 2**62, (size,), generator=generator)
        if other != axis:
            shape = [-1 if place == other else 1 for place in range(grid.dim())]
            key = (key * weights.reshape(shape)).sum(other, keepdim=True)
    _, at = torch.unique(key.reshape(-1), return_inverse=True)
    first = torch.full((int(at.max()) + 1,), len(at))
    _lower(first, at, torch.arange(len(at)))
    order = torch.argsort(first)
    return first[order], torch.argsort(order)[at]


def _lower(values: Tensor, at: Tensor, to: Tensor) -> None:
    values.scatter_reduce_(0, at, to, "amin")


def _join(of: Tensor, pairs: Tensor) -> Tensor:
    """Connected components: each root joins the smallest root it is paired with, until all pairs agree."""
    while True:
        low, high = torch.aminmax(of[pairs], dim=0)
        if bool((low == high).all()):
            return of
        of = of.clone()
        _lower(of, high, low)
        while not torch.equal(of, further := of[of]):
            of = further


def _conclude(products: list[_Product], cause_of: Tensor, never: int) -> tuple[list[_Product], list[Tensor]]:
    """The conclusions from products: frozen classes (in place), fewer products, and new pairs to unite."""
    pairs: list[Tensor] = []
    while True:
        _spread(products, cause_of)
        kept = []
        for product in products:
            living = [part for part in product.parts if bool((cause_of[part] == never).any())]
            if len(living) > 1:
                kept.append(_Product(product.whole, torch.stack(living)))
            elif living:
                pairs.append(torch.stack([product.whole, living[0]]))
        agreed, clashing = _compare(kept)
        if not clashing:
            break
        for product in clashing:  # only the finest part stays free: coarser, but always right
            widths = [len(torch.unique(part)) for part in product.parts]
            finest = widths.index(max(widths))
            for part in (*product.parts[:finest], *product.parts[finest + 1 :]):
                _lower(cause_of, part, torch.full_like(part, never - 1))
        products = kept
    pairs += agreed
    return kept, [pair for pair in pairs if bool((pair[0] != pair[1]).any())]


def _spread(products: list[_Product], cause_of: Tensor) -> None:
    """A product that stays keeps its parts; a product whose parts all stay, stays."""
    while True:
        before = cause_of.clone()
        for product in products:
            for part in product.parts:
                _lower(cause_of, part, cause_of[product.whole])
            _lower(cause_of, product.whole, cause_of[product.parts].amax(dim=0))
        if torch.equal(before, cause_of):
            return


def _compare(products: list[_Product]) -> tuple[list[Tensor], list[_Product]]:
    """If two products give the same whole, their parts are the same, or they are in conflict."""
    agreed: list[Tensor] = []
    clashing: list[_Product] = []
    owner: dict[int, tuple[int, int]] = {}  # whole -> product, position
    for number, product in enumerate(products):
        meetings: dict[int, list[tuple[int, int]]] = {}
        for here, whole in enumerate(product.whole.tolist()):
            other, there = owner.setdefault(whole, (number, here))
            if (other, there) != (number, here):
                meetings.setdefault(other, []).append((here, there))
        for other, places in meetings.items():
            here, there = torch.tensor(places).T
            mine, theirs = product.parts[:, here], products[other].parts[:, there]
            match = list(range(len(mine))) if other == number else _match(mine, theirs)
            if match is None:
                clashing += [product, products[other]]
            else:
                agreed.append(torch.stack([mine, theirs[match]]).reshape(2, -1))
    return agreed, clashing


def _match(mine: Tensor, theirs: Tensor) -> list[int] | None:
    """For each row of `mine` the row of `theirs` that groups the columns alike; None if none does."""
    left = list(range(len(theirs)))
    found = []
    for row in mine:
        alike = next((number for number in left if _alike(row, theirs[number])), None)
        if alike is None:
            return None
        left.remove(alike)
        found.append(alike)
    return None if left else found


def _alike(a: Tensor, b: Tensor) -> bool:
    together = len(torch.unique(a * (1 + int(b.max())) + b))
    return len(torch.unique(a)) == together == len(torch.unique(b))


def _solution(of: Tensor, products: list[_Product], cause_of: Tensor, causes: list[Cause]) -> Solution:
    frozen = cause_of < len(causes)
    parts = torch.full((len(of), max((len(product.parts) for product in products), default=0)), -1)
    for product in products:
        living = torch.where(frozen[product.parts], -1, product.parts).T
        new = (parts[product.whole] < 0).all(dim=1)
        parts[product.whole[new], : living.shape[1]] = living[new]
    parts[frozen] = -1
    free = torch.zeros_like(frozen)
    free[of] = True
    free &= ~frozen & (parts < 0).all(dim=1)
    stays = frozen.nonzero().reshape(-1)
    reasons = {
        cls: causes[number] for cls, number in zip(stays.tolist(), cause_of[stays].tolist(), strict=True)
    }
    return Solution(of, free, parts, reasons)
