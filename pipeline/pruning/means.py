"""Mean replacement: adds the mean contribution of removed units to the bias of the layer that read them.

A unit that is nearly constant is not nearly zero: its removal shifts every reader by a constant, which a bias
can absorb (Ye et al. 2018, "Rethinking the smaller-norm-less-informative assumption"). That is exact for a
linear map, and for a convolution without padding; a padded one reads zeros at its border, where the constant
would be wrong, so it is not changed but reported.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Interpreter, Node

from ...export.opened import tensors_of
from ...targets.errors import ModelError
from .calls import Tracked
from .capture import argument_of, operator_name
from .groups import Groups
from .inputs import Example
from .narrow import copied_module, named_tensors
from .plan import plan_of

_MAPS = ("linear", "conv1d", "conv2d", "conv3d")


@dataclass
class _Site:
    """A linear map with dead columns, and the tensor for the constant: a bias, or a batch norm's mean."""

    source: str
    axis: int
    weight: Tensor
    dead: Tensor
    rows: Tensor
    target: str
    sign: int
    total: Tensor = field(default_factory=lambda: torch.zeros(()))
    count: int = 0

    def shift(self) -> Tensor:
        """The mean contribution of the dead columns to each living row."""
        columns = self.weight.double().flatten(2).sum(2) if self.weight.dim() > 2 else self.weight.double()
        return (columns[:, self.dead] @ (self.total / max(self.count, 1))[self.dead])[self.rows]


def fold_means(
    small: nn.Module, groups: Groups, batches: Iterable[Example]
) -> tuple[nn.Module, tuple[str, ...]]:
    """A copy of `small` whose biases have the mean contribution of removed units; and the skipped layers.

    Verify `small` first: by design the copy is no longer the original with the removed units at zero.

    Args:
        small: the result of `apply` for `groups`.
        groups: the trace of the network before it was pruned.
        batches: inputs for the means.

    Raises:
        ModelError: `small` was not cut from the network of `groups`, or there are no batches.
    """
    plan = plan_of(small)
    if plan is None or plan.original != groups.fingerprint:
        cure = "Give the trace that it was pruned with."
        raise ModelError("The network was not pruned from the traced one.", cure)
    sites, skipped = _sites(groups, groups.tracing.alive(plan.removed))
    _measure(groups, sites, batches)
    folded = copied_module(small, {})
    tensors = dict(named_tensors(folded))
    with torch.no_grad():
        for site in sites:
            tensors[site.target] += site.sign * site.shift().to(tensors[site.target])
    return folded, skipped


def _sites(groups: Groups, alive: Tensor) -> tuple[list[_Site], tuple[str, ...]]:
    """The maps with dead columns; and a sentence for each one whose bias cannot absorb the constant."""
    sites: list[_Site] = []
    skipped: list[str] = []
    graph = groups.tracing.graph
    tensors = dict(named_tensors(graph))
    for node in graph.graph.nodes:
        if node.op != "call_function" or operator_name(node) not in _MAPS:
            continue
        source, weight = argument_of(node, "input"), argument_of(node, "weight")
        value = groups.tracing.values.get(source.name)
        if not isinstance(value, Tracked) or weight.op != "get_attr":
            continue
        kernel = tensors[weight.target].dim() - 2
        axis = len(value.shape) - 1 - kernel
        vector = value.axes[axis]
        if vector is None or bool(alive[vector].all()):
            continue
        target, sign, reason = _home(node, weight)
        if reason:
            skipped.append(f"{weight.target}: {reason}")
            continue
        result = groups.tracing.values[node.name]
        assert isinstance(result, Tracked)
        rows = result.axes[axis]
        living = torch.ones(len(tensors[weight.target]), dtype=torch.bool) if rows is None else alive[rows]
        values = tensors[weight.target].detach()
        sites.append(_Site(source.name, axis, values, ~alive[vector], living, target, sign))
    return sites, tuple(skipped)


def _home(node: Node, weight: Node) -> tuple[str, int, str]:
    """The tensor that absorbs the constant, and the sign; or the reason why there is none."""
    if len(weight.users) > 1:
        return "", 0, "it is used more than once, with other inputs"
    if operator_name(node) != "linear":
        padding = argument_of(node, "padding")
        if argument_of(node, "groups") > 1:
            return "", 0, "it is a grouped convolution"
        if padding not in ("valid", 0) and any(padding):
            return "", 0, "it pads with zeros, which are not the mean"
    bias = argument_of(node, "bias")
    if isinstance(bias, Node) and bias.op == "get_attr":
        return (str(bias.target), 1, "") if len(bias.users) == 1 else ("", 0, "its bias is shared")
    (user, *others) = node.users
    if not others and operator_name(user) == "batch_norm":
        mean = argument_of(user, "running_mean")
        if isinstance(mean, Node) and len(mean.users) == 1:
            return str(mean.target), -1, ""
    return "", 0, "it has no bias"


def _measure(groups: Groups, sites: Sequence[_Site], batches: Iterable[Example]) -> None:
    """Sums the inputs of each site, over the batch and all positions."""
    wanted = {site.source: [one for one in sites if one.source == site.source] for site in sites}
    run = _Sums(groups, wanted)
    seen = 0
    with torch.no_grad():
        for batch in batches:
            run.run(*tensors_of(batch))
            seen += 1
    if not seen:
        raise ModelError("There are no batches for the means.", "Give at least one batch of inputs.")


class _Sums(Interpreter):
    def __init__(self, groups: Groups, wanted: Mapping[str, Sequence[_Site]]) -> None:
        super().__init__(groups.tracing.graph)
        self.wanted = wanted

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        for site in self.wanted.get(n.name, ()):
            other = [axis for axis in range(value.dim()) if axis != site.axis]
            site.total = site.total + value.double().sum(other)
            site.count += value.numel() // value.shape[site.axis]
        return value
