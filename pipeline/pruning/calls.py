"""The input of a rule: one operator of the graph, and the facts on its operands."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from .capture import users_line
from .identities import Cause, Identities


@dataclass(frozen=True)
class Tracked:
    """The facts on one value of the graph.

    Attributes:
        shape: sizes in the example.
        axes: for each axis a vector of identities, or None if its size is fixed.
        node: the name of its node.
        activation: whether it depends on an input of the network.
        value: the tensor itself if it is a known constant.
    """

    shape: tuple[int, ...]
    axes: tuple[Tensor | None, ...]
    node: str = ""
    activation: bool = False
    value: Tensor | None = None

    def at(self, axis: int, size: int, vector: Tensor | None = None) -> Tracked:
        """The same with another axis in place of one."""
        axis %= len(self.shape)
        shape = (*self.shape[:axis], size, *self.shape[axis + 1 :])
        return Tracked(shape, (*self.axes[:axis], vector, *self.axes[axis + 1 :]))

    def but(self, *dropped: int) -> Tracked:
        """The same without some axes."""
        kept = [axis for axis in range(len(self.shape)) if axis not in dropped]
        return Tracked(tuple(self.shape[axis] for axis in kept), tuple(self.axes[axis] for axis in kept))


@dataclass
class Notes:
    """The facts that the rules collect.

    Attributes:
        identities: which indices are coupled.
        produced: rows of weights: identities, kind of the operator.
        consumed: columns of weights.
        reads: values that are read by a mixing operator.
        masked: by operator that mixes units, the operands whose removed elements must be zero for it.
        renormalised: nodes whose result depends on the number of units (a mean, a norm over them).
    """

    identities: Identities = field(default_factory=Identities)
    produced: list[tuple[Tensor, str]] = field(default_factory=list)
    consumed: list[Tensor] = field(default_factory=list)
    reads: dict[str, Tracked] = field(default_factory=dict)
    masked: dict[str, set[str]] = field(default_factory=dict)
    renormalised: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Call:
    """One operator of the graph, with its arguments by name and the shapes of its results."""

    node: Node
    name: str
    arguments: dict[str, Any]
    shapes: list[tuple[int, ...]]
    notes: Notes

    def __getitem__(self, name: str) -> Any:
        return self.arguments.get(name)

    def operands(self) -> list[Tracked]:
        """All tensors among the arguments, in order."""
        given = self.arguments.values()
        lists = (value if isinstance(value, (list, tuple)) else [value] for value in given)
        return [item for items in lists for item in items if isinstance(item, Tracked)]

    def freeze(self, vector: Tensor | None, reason: str) -> None:
        """Marks identities that cannot be removed because of this operator."""
        if vector is not None:
            self.notes.identities.freeze(vector, Cause(self.name, users_line(self.node), reason))

    def freeze_all(self, vectors: Iterable[Tensor | None], reason: str) -> None:
        for vector in vectors:
            self.freeze(vector, reason)

    def stay(self, x: Tracked, dims: Iterable[int], reason: str) -> tuple[Tensor | None, ...]:
        """The axes of a value, of which some are frozen."""
        fixed = {axis % len(x.shape) for axis in dims}
        self.freeze_all((x.axes[axis] for axis in fixed), reason)
        return tuple(None if axis in fixed else vector for axis, vector in enumerate(x.axes))

    def agree(self, a: Tensor | None, b: Tensor | None) -> Tensor | None:
        """Unites two vectors that must be narrowed alike; if one side is fixed, so is the other."""
        if a is None or b is None:
            self.freeze(a if b is None else b, "it is combined with a tensor of fixed width")
            return None
        if a is not b:
            self.notes.identities.unite(a, b)
        return a

    def contract(self, x: Tracked, axis: int, weight: Tracked, column: int) -> None:
        """`x` is summed over `axis` against the columns of a weight."""
        self.read(x)
        if x.shape[axis] > 1:
            self.agree(x.axes[axis], weight.axes[column])
        self.consume(weight.axes[column])

    def read(self, x: Tracked) -> None:
        """Notes that a mixing operator reads this value: its statistics are collected here."""
        self.mask(x)
        if x.activation and any(vector is not None for vector in x.axes):
            self.notes.reads.setdefault(x.node, x)

    def mask(self, x: Tracked) -> None:
        """Notes that this operator also sums over removed elements of `x`: masking must make them zero."""
        self.notes.masked.setdefault(self.node.name, set()).add(x.node)

    def produce(self, rows: Tensor | None, kind: str) -> None:
        """Notes rows of a weight, each of which produces one unit."""
        if rows is not None:
            self.notes.produced.append((rows, kind))

    def consume(self, columns: Tensor | None) -> None:
        """Notes columns of a weight, each of which reads one unit."""
        if columns is not None:
            self.notes.consumed.append(columns)

    def renormalise(self, *vectors: Tensor | None) -> None:
        """Notes that the result is a reduction over these units: fewer of them give another function."""
        for vector in vectors:
            if vector is not None:
                before = self.notes.renormalised.get(self.node.name, vector[:0])
                self.notes.renormalised[self.node.name] = torch.cat([before, vector])

    def split(self, vector: Tensor | None, groups: int) -> tuple[Tensor | None, Tensor | None]:
        """Splits a vector into groups x members: identities of the groups, and of the ranks within them."""
        if vector is None:
            return None, None
        parts = self.notes.identities.factor(vector.reshape(groups, -1))
        return parts.get(0), parts.get(1)


Result = Tracked | list[Tracked]
Rule = Callable[[Call], Result]


def unknown(call: Call, reason: str = "there is no rule for this operator") -> Result:
    """The rule of operators without a rule: all operands are frozen, and what meets the results."""
    results = [fixed(shape) for shape in call.shapes]
    if any(vector is not None for operand in call.operands() for vector in operand.axes):
        results = [widened(call, result) for result in results]
    call.freeze_all((vector for x in (*call.operands(), *results) for vector in x.axes), reason)
    for operand in call.operands():
        if not operand.activation and operand.axes:
            call.produce(operand.axes[0], "unknown")  # so that it is listed as frozen
    return results


def fixed(shape: tuple[int, ...]) -> Tracked:
    """A value of which no axis can be narrowed."""
    return Tracked(shape, (None,) * len(shape))


def widened(call: Call, x: Tracked) -> Tracked:
    """A value whose fixed axes take the width of their users."""
    axes = [
        call.notes.identities.fresh(size) if size > 1 and vector is None else vector
        for size, vector in zip(x.shape, x.axes, strict=True)
    ]
    return Tracked(x.shape, tuple(axes))


def meet(call: Call, operands: Iterable[Tracked | None], shape: tuple[int, ...]) -> Tracked:
    """The broadcast of `operands` to `shape`; None (no bias) is none of them."""
    given = [x for x in operands if x is not None]
    axes: list[Tensor | None] = []
    for back in range(len(shape), 0, -1):
        vectors = [x.axes[-back] for x in given if len(x.shape) >= back and x.shape[-back] > 1]
        vector = vectors[0] if vectors else None
        for other in vectors[1:]:
            vector = call.agree(vector, other)
        axes.append(vector)
    return Tracked(shape, tuple(axes))


def along_channels(x: Tracked | None, dims: int) -> Tracked | None:
    """A vector of channels, shaped to be broadcast over a (batch, channels, ...) tensor."""
    return x and Tracked((*x.shape, *(1,) * (dims - 2)), (*x.axes, *(None,) * (dims - 2)))
