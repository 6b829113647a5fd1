"""Builds groups from solved identities: units that occur in the same axes belong together."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from .calls import Notes
from .groups import BLOCKS, Frozen, Group, Groups, Read, Slice, Tracing
from .identities import Cause, Solution
from .inputs import Example

Slots = Mapping[tuple[str, int], Tensor]
_NEVER = 2**40
_PART_KINDS = {
    "linear": ("attention", "heads"),
    "conv": ("conv", "blocks"),
    "depthwise": ("depthwise", "blocks"),
}


def grouped(tracing: Tracing, example: Example, batch: int | None, fingerprint: str) -> Groups:
    """All groups of two or more units, in the order of the forward pass; and the axes that produce units of
    which some cannot be removed, with the first reason of each."""
    slots, notes, solution = tracing.slots, tracing.notes, tracing.solution
    axes = _Axes(slots.values(), solution)
    kinds = _Kinds(notes, solution)
    several = _alike(kinds.units, _signatures(axes, solution))
    table = torch.full((2, len(solution.of)), -1)  # by class: its group, and its number there
    for number, units in enumerate(several):
        table[0, units], table[1, units] = number, torch.arange(len(units))
    produced = _order([rows for rows, _ in notes.produced], solution)
    slices = _slices([*slots], axes, notes, solution, produced, table)
    reads = _reads(notes, solution, table)
    groups: list[Group] = []
    classes: dict[str, Tensor] = {}
    for number, units in enumerate(several):
        kind = kinds.of(units)
        name = _name(slices[number], kind[0], classes)
        classes[name] = units
        own_reads = tuple(reads.get(number, ()))
        groups.append(Group(name, len(units), kind[0], kind, tuple(slices[number]), own_reads))
    frozen = _frozen(slots, axes, solution, produced, table)
    tracing = dataclasses.replace(tracing, units=classes)
    return Groups(tuple(groups), frozen, example, batch, fingerprint, tracing)


class _Axes:
    """Many axes as one vector: a question to all of them costs as much as to one."""

    def __init__(self, vectors: Iterable[Tensor], solution: Solution) -> None:
        vectors = [*vectors]
        self.every = torch.cat([*vectors, torch.empty(0, dtype=torch.long)])
        self.sizes = [len(vector) for vector in vectors]
        self.of = torch.repeat_interleave(torch.tensor(self.sizes, dtype=torch.long))
        self.units = [*solution.units(solution.of[self.every])]

    def least(self, values: Tensor) -> list[int]:
        """The smallest of some values in each axis."""
        sizes = np.array(self.sizes, dtype=np.int64)
        found, starts = np.full(len(sizes), _NEVER), np.cumsum(sizes) - sizes
        if len(values):  # an empty axis has no element between two starts
            found[sizes > 0] = np.minimum.reduceat(values.numpy(), starts[sizes > 0])
        return [*map(int, found)]

    def split(self, values: Tensor) -> tuple[Tensor, ...]:
        return torch.split(values, self.sizes)

    def by_group(self, table: Tensor) -> list[list[tuple[int, Tensor]]]:
        """For each axis, by group in it, the number of the unit at each index, or -1."""
        found: list[list[tuple[int, Tensor]]] = [[] for _ in self.sizes]
        for _, every in self.units:
            group, unit = torch.where(every >= 0, table[:, every.clamp_min(0)], -1)
            bounds = zip(self.least(group), self.least(-group), strict=True)
            pieces = zip(found, bounds, self.split(group), self.split(unit), strict=True)
            for some, (low, high), groups, units in pieces:
                if low == -high:
                    some += [(low, units.clone())] if low >= 0 else []
                else:
                    numbers = torch.unique(groups).tolist()
                    some += [(n, torch.where(groups == n, units, -1)) for n in numbers if n >= 0]
        return found


def _frozen(
    slots: Slots, axes: _Axes, solution: Solution, produced: Tensor, table: Tensor
) -> tuple[Frozen, ...]:
    stays = torch.full((len(solution.of),), _NEVER)
    stays[list(solution.causes)] = 0
    makes, fixed = axes.least(produced[axes.every]), axes.least(stays[solution.of[axes.every]])
    grouped = torch.zeros_like(axes.every, dtype=torch.bool)
    for _, units in axes.units:
        grouped |= (units >= 0) & (table[0, units.clamp_min(0)] >= 0)
    free = axes.least((~grouped).long())
    found = []
    for number, (key, vector) in enumerate(slots.items()):
        cause = None
        if makes[number] < _NEVER and not fixed[number]:
            own = solution.of[vector]
            cause = solution.causes[int(own[(stays[own] == 0).nonzero()[0]])]
        elif makes[number] < _NEVER and free[number]:
            cause = Cause("", "", "all its units are coupled into one")
        if cause is not None:
            found.append(Frozen(*key, cause.operator, cause.line, cause.reason))
    return tuple(found)


class _Kinds:
    """The units in the order in which they are first produced, and the kinds of their producers."""

    def __init__(self, notes: Notes, solution: Solution) -> None:
        self.names: list[str] = []
        first = torch.full((len(solution.of),), _NEVER)
        self._by = torch.zeros(len(solution.of), dtype=torch.long)  # one bit per kind
        self._first = torch.zeros(len(solution.of), dtype=torch.long)
        count = 0
        rows = _Axes((rows for rows, _ in notes.produced), solution)
        lives = [(path, rows.split(units), rows.least(-units)) for path, units in rows.units]
        for number, (_, kind) in enumerate(notes.produced):
            found = [(path, pieces[number]) for path, pieces, most in lives if most[number] <= 0]
            if len(found) > 1:
                found.sort(key=lambda item: (len(torch.unique(item[1])), item[0]))
            for path, units in found:  # the finest last: features of a head; blocks before it
                own = kind if not path else _PART_KINDS.get(kind, (kind, kind))[path != found[-1][0]]
                if own not in self.names:
                    self.names.append(own)
                units = units[units >= 0]
                bit = 1 << self.names.index(own)
                new = units[first[units] == _NEVER]
                self._first[new] = bit
                first.scatter_reduce_(0, new, torch.arange(count, count + len(new)), "amin")
                self._by[units] |= bit
                count += len(new)
        self.units = torch.argsort(first)[: int((first < _NEVER).sum())]

    def of(self, units: Tensor) -> tuple[str, ...]:
        """The kinds of a group's units, first the kind that produces its first unit."""
        first, others = int(self._first[units[0]]), 0
        for bits in torch.unique(self._by[units]).tolist():
            others |= bits
        bits = [first, *(1 << at for at in range(len(self.names)) if others & ~first & 1 << at)]
        return tuple(self.names[bit.bit_length() - 1] for bit in bits)


def _signatures(axes: _Axes, solution: Solution) -> Tensor:
    """By class, a number that is equal for units which occur in the same axes, in the same way."""
    count, sizes = len(solution.of), len(axes.sizes)
    marks = torch.randint(2**62, (len(axes.units) * sizes,), generator=torch.Generator().manual_seed(0))
    signature = torch.zeros(count, dtype=torch.long)
    for number, (_, units) in enumerate(axes.units):
        # Once in each axis, however often it occurs there.
        places = torch.unique(((axes.of + number * sizes) * count + units)[units >= 0])
        signature.index_add_(0, places % count, marks[places // count])
    return signature


def _alike(units: Tensor, signature: Tensor) -> list[Tensor]:
    """Units by signature, in the order of the first of each; without those that are alone."""
    _, at = torch.unique(signature[units], return_inverse=True)
    together = torch.split(units[torch.argsort(at, stable=True)], torch.bincount(at).tolist())
    place = torch.full((len(signature),), _NEVER)
    place[units] = torch.arange(len(units))
    return sorted((some for some in together if len(some) > 1), key=lambda some: int(place[some[0]]))


def _slices(
    names: Sequence[tuple[str, int]],
    axes: _Axes,
    notes: Notes,
    solution: Solution,
    produced: Tensor,
    table: Tensor,
) -> dict[int, list[Slice]]:
    """By group, its slices: producers first, in the order of the forward pass."""
    consumed = _order(notes.consumed, solution)
    makes, takes = axes.least(produced[axes.every]), axes.least(consumed[axes.every])
    found = axes.by_group(table)
    slices: dict[int, list[Slice]] = {}
    for place in sorted(range(len(names)), key=makes.__getitem__):
        role = "producer" if makes[place] < _NEVER else "consumer" if takes[place] < _NEVER else "affine"
        for number, units in found[place]:
            slices.setdefault(number, []).append(Slice(*names[place], units, role))
    return slices


def _reads(notes: Notes, solution: Solution, table: Tensor) -> dict[int, list[Read]]:
    places = [
        (node, axis, vector, len(value.shape))
        for node, value in notes.reads.items()
        for axis, vector in enumerate(value.axes)
        if vector is not None
    ]
    found = _Axes((vector for _, _, vector, _ in places), solution).by_group(table)
    reads: dict[int, list[Read]] = {}
    for (node, axis, _, rank), some in zip(places, found, strict=True):
        shape = [-1 if other == axis else 1 for other in range(rank)]
        for number, units in some:
            reads.setdefault(number, []).append(Read(node, units.reshape(shape)))
    return reads


def _order(vectors: Sequence[Tensor], solution: Solution) -> Tensor:
    """By identity, the number of the first of `vectors` that contains it."""
    order = torch.full((len(solution.of),), _NEVER)
    for number, vector in reversed(list(enumerate(vectors))):
        order[vector] = number
    return order


def _name(slices: list[Slice], kind: str, taken: Mapping[str, Tensor]) -> str:
    """The module that owns the first producing parameter, with a suffix if the name is used."""
    first = slices[0].parameter
    base = first.rpartition(".")[0] or first
    if kind in BLOCKS:
        base = f"{base}:{kind}"
    name, number = base, 1
    while name in taken:
        number += 1
        name = f"{base}#{number}"
    return name
