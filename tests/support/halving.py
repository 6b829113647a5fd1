"""What most tests of the pruning core begin with: half of each group removed, and operators one at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph

from deadweight.pipeline.pruning.calls import Call, Notes, Tracked
from deadweight.pipeline.pruning.groups import Groups, choose
from deadweight.pipeline.pruning.identities import Solution
from deadweight.pipeline.pruning.plan import Plan, plan_of
from deadweight.pipeline.pruning.surgery import apply
from deadweight.pipeline.pruning.trace import trace


def halved(model: nn.Module, example: Tensor, form: str = "") -> tuple[Any, Plan, Groups]:
    """The network without half of each group, drawn at random; what was planned; the trace."""
    groups = trace(model, (example,))
    plan = half_of(groups)
    return apply(model, plan, groups, form=form), plan, groups


def half_of(groups: Groups, seed: int = 3) -> Plan:
    """Half of each group, drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    return choose(groups, {one.name: torch.rand(one.size, generator=generator) for one in groups}, ratio=0.5)


def done(model: nn.Module) -> Plan:
    """The plan that was carried out."""
    plan = plan_of(model)
    assert plan is not None
    return plan


class Between(nn.Module):
    """A linear layer to some units, an operator over them, a linear layer that reads its result.

    Values between are (batch, tokens, units).
    """

    def __init__(self, operator: Callable[[Tensor], Tensor], units: int = 12, after: int = 12) -> None:
        super().__init__()
        self.before, self.after = nn.Linear(5, units), nn.Linear(after, 3)
        self.operator = operator

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.after(self.operator(self.before(x)))
        return out


class Axes:
    """Values with identities on some of their axes, and calls of operators on them, without a network."""

    def __init__(self) -> None:
        self.notes = Notes()
        self.count = 0

    def value(self, *shape: int, free: tuple[int, ...] = (), weight: bool = False) -> Tracked:
        """A tensor of this shape whose `free` axes may be narrowed; all of a weight's may."""
        axes = range(len(shape)) if weight else free
        fresh = self.notes.identities.fresh
        vectors = tuple(fresh(size) if axis in axes else None for axis, size in enumerate(shape))
        self.count += 1
        return Tracked(shape, vectors, f"value_{self.count}", activation=not weight)

    def call(self, operator: Any, *arguments: Any, shape: tuple[int, ...] = ()) -> Call:
        """A call of an ATen overload, as a rule gets it; the operator is run for the shapes of its results,
        unless `shape` tells that of its one result."""
        schema = operator._schema.arguments
        given = dict(zip((one.name for one in schema), arguments, strict=False))
        shapes = [shape] if shape else _shapes(operator(*_plain(list(arguments))))
        node = Graph().call_function(operator)
        named = {one.name: _known(given.get(one.name, one.default_value)) for one in schema}
        return Call(node, operator._schema.name.split("::")[1], named, shapes, self.notes)

    def solve(self) -> Solution:
        return self.notes.identities.solve()

    def together(self, *vectors: Tensor | None) -> bool:
        """Whether the vectors are narrowed alike, index by index."""
        of = self.solve().of
        known = [of[vector] for vector in vectors if vector is not None]
        return len(known) == len(vectors) and all(torch.equal(known[0], one) for one in known)

    def stays(self, vector: Tensor | None) -> list[bool]:
        """For each identity whether it can never be removed."""
        assert vector is not None
        solution = self.solve()
        return [int(cls) in solution.causes for cls in solution.of[vector]]


def one(result: Tracked | list[Tracked]) -> Tracked:
    """The only value that a rule returned."""
    if isinstance(result, Tracked):
        return result
    (single,) = result
    return single


def vector(x: Tracked, axis: int) -> Tensor:
    """The identities along an axis that may be narrowed."""
    found = x.axes[axis]
    assert found is not None
    return found


def free(x: Tracked) -> list[bool]:
    """For each axis whether it may be narrowed."""
    return [found is not None for found in x.axes]


def _known(value: Any) -> Any:
    """A tensor among the arguments is a constant of the graph."""
    if isinstance(value, Tensor):
        return Tracked(tuple(value.shape), (None,) * value.dim(), "constant", value=value)
    return [_known(item) for item in value] if isinstance(value, list) else value


def _shapes(results: Any) -> list[tuple[int, ...]]:
    return [tuple(x.shape) for x in (results if isinstance(results, (list, tuple)) else [results])]


def _plain(value: Any) -> Any:
    if isinstance(value, Tracked):
        return torch.zeros(value.shape)
    return [_plain(item) for item in value] if isinstance(value, list) else value
