"""Pruning criteria: each is one function `(group, context) -> scores` that rates the units of a group.

Scores are float64, one per unit; the highest stay. A user's own criterion is a function of the same two
arguments, named by its dotted path. A group may have several producers and readers (a residual stream), and
every criterion combines them in the same way: activations by the most active figure (see `UnitStatistics`);
weights as one long vector over all producers, or all readers; the loss by its slope along one gate in front
of the unit for all readers (see `gradients`).
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...targets.errors import ModelError, RecipeError
from ..pruning.groups import Group
from .activations import ActivationStatistics, UnitStatistics
from .gradients import Gradients


@dataclass(frozen=True)
class Context:
    """The data that a criterion may use.

    Attributes:
        model: the network that was traced.
        statistics: of its activations; None where none were collected.
        seed: for random draws.
        gradients: of the loss, over the calibration split; None without a workload.
    """

    model: nn.Module
    statistics: ActivationStatistics | None = None
    seed: int = 0
    gradients: Gradients | None = None

    def activations(self, group: Group) -> UnitStatistics:
        """The statistics of a group.

        Raises:
            RecipeError: none were collected.
            ModelError: they are of another network.
        """
        if self.statistics is None:
            raise RecipeError(
                f'This criterion needs the activations of "{group.name}", but no statistics were collected.',
                'Put the stage "statistics" before the stage prune, or choose a criterion of the weights: '
                "weight_l1 or weight_l2.",
            )
        found = self.statistics.of(group.name)
        if len(found.mean) != group.size:
            raise ModelError(
                f'The statistics of "{group.name}" are of {len(found.mean)} units, not of its {group.size}.',
                "Collect the statistics again, from the network that is being pruned.",
            )
        return found

    def slopes(self, group: Group) -> Tensor:
        """By batch, the slope of the loss along a gate in front of each unit: float64[batches, size].

        Raises:
            RecipeError: there is no workload that has a loss.
        """
        if self.gradients is None:
            raise RecipeError(
                f'This criterion needs the slope of the loss at "{group.name}", but no gradients were given.',
                "Give batches and loss(outputs, batch) to deadweight.criteria, or prune by a recipe.",
            )
        return self.gradients.slopes[group.name]

    def weights(self, name: str) -> Tensor:
        """A parameter or buffer by its name in the model.

        Raises:
            ModelError: there is none.
        """
        if name not in self._tensors:
            cure = "Give the network from which the groups were traced."
            raise ModelError(f'The network has no parameter "{name}".', cure)
        return self._tensors[name].detach()

    def has(self, name: str) -> bool:
        return name in self._tensors

    @functools.cached_property
    def _tensors(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = dict(self.model.named_buffers(remove_duplicate=False))
        return found | dict(self.model.named_parameters(remove_duplicate=False))


Criterion = Callable[[Group, Context], Tensor]

OF_ACTIVATIONS = ("activation", "activation_std", "activation_outgoing", "mean_absolute", "apoz")
CRITERIA = (
    *OF_ACTIVATIONS,
    *("weight_l1", "weight_l2", "batch_norm", "taylor", "geometric_median", "lamp", "random"),
)
"""The names of the built-in criteria, for messages; a dotted path names any other."""


def below(statistics: UnitStatistics, *, mean: float, std: float) -> Tensor:
    """Which units are dead, bool[size]: mean and standard deviation both at or under their thresholds.

    Such a unit is always near zero, so that its removal changes little; a unit with a small deviation around
    a large mean acts as a bias and stays. A unit that was never computed does not count as dead.

    Raises:
        RecipeError: a threshold is negative or NaN.
    """
    for name, threshold in (("mean", mean), ("std", std)):
        if not threshold >= 0:
            cure = "Give a number of 0 or more, in the units of the activations."
            raise RecipeError(f"The threshold {name} is {threshold}.", cure)
    return (statistics.mean.abs() <= mean) & (statistics.std <= std) & (statistics.count > 0)


def activation(group: Group, context: Context) -> Tensor:
    """The distance of (mean, standard deviation) from (0, 0): the root mean square of the activation.

    `below` as a ranking instead of two thresholds: the units nearest to a constant zero are removed first.
    """
    found = context.activations(group)
    return torch.hypot(found.mean, found.std)


def activation_std(group: Group, context: Context) -> Tensor:
    """The standard deviation of the activation: nearly constant units are removed first, whatever their mean.

    A constant unit acts as a bias, and `means = true` of the stage prune adds it to the readers' biases.
    """
    return context.activations(group).std.clone()


def activation_outgoing(group: Group, context: Context) -> Tensor:
    """The root mean square of the activation times the Euclidean norm of the weights that read it.

    An upper bound on the mean change of the readers when the unit is removed. Its square is the second moment
    of the activation times the weights' energy: the diagonal of Luo et al. 2017, "ThiNet", unit by unit.
    """
    found = context.activations(group)
    return torch.hypot(found.mean, found.std) * _sums(group, context, torch.square, "consumer").sqrt()


def mean_absolute(group: Group, context: Context) -> Tensor:
    """The mean absolute activation (Molchanov et al. 2017, "Pruning Convolutional Neural Networks")."""
    return context.activations(group).mean_abs.clone()


def apoz(group: Group, context: Context) -> Tensor:
    """The share of activations that are not zero.

    One minus APoZ, the average percentage of zeros (Hu et al. 2016, "Network Trimming"). It is meaningful
    only after a ReLU: other activations are almost never exactly zero.
    """
    return 1 - context.activations(group).zero_share


def weight_l1(group: Group, context: Context) -> Tensor:
    """The sum of the magnitudes of a unit's incoming weights (Li et al. 2017, "Pruning Filters")."""
    return _sums(group, context, torch.abs)


def weight_l2(group: Group, context: Context) -> Tensor:
    """The Euclidean norm of a unit's incoming weights (Han et al. 2015, "Learning both Weights")."""
    return _sums(group, context, torch.square).sqrt()


def batch_norm(group: Group, context: Context) -> Tensor:
    """The magnitude of a unit's batch-norm scales (Liu et al. 2017, "Network Slimming").

    Raises:
        ModelError: no batch norm scales the units of this group.
    """
    squares, found = torch.zeros(group.size, dtype=torch.float64), False
    for piece in group.slices:
        place, _, name = piece.parameter.rpartition(".")
        if name == "weight" and context.has(f"{place}.running_var".lstrip(".")) and piece.role == "affine":
            mine, scale = piece.units >= 0, context.weights(piece.parameter).double().cpu()
            squares.index_add_(0, piece.units[mine], scale[mine].square())
            found = True
    if not found:
        cure = "Choose another criterion: this one needs a batch norm after every layer."
        raise ModelError(f'No batch norm scales the units of "{group.name}".', cure)
    return squares.sqrt()


def taylor(group: Group, context: Context) -> Tensor:
    """The squared first-order change of the loss when a unit is removed, averaged over the batches.

    Molchanov et al. 2019, "Importance Estimation for Neural Network Pruning", with the gate in front of the
    unit's readers: equal to the slope along the activation times the activation (their paper of 2017).
    """
    return context.slopes(group).square().mean(0)


def geometric_median(group: Group, context: Context) -> Tensor:
    """The sum of distances to the weights of all other units: units that others can replace go first.

    He et al. 2019, "Filter Pruning via Geometric Median".
    """
    squares = torch.zeros(group.size, group.size, dtype=torch.float64)
    for vectors in _vectors(group, context):
        squares += torch.cdist(vectors, vectors).square()
    return squares.sqrt().sum(1)


def lamp(group: Group, context: Context) -> Tensor:
    """The squared weight norm as a share of that of all units at least as heavy (Lee et al. 2021, "LAMP").

    Within a group this is the order of `weight_l2`; it is meant for one ranking across groups.
    """
    return lamp_of(weight_l2(group, context).square())


def lamp_of(scores: Tensor) -> Tensor:
    """Scores of 0 or more, each as a share of the sum of those at least as high: 1 for the highest."""
    ascending, order = torch.sort(scores, stable=True)
    rest = ascending.flip(0).cumsum(0).flip(0).clamp_min(torch.finfo(scores.dtype).tiny)
    return torch.zeros_like(scores).scatter(0, order, ascending / rest)


def random(group: Group, context: Context) -> Tensor:
    """The control of every criterion: random scores that depend only on the seed and the group's name."""
    digest = hashlib.sha256(f"{context.seed}/{group.name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.rand(group.size, generator=generator, dtype=torch.float64)


def _sums(group: Group, context: Context, of: Callable[[Tensor], Tensor], role: str = "producer") -> Tensor:
    """For every unit the sum of `of(weight)` over all weights that produce (or read) it, without biases."""
    sums = torch.zeros(group.size, dtype=torch.float64)
    for piece in group.slices:
        weights = context.weights(piece.parameter)
        if piece.role != role or weights.dim() < 2:
            continue
        each = of(weights.double()).movedim(piece.axis, 0).flatten(1).sum(1).cpu()
        mine = piece.units >= 0
        sums.index_add_(0, piece.units[mine], each[mine])
    return sums


def _vectors(group: Group, context: Context) -> Iterator[Tensor]:
    """For every parameter that produces the group, each unit's weights as a row: float64[size, weights]."""
    for piece in group.slices:
        weights = context.weights(piece.parameter)
        if piece.role != "producer" or weights.dim() < 2:
            continue
        mine = (piece.units >= 0).nonzero().reshape(-1)
        units, order = torch.sort(piece.units[mine], stable=True)
        place = torch.arange(len(units)) - torch.searchsorted(units, units)  # which of its unit's rows it is
        rows = weights.double().cpu().movedim(piece.axis, 0).flatten(1)[mine[order]]
        vectors = torch.zeros(group.size, int(place.max()) + 1, rows.shape[1], dtype=torch.float64)
        vectors[units, place] = rows
        yield vectors.flatten(1)
