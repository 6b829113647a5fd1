"""The stage "statistics": what every neuron does over a calibration pass.

A neuron is judged where it is read: behind its activation, norm or residual sum, at the input of the next
layer that mixes channels. Observers are put into the traced graph at exactly these places, so that any
network that can be traced can be measured, whatever modules it is made of. One pass over any number of
batches, memory of a few numbers a neuron (`moments`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.fx import GraphModule

from ..targets.errors import ModelError, WorkloadError
from .capture import copied
from .groups import Group, Groups, Read
from .moments import Moments, fold, measure, merge
from .trace import trace
from .work import Work, write_tensors
from .workload import example_batch, inputs_of


@dataclass(frozen=True)
class UnitStatistics:
    """One entry a unit of a group, float64.

    Attributes:
        mean, std: of the activation; the deviation is the population's.
        zero_share: the share of values that are exactly zero, 0 to 1.
        maximum: the largest value seen.
        count: how many values were seen.
    """

    mean: Tensor
    std: Tensor
    zero_share: Tensor
    maximum: Tensor
    count: Tensor

    @classmethod
    def of(cls, moments: Moments) -> UnitStatistics:
        """The statistics that accumulated moments amount to."""
        count = moments.count.clamp_min(1)
        return cls(
            mean=moments.mean,
            std=(moments.deviation / count).sqrt(),
            zero_share=1 - moments.nonzero / count,
            maximum=moments.maximum,
            count=moments.count,
        )


@dataclass(frozen=True)
class ActivationStatistics:
    """The statistics of every group of a network.

    Attributes:
        groups: by group's name.
        shifted: the share of measured slots that needed a second, shifted pass.
    """

    groups: Mapping[str, UnitStatistics]
    shifted: float = 0.0

    @property
    def names(self) -> tuple[str, ...]:
        """The groups that were measured."""
        return tuple(self.groups)

    def of(self, group: str) -> UnitStatistics:
        """The statistics of a group.

        Raises:
            ModelError: it was not measured.
        """
        if group not in self.groups:
            raise ModelError(
                f'There are no statistics of the group "{group}"; there are of {", ".join(self.groups)}.',
                'Let the stage "statistics" run on the network that is to be pruned.',
            )
        return self.groups[group]

    def save(self, path: Path) -> None:
        """Writes a safetensors file; equal statistics are equal bytes."""
        tensors = {
            f"{name}/{key}": value
            for name, units in self.groups.items()
            for key, value in vars(units).items()
        }
        write_tensors(path, {**tensors, "shifted": torch.tensor(self.shifted, dtype=torch.float64)})

    @classmethod
    def load(cls, path: Path) -> ActivationStatistics:
        """The inverse of `save`."""
        tensors = load_file(path)
        shifted = float(tensors.pop("shifted"))
        groups: dict[str, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            group, _, key = name.rpartition("/")
            groups.setdefault(group, {})[key] = value
        return cls({group: UnitStatistics(**values) for group, values in groups.items()}, shifted)


@dataclass(frozen=True)
class Statistics:
    """Measures the newest network's activations; the result is the artifact "statistics".

    Attributes:
        split: the split that is run through the network.
    """

    split: str = "calibration"

    def __call__(self, work: Work) -> Work:
        groups = trace(work.model(), example_batch(work.workload))
        batches = inputs_of(work.workload, self.split)
        statistics = collect(groups, batches, progress=lambda done: work.progress(done, 0, "statistics"))
        path = work.directory / "statistics.safetensors"
        statistics.save(path)
        silent = sum(int((statistics.of(name).maximum <= 0).sum()) for name in statistics.names)
        units = sum(group.size for group in groups)
        words = f"{units} neurons in {len(groups)} groups, {silent} never fire"
        return work.with_artifact("statistics", path).logged("statistics", self, words)


def collect(
    groups: Groups,
    batches: Iterable[Mapping[str, Tensor]],
    *,
    progress: Callable[[int], None] = lambda done: None,
) -> ActivationStatistics:
    """The statistics of every group over some batches, in one pass.

    A group that is read in several places is judged, unit by unit, where the unit is most alive (where its
    mean square is largest): a neuron may go only if nobody hears it.

    Args:
        batches: inputs by name, in the order of forward's parameters.
        progress: called with the number of batches done.

    Raises:
        ModelError: an activation is NaN or infinite; the group is named.
        WorkloadError: there are no batches.
    """
    seen: dict[tuple[str, tuple[int, ...]], Moments] = {}

    def observe(node: str, axes: tuple[int, ...], value: Tensor) -> None:
        found = measure(value, axes)
        key = (node, axes)
        seen[key] = merge([seen[key], found]) if key in seen else found

    graph = _observed(groups, observe)
    done = 0
    with torch.inference_mode():
        for inputs in _fitting(batches, groups.batch):
            graph(*inputs)
            done += 1
            progress(done)
    if not done:
        raise WorkloadError("There were no batches to take statistics from.", "Give at least one batch.")
    measured = sum(moments.measured for moments in seen.values())
    shifted = sum(moments.shifted for moments in seen.values())
    return ActivationStatistics(
        {group.name: _of_group(group, seen) for group in groups if group.reads}, shifted / max(measured, 1)
    )


def _observed(groups: Groups, observe: Callable[[str, tuple[int, ...], Tensor], None]) -> GraphModule:
    """A copy of the graph that calls `observe` behind every node that is read."""
    graph = copied(groups.graph.graph)
    nodes = {node.name: node for node in graph.nodes}
    for name, axes in dict.fromkeys((read.node, _axes(read)) for group in groups for read in group.reads):
        with graph.inserting_after(nodes[name]):
            graph.call_function(observe, (name, axes, nodes[name]))
    return GraphModule(groups.graph, graph)


def _axes(read: Read) -> tuple[int, ...]:
    """The axes along which a read's units differ."""
    return tuple(axis for axis, size in enumerate(read.units.shape) if size > 1)


def _of_group(group: Group, seen: Mapping[tuple[str, tuple[int, ...]], Moments]) -> UnitStatistics:
    best: Moments | None = None
    for read in group.reads:
        moments = fold(seen[read.node, _axes(read)], read.units.reshape(-1), group.size)
        if not moments.finite:
            raise ModelError(
                f'The activations of the group "{group.name}" hold NaN or infinity.',
                "Look for a diverged training or an overflow before pruning this network.",
            )
        best = moments if best is None else _livelier(best, moments)
    assert best is not None
    return UnitStatistics.of(best)


def _livelier(first: Moments, second: Moments) -> Moments:
    """Unit by unit, the moments with the larger mean square."""

    def power(moments: Moments) -> Tensor:
        square = moments.mean**2 + moments.deviation / moments.count.clamp_min(1)
        return torch.where(moments.count > 0, square, -math.inf)

    later = power(second) > power(first)
    chosen = {
        name: torch.where(later, getattr(second, name), getattr(first, name))
        for name in ("count", "mean", "deviation", "magnitude", "nonzero", "maximum")
    }
    return Moments(
        **chosen, measured=first.measured + second.measured, shifted=first.shifted + second.shifted
    )


def _fitting(batches: Iterable[Mapping[str, Tensor]], fixed: int | None) -> Iterator[list[Tensor]]:
    """The inputs of each batch; cut to size, and what is left over dropped, where the batch is fixed."""
    for batch in batches:
        inputs = list(batch.values())
        if fixed is None:
            yield inputs
            continue
        for start in range(0, len(inputs[0]) - fixed + 1, fixed):
            yield [value[start : start + fixed] for value in inputs]
