"""Builds groups from solved identities: units that occur in the same axes belong together."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from .calls import Notes
from .groups import BLOCKS, Frozen, Group, Groups, Read, Slice, Tracing
from .identities import Cause, Solution
from .inputs import Example

Slots = Mapping[tuple[str, int], Tensor]
Lives = Mapping[tuple[str, int], Sequence[tuple[tuple[int, ...], Tensor]]]
"""By axis, the units on which it depends: see `Solution.units`."""
_NEVER = 2**40
_PART_KINDS = {
    "linear": ("attention", "heads"),
    "conv": ("conv", "blocks"),
    "depthwise": ("depthwise", "blocks"),
}


def grouped(tracing: Tracing, example: Example, batch: int | None, fingerprint: str) -> Groups:
    """The groups of a network whose coupling is known."""
    groups, units, frozen = assemble(tracing.slots, tracing.notes, tracing.solution)
    return Groups(groups, frozen, example, batch, fingerprint, dataclasses.replace(tracing, units=units))


def assemble(
    slots: Slots, notes: Notes, solution: Solution
) -> tuple[tuple[Group, ...], dict[str, Tensor], tuple[Frozen, ...]]:
    """All groups of two or more units, in the order of the forward pass; the classes of their units; and the
    axes that produce units of which some cannot be removed, with the first reason of each."""
    lives = _lives(slots, solution)
    kinds = _Kinds(notes, solution)
    several = _alike(kinds.units, _signatures(lives, solution))
    table = torch.full((2, len(solution.of)), -1)  # by class: its group, and its number there
    for number, units in enumerate(several):
        table[0, units], table[1, units] = number, torch.arange(len(units))
    produced = _order([rows for rows, _ in notes.produced], solution)
    slices = _slices(slots, lives, notes, solution, produced, table)
    reads = _reads(notes, solution, table)
    groups: list[Group] = []
    classes: dict[str, Tensor] = {}
    for number, units in enumerate(several):
        kind = kinds.of(units)
        name = _name(slices[number], kind[0], classes)
        classes[name] = units
        own_reads = tuple(reads.get(number, ()))
        groups.append(Group(name, len(units), kind[0], kind, tuple(slices[number]), own_reads))
    return tuple(groups), classes, _frozen(slots, lives, solution, produced, table[0] >= 0)


def _lives(slots: Slots, solution: Solution) -> Lives:
    every = torch.cat([*slots.values(), torch.empty(0, dtype=torch.long)])  # one walk over all axes at once
    sizes = [len(vector) for vector in slots.values()]
    lives: dict[tuple[str, int], list[tuple[tuple[int, ...], Tensor]]] = {key: [] for key in slots}
    for path, units in solution.units(solution.of[every]):
        for key, part in zip(slots, torch.split(units, sizes), strict=True):
            if bool((part >= 0).any()):
                lives[key].append((path, part))
    return lives


def _frozen(
    slots: Slots, lives: Lives, solution: Solution, produced: Tensor, grouped: Tensor
) -> tuple[Frozen, ...]:
    stays = torch.zeros(len(solution.of), dtype=torch.bool)
    stays[list(solution.causes)] = True
    found = []
    for key, vector in slots.items():
        if not bool((produced[vector] < _NEVER).any()):
            continue
        own = solution.of[vector]
        whole = stays[own].nonzero()
        cause = solution.causes[int(own[whole[0]])] if len(whole) else None
        if cause is None and not any(bool(grouped[units[units >= 0]].any()) for _, units in lives[key]):
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
        for rows, kind in notes.produced:
            found = sorted(
                solution.units(solution.of[rows]), key=lambda item: (len(torch.unique(item[1])), item[0])
            )
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


def _signatures(lives: Lives, solution: Solution) -> Tensor:
    """By class, a number that is equal for units which occur in the same axes, in the same way."""
    places = [units[units >= 0] for found in lives.values() for _, units in found]
    signature = torch.zeros(len(solution.of), dtype=torch.long)
    marks = torch.randint(2**62, (len(places),), generator=torch.Generator().manual_seed(0))
    for mark, units in zip(marks, places, strict=True):
        signature[units] = signature[units] + mark  # once, however often it occurs there
    return signature


def _alike(units: Tensor, signature: Tensor) -> list[Tensor]:
    """Units by signature, in the order of the first of each; without those that are alone."""
    _, at = torch.unique(signature[units], return_inverse=True)
    together = torch.split(units[torch.argsort(at, stable=True)], torch.bincount(at).tolist())
    place = torch.full((len(signature),), _NEVER)
    place[units] = torch.arange(len(units))
    return sorted((some for some in together if len(some) > 1), key=lambda some: int(place[some[0]]))


def _slices(
    slots: Slots, lives: Lives, notes: Notes, solution: Solution, produced: Tensor, table: Tensor
) -> dict[int, list[Slice]]:
    """By group, its slices: producers first, in the order of the forward pass."""
    consumed = _order(notes.consumed, solution)
    slices: dict[int, list[Slice]] = {}
    for (parameter, axis), vector in sorted(slots.items(), key=lambda item: int(produced[item[1]].min())):
        makes, takes = bool((produced[vector] < _NEVER).any()), bool((consumed[vector] < _NEVER).any())
        role = "producer" if makes else "consumer" if takes else "affine"
        for number, units in _by_group(lives[parameter, axis], table):
            slices.setdefault(number, []).append(Slice(parameter, axis, units, role))
    return slices


def _reads(notes: Notes, solution: Solution, table: Tensor) -> dict[int, list[Read]]:
    reads: dict[int, list[Read]] = {}
    for node, value in notes.reads.items():
        for axis, vector in enumerate(value.axes):
            shape = [-1 if other == axis else 1 for other in range(len(value.shape))]
            found = () if vector is None else _by_group(solution.units(solution.of[vector]), table)
            for number, units in found:
                reads.setdefault(number, []).append(Read(node, units.reshape(shape)))
    return reads


def _by_group(lives: Iterable[tuple[tuple[int, ...], Tensor]], table: Tensor) -> list[tuple[int, Tensor]]:
    """For an axis, by group in it, the number of the unit at each index, or -1."""
    found = []
    for _, units in lives:
        group, unit = torch.where(units >= 0, table[:, units.clamp_min(0)], -1)
        found += [
            (number, torch.where(group == number, unit, -1))
            for number in torch.unique(group).tolist()
            if number >= 0
        ]
    return found


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
