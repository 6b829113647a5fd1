"""The groups of a pruned network without another capture: they follow from the original's and the plan.

Removing more of a pruned network is removing both at once from its original, so what its trace found holds
for what lives: the graph is resized, and vectors of identities lose what was cut. That the network still
computes this graph is tried on one sample, as its code may have been changed.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Mapping
from functools import partial

from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Interpreter
from torch.utils import _pytree as pytree

from .assemble import grouped
from .calls import Tracked
from .capture import first_samples
from .compare import compared, run, run_graph
from .groups import Groups, Tracing
from .narrow import named_tensors
from .plan import Cut, fingerprint, plan_of
from .resize import resized


def following(model: nn.Module, groups: Groups) -> Groups | None:
    """The groups of a network that was cut from the traced one, or that has its shapes; None if they do not
    follow: it was made in another way, its code has changed, or a width has become one, which a rule may
    read as no width.
    """
    plan, tensors = plan_of(model), dict(named_tensors(model))
    if plan and plan.original == groups.fingerprint and plan.form in ("module", "graph") and not plan.dropped:
        cut = plan.cut
    elif fingerprint(model) == groups.fingerprint:
        cut = {}
    else:
        return None
    try:
        tracing = _narrowed(groups.tracing, cut, tensors)
        pairs = [(kind, _narrowed(held, cut, tensors)) for kind, held in groups.captures.items()]
        if tracing is None or not _computes(model, tracing.graph, groups):
            return None
    except Exception:  # the user's code, or tensors on another device: a new trace says what is wrong
        return None
    found = grouped(tracing, groups.example, groups.batch, fingerprint(model))
    return dataclasses.replace(found, captures={kind: one for kind, one in pairs if one})


def _narrowed(tracing: Tracing, cut: Cut, tensors: Mapping[str, Tensor]) -> Tracing | None:
    """The same for the network with these tensors; None if they do not fit, or a width has become one."""
    alive = tracing.living(cut)
    living, notes = _Living(alive), tracing.notes
    shapes = {
        name: tuple(size - len(cut.get(name, {}).get(axis, ())) for axis, size in enumerate(shape))
        for name, shape in tracing.shapes.items()
    }
    graph = _with_tensors(tracing.graph, resized(tracing, alive)[0], tensors)
    held = {str(node.target) for node in graph.graph.nodes if node.op == "get_attr"} | shapes.keys()
    if not tensors.keys() <= held or any(tensors[name].shape != shape for name, shape in shapes.items()):
        return None
    learner = tracing.learner and _narrowed(tracing.learner, cut, tensors)
    found = dataclasses.replace(
        tracing,
        graph=graph,
        values=pytree.tree_map(living.value, dict(tracing.values)),
        slots={place: living.vector(vector) for place, vector in tracing.slots.items()},
        shapes=shapes,
        units={name: living.vector(units) for name, units in tracing.units.items()},
        notes=dataclasses.replace(
            notes,
            produced=[(living.vector(rows), kind) for rows, kind in notes.produced],
            consumed=[living.vector(columns) for columns in notes.consumed],
            reads={name: living.value(one) for name, one in notes.reads.items()},
            renormalised={name: living.vector(over) for name, over in notes.renormalised.items()},
        ),
        learner=learner,
    )
    return None if living.flat or (tracing.learner and not learner) else found


class _Living:
    """Facts on what lives; `flat` is set where fewer than two identities are left of several."""

    def __init__(self, alive: Tensor) -> None:
        self.alive, self.flat = alive, False
        self._left: dict[int, tuple[Tensor, Tensor]] = {}

    def vector(self, vector: Tensor) -> Tensor:
        if id(vector) not in self._left:
            left = vector[self.alive[vector]]
            self.flat |= len(left) < 2 <= len(vector)
            self._left[id(vector)] = vector, left
        return self._left[id(vector)][1]

    def value(self, value: Tracked) -> Tracked:
        axes = tuple(None if axis is None else self.vector(axis) for axis in value.axes)
        sizes = zip(value.shape, axes, strict=True)
        shape = tuple(size if axis is None else len(axis) for size, axis in sizes)
        return dataclasses.replace(value, shape=shape, axes=axes)


def _with_tensors(captured: GraphModule, graph: Graph, tensors: Mapping[str, Tensor]) -> GraphModule:
    """A resized graph with a network's own tensors, and the constants of the captured one."""
    names = {str(node.target) for node in graph.nodes if node.op == "get_attr"}
    held = {name: tensors[name] if name in tensors else operator.attrgetter(name)(captured) for name in names}
    module = GraphModule(held, graph)
    module.meta.update(captured.meta)
    return module


def _computes(model: nn.Module, graph: GraphModule, groups: Groups) -> bool:
    inputs = first_samples(model, groups.example, graph.graph)
    return compared(partial(run, model, inputs), partial(run_graph, Interpreter(graph), inputs)).same
