"""Observers: a copy of a network's graph that measures what its linear layers and convolutions read.

Values are measured at the input of a linear layer or convolution: after the activation, the norm, the
residual sum. A unit that is zero there can be removed without loss; the output of a convolution before its
norm says little. The copy shares its weights with the original, and each value is measured once, however
many groups it has and however many operators read it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from ...targets.errors import ModelError
from ..pruning.capture import copied
from ..pruning.groups import Groups, Read
from .moments import Moments, measure, merge

# Merging costs the same for many batches as for two, so it is done for several at once.
_PENDING = 16


class Observer(nn.Module):
    """Follows one value in the graph and accumulates its moments, one slot per position along `axes`."""

    def __init__(self, readers: list[tuple[str, Read]]) -> None:
        super().__init__()
        self.readers = readers
        # Counted from the right, where the axes of all readers and of the value correspond.
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
        """The moments of all batches, by slot."""
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
            "places, and so is all that is computed from them.",
            "Look for NaN in the weights (a training that diverged) and in the calibration data.",
        )


def observe(groups: Groups) -> tuple[GraphModule, dict[str, Observer]]:
    """The graph with an observer after each value where a group is read; the observers by node name."""
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
