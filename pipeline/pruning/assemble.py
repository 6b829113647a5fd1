"""From solved identities to groups: units that live in the same places belong together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .calls import Notes
from .groups import Frozen, Group, Read, Slice
from .identities import Cause, Solution

Slots = Mapping[tuple[str, int], Tensor]
_NEVER = 2**40
_PART_KINDS = {"linear": ("attention", "heads"), "conv": ("conv", "blocks")}


def assemble(slots: Slots, notes: Notes, solution: Solution) -> tuple[tuple[Group, ...], dict[str, Tensor]]:
    """All groups of two or more units, in the order of the forward pass; and the classes of their units."""
    kinds = _kinds(notes, solution)
    signature = _signatures(slots, solution)
    members: dict[int, list[int]] = {}
    for unit in kinds:
        members.setdefault(int(signature[unit]), []).append(unit)
    several = [units for units in members.values() if len(units) > 1]
    table = torch.full((2, len(solution.of)), -1)  # by class: its group, and its number there
    for number, units in enumerate(several):
        table[0, units], table[1, units] = number, torch.arange(len(units))
    slices = _slices(slots, notes, solution, table)
    reads = _reads(notes, solution, table)
    groups: list[Group] = []
    classes: dict[str, Tensor] = {}
    for number, units in enumerate(several):
        kind = tuple(dict.fromkeys(kind for unit in units for kind in kinds[unit]))
        name = _name(slices[number], kind[0], classes)
        classes[name] = torch.tensor(units)
        own_reads = tuple(reads.get(number, ()))
        groups.append(Group(name, len(units), kind[0], kind, tuple(slices[number]), own_reads))
    return tuple(groups), classes


def list_frozen(
    slots: Slots, notes: Notes, solution: Solution, classes: Mapping[str, Tensor]
) -> tuple[Frozen, ...]:
    """The axes that produce units of which some cannot be removed, with the first reason of each."""
    produced = _order([rows for rows, _ in notes.produced], solution)
    grouped = torch.cat([torch.empty(0, dtype=torch.long), *classes.values()])
    found = []
    for (parameter, axis), vector in slots.items():
        if not bool((produced[vector] < _NEVER).any()):
            continue
        own = solution.of[vector]
        cause = next((solution.causes[cls] for cls in own.tolist() if cls in solution.causes), None)
        if cause is None and not any(
            bool(torch.isin(units, grouped).any()) for _, units in solution.units(own)
        ):
            cause = Cause("", "", "its units hang together as one")
        if cause is not None:
            found.append(Frozen(parameter, axis, cause.operator, cause.line, cause.reason))
    return tuple(found)


def _kinds(notes: Notes, solution: Solution) -> dict[int, list[str]]:
    """By unit, in the order in which units are first produced: the kinds of operator that produce it."""
    kinds: dict[int, list[str]] = {}
    for rows, kind in notes.produced:
        found = sorted(
            solution.units(solution.of[rows]), key=lambda item: (len(torch.unique(item[1])), item[0])
        )
        for path, units in found:  # the finest last: features of a head; before it what is counted in blocks
            own = kind if not path else _PART_KINDS.get(kind, (kind, kind))[path != found[-1][0]]
            for unit in units[units >= 0].tolist():
                known = kinds.setdefault(unit, [])
                if own not in known:
                    known.append(own)
    return kinds


def _signatures(slots: Slots, solution: Solution) -> Tensor:
    """By class, a number that is equal for units which live in the same places, in the same way."""
    places = [
        (key, path, units)
        for key, vector in slots.items()
        for path, units in solution.units(solution.of[vector])
    ]
    signature = torch.zeros(len(solution.of), dtype=torch.long)
    marks = torch.randint(2**62, (len(places),), generator=torch.Generator().manual_seed(0))
    for mark, (_, _, units) in zip(marks, places, strict=True):
        signature[torch.unique(units[units >= 0])] += mark
    return signature


def _slices(slots: Slots, notes: Notes, solution: Solution, table: Tensor) -> dict[int, list[Slice]]:
    """By group, its slices: producers first, in the order of the forward pass."""
    produced = _order([rows for rows, _ in notes.produced], solution)
    consumed = _order(notes.consumed, solution)
    slices: dict[int, list[Slice]] = {}
    for (parameter, axis), vector in sorted(slots.items(), key=lambda item: int(produced[item[1]].min())):
        makes, takes = bool((produced[vector] < _NEVER).any()), bool((consumed[vector] < _NEVER).any())
        role = "producer" if makes else "consumer" if takes else "affine"
        for number, units in _by_group(vector, solution, table):
            slices.setdefault(number, []).append(Slice(parameter, axis, units, role))
    return slices


def _reads(notes: Notes, solution: Solution, table: Tensor) -> dict[int, list[Read]]:
    reads: dict[int, list[Read]] = {}
    for node, value in notes.reads.items():
        for axis, vector in enumerate(value.axes):
            shape = [-1 if other == axis else 1 for other in range(len(value.shape))]
            for number, units in _by_group(vector, solution, table) if vector is not None else ():
                reads.setdefault(number, []).append(Read(node, units.reshape(shape)))
    return reads


def _by_group(vector: Tensor, solution: Solution, table: Tensor) -> list[tuple[int, Tensor]]:
    """A vector of identities as, for each group in it, the number of the unit at each place, or -1."""
    found = []
    for _, units in solution.units(solution.of[vector]):
        group, unit = torch.where(units >= 0, table[:, units.clamp_min(0)], -1)
        found += [
            (number, torch.where(group == number, unit, -1))
            for number in torch.unique(group).tolist()
            if number >= 0
        ]
    return found


def _order(vectors: Sequence[Tensor], solution: Solution) -> Tensor:
    """By identity, the number of the first of `vectors` that holds it."""
    order = torch.full((len(solution.of),), _NEVER)
    for number, vector in reversed(list(enumerate(vectors))):
        order[vector] = number
    return order


def _name(slices: list[Slice], kind: str, taken: Mapping[str, Tensor]) -> str:
    """The module that owns the first producing parameter; what else lives there gets a suffix."""
    first = slices[0].parameter
    base = first.rpartition(".")[0] or first
    if kind in ("heads", "blocks"):
        base = f"{base}:{kind}"
    name, number = base, 1
    while name in taken:
        number += 1
        name = f"{base}#{number}"
    return name
