"""What the loss says of each unit: its slope along a factor that stands in front of the unit.

A factor of one leaves a unit as it is and zero takes it out, so the slope at one is the first-order guess of
what its removal costs. The factor stands where the unit is read: then one number covers a residual stream
with many producers, and the slope is the product of each reader's weights and their gradient, summed. A unit
that no parameter reads (queries and keys meet each other) has it in front of what makes it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...targets.errors import ModelError
from ..pruning.groups import Group, Groups
from ..pruning.narrow import copied_module
from ..workload import Workload, example_batch, split_batches, users_code


@dataclass(frozen=True)
class Gradients:
    """Gradients of a workload's loss over its calibration split, taken when they are first asked for.

    Attributes:
        groups: the trace of `model`.
    """

    model: nn.Module
    groups: Groups
    workload: Workload

    def batches(self) -> Iterator[dict[str, Tensor]]:
        """Of each batch, the gradient of the loss by the parameter's name.

        The network runs as in training, since that is what a loss is written for, but its norms and dropouts
        as in use, since that is the network that is pruned.

        Raises:
            ModelError: the loss is NaN or infinite.
        """
        model = copied_module(self.model, {}).train()
        for module in model.modules():
            if isinstance(module, (nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd)):
                module.eval()
        parameters = {
            name: parameter.requires_grad_()
            for name, parameter in model.named_parameters()
            if parameter.is_floating_point()
        }
        names = list(example_batch(self.workload))
        for number, batch in enumerate(split_batches(self.workload, "calibration"), start=1):
            with users_code("loss() was called on a calibration batch"):
                loss = self.workload.loss(model(*(batch[name] for name in names)), batch)
            if not bool(torch.isfinite(loss)):
                raise ModelError(
                    f"The loss is {loss.item()} on calibration batch {number}.",
                    "Look for NaN in the weights and in the calibration data.",
                )
            found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
            yield {name: one for name, one in zip(parameters, found, strict=True) if one is not None}

    @functools.cached_property
    def slopes(self) -> Mapping[str, Tensor]:
        """By group, the slope along a factor in front of each unit: float64[batches, size]."""
        weights = dict(self.model.named_parameters(remove_duplicate=False))
        by_group: dict[str, list[Tensor]] = {group.name: [] for group in self.groups}
        for gradients in self.batches():
            for group in self.groups:
                by_group[group.name].append(_slope(group, weights, gradients))
        return {name: torch.stack(slopes) for name, slopes in by_group.items()}


def _slope(group: Group, weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> Tensor:
    read = any(piece.role == "consumer" and piece.parameter in gradients for piece in group.slices)
    slope = torch.zeros(group.size, dtype=torch.float64)
    for piece in group.slices:
        if piece.role == ("consumer" if read else "producer") and piece.parameter in gradients:
            product = weights[piece.parameter].detach().double() * gradients[piece.parameter].double()
            each = product.movedim(piece.axis, 0).flatten(1).sum(1).cpu()
            mine = piece.units >= 0
            slope.index_add_(0, piece.units[mine], each[mine])
    return slope
