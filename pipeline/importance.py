"""What a neuron is worth: a criterion is one function, `(group, context) -> scores`, higher is kept.

A group may be produced by several layers and read by several others. Wherever a criterion looks at weights,
the members of a group are combined in one way: their norms add, unit by unit, over all producers. A user's
own criterion has the same signature and is named by its dotted path.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..targets.errors import RecipeError
from .groups import Group
from .statistics import ActivationStatistics, UnitStatistics

CRITERIA = ("activation", "mean_activation", "zero_share", "magnitude_l1", "magnitude_l2", "random")


@dataclass(frozen=True)
class Context:
    """What a criterion may look at.

    Attributes:
        model: the network that is to be pruned; `named_parameters` gives a slice's weights.
        statistics: of its activations; None where the stage "statistics" was not run.
        seed: of the run.
    """

    model: nn.Module
    statistics: ActivationStatistics | None = None
    seed: int = 0


Criterion = Callable[[Group, Context], Tensor]


def below(units: UnitStatistics, *, mean: float, std: float) -> Tensor:
    """bool[size]: the neurons whose mean and deviation are both at or below the thresholds, in magnitude."""
    return (units.mean.abs() <= mean) & (units.std <= std)


def activation(group: Group, context: Context) -> Tensor:
    """The root mean square of the activation: small exactly if mean and deviation both are."""
    units = _units(group, context)
    return (units.mean**2 + units.std**2).sqrt()


def mean_activation(group: Group, context: Context) -> Tensor:
    """The magnitude of the mean activation (Molchanov et al. 2017, section 2.2)."""
    return _units(group, context).mean.abs()


def zero_share(group: Group, context: Context) -> Tensor:
    """How often the neuron is not zero: one minus APoZ (Hu et al. 2016, "Network Trimming")."""
    return 1 - _units(group, context).zero_share


def magnitude_l1(group: Group, context: Context) -> Tensor:
    """The sum of the magnitudes of the producing weights (Li et al. 2017)."""
    return _over_producers(group, context, lambda rows: rows.abs().sum(1))


def magnitude_l2(group: Group, context: Context) -> Tensor:
    """The Euclidean norm of the producing weights (He et al. 2018, "Soft Filter Pruning")."""
    return _over_producers(group, context, lambda rows: rows.square().sum(1)).sqrt()


def random(group: Group, context: Context) -> Tensor:
    """The control: scores drawn by the seed and the group's name, whatever the order of the groups."""
    generator = torch.Generator().manual_seed(context.seed * 0x9E3779B1 + zlib.crc32(group.name.encode()))
    return torch.rand(group.size, generator=generator, dtype=torch.float64)


def _units(group: Group, context: Context) -> UnitStatistics:
    if context.statistics is None:
        raise RecipeError(
            "This criterion looks at activations, and no statistics were taken.",
            'Put the stage "statistics" before the stage "prune".',
        )
    return context.statistics.of(group.name)


def _over_producers(group: Group, context: Context, norm: Callable[[Tensor], Tensor]) -> Tensor:
    """The sum over all producing slices of a norm of each index' weights, by unit."""
    tensors = dict(context.model.named_parameters(remove_duplicate=False))
    total = torch.zeros(group.size, dtype=torch.float64)
    for piece in group.slices:
        if piece.role == "producer" and piece.parameter in tensors:
            weights = tensors[piece.parameter].detach().double().cpu().transpose(0, piece.axis)
            mine = piece.units >= 0
            total.index_add_(0, piece.units[mine], norm(weights.reshape(len(weights), -1))[mine])
    return total
