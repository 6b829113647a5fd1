"""Observers in a network: a copy of its graph that measures what its mixing operators read.

Values are looked at where a linear layer or a convolution reads them: after the activation, the norm, the
residual sum. What is zero there can be taken out without loss; what a convolution puts out before its norm
says little. The copy shares its weights with the original, and each value is measured once, however many
groups live in it and however many operators read it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from ...targets.errors import ModelError
from ..pruning.capture import copied
from ..pruning.groups import Groups, Read
from .moments import Moments, measure, merge

# Merging costs the same for many batches as for two, so it waits until there are some.
_PENDING = 16


class Observer(nn.Module):
    """Stands behind one value in the graph and keeps its moments, a slot for each place along `axes`."""

    def __init__(self, readers: list[tuple[str, Read]]) -> None:
        super().__init__()
        self.readers = readers
        # Counted from the right, where the units of all readers and the value itself line up.
        self.sizes: dict[int, int] = {}
        for _, read in readers:
            for axis, size in enumerate(read.units.shape, start=-read.units.dim()):
                if size > 1:
                    self.sizes[axis] = size
        self.axes = sorted(self.sizes)
        self.seen: list[Moments] = []

    def forward(self, value: Tensor) -> None:
        moments = measure(value, self.axes)
        if not moments.finite:
            raise self._not_finite(moments)
        self.seen.append(moments)
        if len(self.seen) >= _PENDING:
            self.seen = [merge(self.seen)]

    def total(self) -> Moments:
        """All that was seen, by slot."""
        return merge(self.seen)

    def slots(self, units: Tensor) -> Tensor:
        """The unit of each slot: `units` on the grid of all axes kept."""
        shape = [units.shape[axis] if -axis <= units.dim() else 1 for axis in self.axes]
        return units.reshape(shape).expand([self.sizes[axis] for axis in self.axes]).reshape(-1)

    def _not_finite(self, moments: Moments) -> ModelError:
        bad = ~torch.isfinite(moments.deviation)
        theirs = [name for name, read in self.readers if bool(bad[self.slots(read.units) >= 0].any())]
        names = list(dict.fromkeys(theirs or [name for name, _ in self.readers]))
        return ModelError(
            f"The activations of {', '.join(names)} are NaN or infinite in {int(bad.sum())} of {len(bad)} "
            "places, and so is all that follows from them.",
            "Look for NaN in the weights (a training that diverged) and in the calibration data.",
        )


def observe(groups: Groups) -> tuple[GraphModule, dict[str, Observer]]:
    """The graph with an observer behind each value that a group is read at, and these by the node's name."""
    graph = GraphModule(groups.graph, copied(groups.graph.graph))
    readers: dict[str, list[tuple[str, Read]]] = {}
    for group in groups:
        for read in group.reads:
            readers.setdefault(read.node, []).append((group.name, read))
    observers = {}
    for node in list(graph.graph.nodes):
        if node.name in readers:
            observers[node.name] = Observer(readers[node.name])
            name = f"observer_{len(observers)}"
            graph.add_submodule(name, observers[node.name])
            with graph.graph.inserting_after(node):
                graph.graph.call_module(name, (node,))
    graph.recompile()
    return graph, observers
