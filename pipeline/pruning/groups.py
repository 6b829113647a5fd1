"""Groups of units that may be removed from a network, and the choice of units.

A *unit* is the smallest part that can be removed: one neuron, one channel, one head, with every parameter
that belongs to it anywhere in the network. Units that occur in the same axes form a `Group`; any subset of
a group's units may be removed, as long as one stays.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.fx import GraphModule

from ...targets.errors import ModelError
from .calls import Notes, Tracked
from .capture import copied
from .identities import Solution
from .inputs import Example
from .plan import Cut, Plan, Shapes, Width

Align = int | Mapping[str, int] | None
"""Widths are rounded up to a multiple: one number for all, or by the kind of operator."""

BLOCKS = ("heads", "blocks")
"""Kinds whose units are blocks: whole heads of attention, whole groups of a convolution."""


@dataclass(frozen=True)
class Slice:
    """The indices of a group in one axis of a parameter or buffer.

    Attributes:
        parameter: its name in the user's module.
        axis: the axis that is narrowed.
        units: int64[size of that axis], the unit to which each index belongs; -1 for none of this group.
        role: "producer" (rows that produce the units), "consumer" (columns that read them) or "affine"
            (biases, norms, statistics).
    """

    parameter: str
    axis: int
    units: Tensor
    role: str


@dataclass(frozen=True)
class Read:
    """A value that a mixing operator (linear, convolution, attention ...) reads: statistics are of these.

    Attributes:
        node: the name of the value's node in `Groups.graph`.
        units: int64, broadcastable to the value's shape: the unit at each index, -1 for none of this group.
    """

    node: str
    units: Tensor


@dataclass(frozen=True)
class Group:
    """Units that occur in the same axes.

    Attributes:
        name: the first module that produces them; unique.
        size: the number of units.
        kind: the operator that produces them first: "linear", "conv", "depthwise", "attention" (features of
            a head), "heads", "blocks" (groups of a convolution), "recurrent", "embedding".
        kinds: those of all members; the alignment of each of them applies.
    """

    name: str
    size: int
    kind: str
    kinds: tuple[str, ...]
    slices: tuple[Slice, ...]
    reads: tuple[Read, ...]


@dataclass(frozen=True)
class Frozen:
    """An axis of a parameter that cannot be narrowed, fully or partly, and why."""

    parameter: str
    axis: int
    operator: str
    line: str
    reason: str


@dataclass(frozen=True)
class Tracing:
    """The part of a trace that surgery needs.

    Attributes:
        graph: the captured network; `Groups.graph` is a copy, which callers may change.
        values: by node name, the facts on each tensor of the graph.
        slots: the identities of each axis of each parameter and buffer.
        aliases: all names of each parameter and buffer, by its first name.
        shapes: of each parameter and buffer, by its first name.
        units: by group, the class of each unit; empty if no groups were made.
        notes: what the rules noted, without the facts that are solved.
        solution: which identities are one, and which depend on others.
        learner: the same for the graph for training, if the two were traced as one.
    """

    graph: GraphModule
    values: Mapping[str, Tracked | list[Tracked]]
    slots: Mapping[tuple[str, int], Tensor]
    aliases: Mapping[str, tuple[str, ...]]
    shapes: Mapping[str, tuple[int, ...]]
    units: Mapping[str, Tensor]
    notes: Notes
    solution: Solution
    learner: Tracing | None = None

    def alive(self, removed: Mapping[str, tuple[int, ...]]) -> Tensor:
        """bool[identities], when these units of these groups are removed."""
        dead = [self.units[name][torch.tensor(units, dtype=torch.long)] for name, units in removed.items()]
        return self.solution.alive(torch.cat([torch.empty(0, dtype=torch.long), *dead]))

    def living(self, cut: Cut) -> Tensor:
        """bool[identities]: which of them live when exactly these indices of the parameters are cut.

        Raises:
            ModelError: no choice of units makes this cut.
        """
        wanted = torch.ones(len(self.solution.of), dtype=torch.bool)
        for (name, axis), vector in self.slots.items():
            wanted[vector[list(cut.get(name, {}).get(axis, ()))]] = False
        every = torch.cat([*self.slots.values(), torch.empty(0, dtype=torch.long)])
        spoiled = torch.zeros_like(wanted)  # units with an index that must stay ...
        touched = torch.zeros_like(wanted)  # ... and with one that must be cut
        for _, units in self.solution.units(self.solution.of[every]):
            spoiled[units[(units >= 0) & wanted[every]]] = True
            touched[units[(units >= 0) & ~wanted[every]]] = True
        alive = self.solution.alive((self.solution.free & touched & ~spoiled).nonzero().reshape(-1))
        if not torch.equal(alive[every], wanted[every]):
            raise ModelError(
                "The plan does not fit the training graph: it couples other units than the inference graph.",
                "Its forward differs between training and inference; prune less, or make it the same.",
            )
        return alive


@dataclass(frozen=True)
class Groups:
    """All groups of a network; iterating yields them in the order of the forward pass.

    Attributes:
        frozen: the axes that cannot be pruned.
        batch: None if the network takes any batch, else its fixed batch size.
        fingerprint: of the network's names, shapes and types; a plan is valid for this network only.
        captures: the graphs that were captured for the graph form only, by (training, every axis open).
    """

    groups: tuple[Group, ...]
    frozen: tuple[Frozen, ...]
    example: Example
    batch: int | None
    fingerprint: str
    tracing: Tracing
    captures: dict[tuple[bool, bool], Tracing] = field(default_factory=dict)

    @functools.cached_property
    def graph(self) -> GraphModule:
        """The exported graph, in eval form, to whose node names `Read.node` refers.

        It takes the tensors of the example and returns a flat tuple; it is a copy, which may be changed.
        """
        captured = self.tracing.graph
        return GraphModule(captured, copied(captured.graph))

    def __str__(self) -> str:
        """The groups with their sizes, and the axes that cannot be pruned, with the reason."""
        own = [f"  {group.name} ({group.kind}): {group.size} units" for group in self.groups]
        rest = [f"  {one.parameter}, axis {one.axis}, stays: {one.reason} {one.line}" for one in self.frozen]
        return "\n".join([f"{len(own)} groups", *own, *map(str.rstrip, rest)])

    def __iter__(self) -> Iterator[Group]:
        return iter(self.groups)

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, name: str) -> Group:
        """The group of that name.

        Raises:
            ModelError: there is none.
        """
        for group in self.groups:
            if group.name == name:
                return group
        known = ", ".join(group.name for group in self.groups) or "none"
        raise ModelError(f'There is no group "{name}" in this network.', f"Its groups are: {known}.")


def choose(
    groups: Groups,
    scores: Mapping[str, Tensor],
    *,
    ratio: float | None = None,
    keep: Mapping[str, int] | None = None,
    align: Align = None,
) -> Plan:
    """Removes the units with the lowest scores from each group that has scores.

    Args:
        scores: by group, one number per unit; the highest stay.
        ratio: the share of each group's units to remove, between 0 and 1.
        keep: instead of a ratio, the number of units that each group keeps.
        align: widths are rounded up to a multiple, so that more units stay.

    Raises:
        ModelError: the ratio is out of range, or scores do not fit their group.
    """
    if (ratio is None) == (keep is None):
        cure = "For example: choose(groups, scores, ratio=0.5)."
        raise ModelError("Give either ratio or keep, not both.", cure)
    if ratio is not None and not 0 < ratio < 1:
        raise ModelError(
            f"A ratio of {ratio} removes {'nothing' if ratio <= 0 else 'everything'}.",
            "Give a ratio between 0 and 1, both excluded: 0.5 removes half of the units of each group.",
        )
    if not scores and len(groups):
        raise ModelError(
            "There are no scores, so no units can be chosen.",
            "Give one tensor of scores per group, one score per unit: {group.name: scores, ...}.",
        )
    for name in keep or {}:
        groups[name]  # raises for an unknown name
    dead = {}
    for name, score in scores.items():
        group = groups[name]
        _check_size(group, score, "scores")
        gone = 0 if ratio is None else int(round(ratio * group.size, 9))
        wanted = (keep or {}).get(name, group.size) if ratio is None else group.size - gone
        dead[name] = torch.ones(group.size, dtype=torch.bool)
        dead[name][_best(score, max(1, min(wanted, group.size)))] = False
    return remove(groups, dead, align=align, scores=scores)


def remove(
    groups: Groups,
    dead: Mapping[str, Tensor],
    *,
    align: Align = None,
    scores: Mapping[str, Tensor] | None = None,
) -> Plan:
    """Removes exactly the marked units, except those that alignment restores.

    Args:
        dead: by group, bool[size].
        align: widths are rounded up to a multiple; the restored units are those with the highest score, or
            the first ones without scores.

    Raises:
        ModelError: a mask does not fit its group, or marks all of its units.
    """
    removed = {}
    for name, mask in dead.items():
        group = groups[name]
        _check_size(group, mask, "marks")
        kept = group.size - int(mask.sum())
        if kept == 0:
            raise ModelError(
                f'All {group.size} units of the group "{name}" would be removed, and with them the layer.',
                f'Lower the thresholds (mean, std) or the ratio, or leave "{name}" out.',
            )
        step = step_of(group, align)
        free = min(-(-kept // step) * step, group.size) - kept
        candidates = mask.nonzero().reshape(-1)
        score = scores[name][candidates] if scores and name in scores else -candidates.double()
        back = candidates[_best(score, free)]
        units = sorted(set(candidates.tolist()) - set(back.tolist()))
        if units:
            removed[name] = tuple(units)
    return planned(groups, removed)


def random_like(groups: Groups, plan: Plan, *, seed: int = 0) -> Plan:
    """A plan of the same widths with random units: the control of every criterion."""
    generator = torch.Generator().manual_seed(seed)
    removed = {}
    for name, units in plan.removed.items():
        drawn = torch.randperm(groups[name].size, generator=generator)[: len(units)]
        removed[name] = tuple(sorted(drawn.tolist()))
    return planned(groups, removed)


def planned(groups: Groups, removed: Mapping[str, tuple[int, ...]]) -> Plan:
    """The plan that removes these units: the cut of each parameter, and the remaining widths."""
    alive = groups.tracing.alive(removed)
    cut: dict[str, dict[int, tuple[int, ...]]] = {}
    shapes: dict[str, Shapes] = {}
    seen: dict[tuple[int, ...], tuple[int, ...]] = {}  # many axes are cut alike
    for (name, axis), vector in groups.tracing.slots.items():
        indices = tuple((~alive[vector]).nonzero().reshape(-1).tolist())
        for alias in groups.tracing.aliases[name] if indices else ():
            cut.setdefault(alias, {})[axis] = seen.setdefault(indices, indices)
            before = groups.tracing.shapes[name]
            after = list(shapes[alias].after if alias in shapes else before)
            after[axis] -= len(indices)
            shapes[alias] = Shapes(before, tuple(after))
    sizes = {group.name: group.size - len(removed.get(group.name, ())) for group in groups}
    widths = {group.name: Width(group.kind, group.size, sizes[group.name]) for group in groups}
    return Plan(original=groups.fingerprint, removed=dict(removed), cut=cut, shapes=shapes, widths=widths)


def _check_size(group: Group, values: Tensor, what: str) -> None:
    if tuple(values.shape) != (group.size,):
        raise ModelError(
            f'The {what} of the group "{group.name}" have the shape {tuple(values.shape)}; '
            f"it has {group.size} units.",
            "Give one value per unit; a plan or scores of another network do not fit.",
        )
    if values.dtype.is_floating_point and bool(values.isnan().any()):
        cure = "Check the criterion and its statistics."
        raise ModelError(f'The {what} of the group "{group.name}" have NaN.', cure)


def _best(scores: Tensor, count: int) -> Tensor:
    return torch.argsort(scores, descending=True, stable=True)[:count]


def step_of(group: Group, align: Align) -> int:
    """The multiple to which the width of a group is rounded up."""
    steps = list(align.values()) if isinstance(align, Mapping) else [1 if align is None else align]
    if any(step < 1 for step in steps):
        raise ModelError(f"Widths cannot be aligned to {align}.", "Give multiples of 1 or more.")
    if align is None or isinstance(align, int):
        return align or 1
    return math.lcm(*(align.get(kind, 1) for kind in group.kinds))
