"""Gradients of the loss with respect to a gate in front of each unit.

A gate of one keeps a unit and zero removes it, so the slope at one is the first-order estimate of the cost of
removal. The gate is where the unit is read: one number then covers a residual stream with many producers, and
the slope is the sum over readers of weights times their gradient. If no parameter reads the unit (queries and
keys multiply each other), the gate is at its producer.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...targets.errors import ModelError, users_code
from ..pruning.contexts import Undropped, seeded
from ..pruning.groups import Group, Groups
from ..pruning.narrow import copied_module
from ..workload import Workload, example_batch, split_batches


@dataclass(frozen=True)
class Gradients:
    """Gradients of a workload's loss over its calibration split, computed when first needed.

    Attributes:
        groups: the trace of `model`.
    """

    model: nn.Module
    groups: Groups
    workload: Workload

    def batches(self) -> Iterator[dict[str, Tensor]]:
        """For each batch, the gradient of the loss by the parameter's name.

        The network is in training mode, for which a loss is written, but its norms are in eval mode and its
        dropouts of every kind are off, because that is the network to prune. Other random numbers are seeded,
        and the random state is restored.

        Raises:
            ModelError: the loss is NaN or infinite.
        """
        model = copied_module(self.model, {}).train()
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._NormBase):
                module.eval()
            elif isinstance(module, nn.RNNBase):
                module.dropout = 0.0  # cuDNN needs its training mode for gradients
        named = model.named_parameters()
        parameters = {name: one.requires_grad_() for name, one in named if one.is_floating_point()}
        names = list(example_batch(self.workload))
        for number, batch in enumerate(split_batches(self.workload, "calibration"), start=1):
            with seeded(number, parameters.values()), Undropped():
                with users_code("loss() was called on a calibration batch"):
                    loss = self.workload.loss(model(*(batch[name] for name in names)), batch)
                found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
            if not bool(torch.isfinite(loss)):
                cure = "Look for NaN in the weights and in the calibration data."
                raise ModelError(f"The loss is {loss.item()} on calibration batch {number}.", cure)
            yield {name: one for name, one in zip(parameters, found, strict=True) if one is not None}

    @functools.cached_property
    def slopes(self) -> Mapping[str, Tensor]:
        """By group, the slope along a gate in front of each unit: float64[batches, size]."""
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
