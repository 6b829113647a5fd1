"""Activation statistics of every unit of a network, over one pass of its data.

Statistics are by group and unit, as pruning needs them: `collect` runs the data through a graph with
observers (`observe`) and reduces what they saw to one row of figures per unit. They
look where a linear layer or a convolution reads a value, after activation, norm and residual sum: what is
zero there can be taken out without loss. A value is measured once, however many operators read it.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from ...targets.errors import ModelError, WorkloadError
from ..pruning.capture import copied
from ..pruning.groups import Group, Groups, Read
from ..training.checkpoint import opened, write_tensors
from .moments import Moments, fold, measure, merge

_FIELDS = ("mean", "std", "mean_abs", "zero_share", "maximum", "count")


@dataclass(frozen=True)
class UnitStatistics:
    """Statistics of a group's units, float64[size] each, over every sample and position of the pass.

    Attributes:
        std: the population standard deviation (over n, not n - 1).
        mean_abs: the mean of the absolute values; equal to the mean after a ReLU.
        zero_share: the share of values that are exactly zero, 0 to 1.
        count: the number of values behind each unit's figures; the smallest, if several operators read it.

    If several operators read a unit, each figure is the most active one: the mean farthest from zero, the
    largest deviation, magnitude and maximum, the smallest share of zeros. So a unit is under a threshold
    only if it is so for every operator, and its removal is an equally small change for all of them.
    """

    mean: Tensor
    std: Tensor
    mean_abs: Tensor
    zero_share: Tensor
    maximum: Tensor
    count: Tensor


@dataclass(frozen=True)
class ActivationStatistics:
    """The statistics of a network's groups, in the order of the forward pass.

    Attributes:
        groups: by the group's name.
        measured: units times batches that were measured.
        shifted: how many of these had a mean far above the deviation and were measured a second time.
    """

    groups: Mapping[str, UnitStatistics]
    measured: int = 0
    shifted: int = 0

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.groups)

    def of(self, name: str) -> UnitStatistics:
        """The statistics of a group.

        Raises:
            ModelError: there is no group of that name.
        """
        if name not in self.groups:
            known = ", ".join(self.groups) or "none"
            raise ModelError(
                f'There are no statistics of the group "{name}"; there are: {known}.',
                "Collect them from the network that is being pruned: "
                'put the stage "statistics" right before the stage that asks for them.',
            )
        return self.groups[name]

    def words(self) -> str:
        units = sum(len(group.mean) for group in self.groups.values())
        twice = f"; {self.shifted / self.measured:.2%} measured twice" if self.shifted else ""
        return f"{units} units in {len(self.groups)} groups{twice}"

    def save(self, path: Path) -> None:
        """Writes a safetensors file; equal statistics give equal bytes."""
        tensors = {
            f"{name}/{one}": getattr(units, one) for name, units in self.groups.items() for one in _FIELDS
        }
        about = {"order": list(self.groups), "measured": self.measured, "shifted": self.shifted}
        # One entry: the format does not keep the order of several, and equal contents must give equal bytes.
        write_tensors(path, tensors, {"statistics": json.dumps(about)})

    @classmethod
    def load(cls, path: Path) -> ActivationStatistics:
        """Reads what `save` wrote.

        Raises:
            ArtifactError: the file is missing, damaged or of another kind.
        """
        with opened(path, "the stage statistics makes it again", "statistics") as (tensors, about):
            groups = {
                name: UnitStatistics(*(tensors[f"{name}/{field}"] for field in _FIELDS))
                for name in about["order"]
            }
            return cls(groups, int(about["measured"]), int(about["shifted"]))


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


def collect(
    groups: Groups, batches: Iterable[Mapping[str, Tensor]], *, progress: Callable[[int], None] | None = None
) -> ActivationStatistics:
    """The statistics of all groups in one pass over `batches`, on the device of the network.

    Args:
        batches: the inputs by the names of the traced example (forward's, if it had none); other tensors
            of a batch are ignored.
        progress: called with the number of batches done, after each.

    Raises:
        WorkloadError: there is no batch with a sample in it, or one does not run through the network.
        ModelError: an activation is NaN or infinite; it names the group.
    """
    graph, observers = observe(groups)
    done = 0
    with torch.inference_mode():
        for done, inputs in enumerate(_inputs(graph, batches, groups), start=1):
            try:
                graph(*inputs)
            except (RuntimeError, ValueError, TypeError, IndexError) as error:
                raise WorkloadError(
                    f"Batch {done}, of shapes {[tuple(value.shape) for value in inputs]}, does not run "
                    f"through the network: {error}",
                    "Let batches() yield inputs like those of example_inputs(), with any number of samples.",
                ) from error
            if progress is not None:
                progress(done)
    if not done:
        cure = "Let the calibration split yield at least one batch with a sample."
        raise WorkloadError("There is no sample to collect statistics from.", cure)
    totals = [observer.total() for observer in observers.values()]
    return ActivationStatistics(
        groups={group.name: _of_group(group, observers) for group in groups if group.reads},
        measured=sum(total.measured for total in totals),
        shifted=sum(total.shifted for total in totals),
    )


def _inputs(
    graph: GraphModule, batches: Iterable[Mapping[str, Tensor]], groups: Groups
) -> Iterator[tuple[Tensor, ...]]:
    """The inputs of each batch in the graph's order and on its device, split to a fixed batch size."""
    # A Sequential calls its input "input"; the example has the user's names.
    names = [str(node.target) for node in graph.graph.nodes if node.op == "placeholder"]
    names = list(groups.example) if isinstance(groups.example, Mapping) else names
    fixed = groups.batch
    tensor = next(itertools.chain(graph.parameters(), graph.buffers()), torch.empty(0))
    for number, batch in enumerate(batches, start=1):
        missing = [name for name in names if name not in batch]
        if missing:
            cure = "Name the tensors of a batch as forward's parameters."
            raise WorkloadError(f"Batch {number} lacks the inputs {missing}; it has {sorted(batch)}.", cure)
        inputs = tuple(batch[name].to(tensor.device) for name in names)
        size = max((len(value) for value in inputs if value.dim()), default=1)
        if size % (fixed or 1):
            raise WorkloadError(
                f"Batch {number} has {size} samples; this network takes {fixed} at a time.",
                f"Let the calibration batches have a multiple of {fixed} samples, "
                "or write forward without a fixed batch size.",
            )
        for start in range(0, size, fixed or size or 1):
            yield tuple(value[start : start + (fixed or size)] if value.dim() else value for value in inputs)


def _of_group(group: Group, observers: Mapping[str, Observer]) -> UnitStatistics:
    found = [(observers[read.node], read.units) for read in group.reads]
    folded = [fold(observer.total(), observer.slots(units), group.size) for observer, units in found]
    count = torch.stack([moments.count for moments in folded])

    def shares(values: list[Tensor], unseen: float) -> Tensor:
        return torch.where(count > 0, torch.stack(values) / count, unseen)

    mean = torch.stack([moments.mean for moments in folded])
    return UnitStatistics(
        mean=mean.gather(0, mean.abs().argmax(0, keepdim=True)).squeeze(0),
        std=shares([moments.deviation for moments in folded], 0.0).sqrt().amax(0),
        mean_abs=shares([moments.magnitude for moments in folded], 0.0).amax(0),
        zero_share=shares([moments.count - moments.nonzero for moments in folded], 1.0).amin(0),
        maximum=torch.stack([moments.maximum for moments in folded]).amax(0),
        count=torch.where(count > 0, count, count.amax(0)).amin(0),
    )
