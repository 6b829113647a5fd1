"""How much each unit of a group matters: one function a criterion, `(group, context) -> scores`.

Scores are float64, one a unit, and only their order within the group counts: the highest stay. A user's own
criterion is a function of the same two arguments, named by its dotted path. Units of a group live in several
places at once (a residual stream has many producers). There is one rule for that: what a unit does is judged
where it is most alive (see `UnitStatistics`), and what it weighs is the norm of all its producers' weights
taken as one long vector.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..targets.errors import ModelError, RecipeError
from .pruning.groups import Group
from .statistics import ActivationStatistics, UnitStatistics


@dataclass(frozen=True)
class Context:
    """What a criterion may ask for.

    Attributes:
        model: the network that was traced.
        statistics: of its activations; None where none were collected.
        seed: of what is drawn at random.
    """

    model: nn.Module
    statistics: ActivationStatistics | None = None
    seed: int = 0

    def activations(self, group: Group) -> UnitStatistics:
        """The statistics of a group.

        Raises:
            RecipeError: none were collected.
            ModelError: those that were are of another network.
        """
        if self.statistics is None:
            raise RecipeError(
                f'This criterion needs the activations of "{group.name}", and no statistics were collected.',
                'Put the stage "statistics" before the stage prune, or choose a criterion of the weights: '
                "weight_l1 or weight_l2.",
            )
        found = self.statistics.of(group.name)
        if len(found.mean) != group.size:
            raise ModelError(
                f'The statistics of "{group.name}" are of {len(found.mean)} units, not of its {group.size}.',
                "Collect the statistics anew from the network that is being pruned.",
            )
        return found

    def weights(self, name: str) -> Tensor:
        """A parameter or buffer by its name in the model.

        Raises:
            ModelError: there is none.
        """
        tensors: dict[str, Tensor] = dict(self.model.named_buffers(remove_duplicate=False))
        tensors.update(self.model.named_parameters(remove_duplicate=False))
        if name not in tensors:
            raise ModelError(
                f'The network has no parameter "{name}".',
                "Give the network from which the groups were traced.",
            )
        return tensors[name].detach()


Criterion = Callable[[Group, Context], Tensor]

CRITERIA = ("activation", "mean_absolute", "apoz", "weight_l1", "weight_l2", "random")
"""The names of ours, for messages; a dotted path names any other."""


def below(statistics: UnitStatistics, *, mean: float, std: float) -> Tensor:
    """Which units are dead, bool[size]: mean and standard deviation both at or under their thresholds.

    Such a unit is near zero and stays there, so that removing it changes little; one with a small deviation
    around a large mean is a bias in disguise and is kept. A unit that was never seen is not called dead.

    Raises:
        RecipeError: a threshold is negative or NaN.
    """
    for name, threshold in (("mean", mean), ("std", std)):
        if not threshold >= 0:
            raise RecipeError(
                f"The threshold {name} is {threshold}.",
                "Give a number of 0 or more, in the units of the activations.",
            )
    return (statistics.mean.abs() <= mean) & (statistics.std <= std) & (statistics.count > 0)


def activation(group: Group, context: Context) -> Tensor:
    """The distance of (mean, standard deviation) from (0, 0): the root mean square of the activation.

    What `below` cuts as a box, as one order: the units nearest to a constant zero go first.
    """
    found = context.activations(group)
    return torch.hypot(found.mean, found.std)


def mean_absolute(group: Group, context: Context) -> Tensor:
    """The mean absolute activation (Molchanov et al. 2017, "Pruning Convolutional Neural Networks")."""
    return context.activations(group).mean_abs.clone()


def apoz(group: Group, context: Context) -> Tensor:
    """The share of activations that are not zero.

    One minus APoZ, the average percentage of zeros (Hu et al. 2016, "Network Trimming"). After anything but
    a ReLU hardly a value is exactly zero, and this says nothing.
    """
    return 1 - context.activations(group).zero_share


def weight_l1(group: Group, context: Context) -> Tensor:
    """The sum of the magnitudes of a unit's incoming weights (Li et al. 2017, "Pruning Filters")."""
    return _producer_sums(group, context, torch.abs)


def weight_l2(group: Group, context: Context) -> Tensor:
    """The Euclidean norm of a unit's incoming weights (Han et al. 2015, "Learning both Weights")."""
    return _producer_sums(group, context, torch.square).sqrt()


def random(group: Group, context: Context) -> Tensor:
    """The control of every criterion: a draw that depends on the seed and the group's name alone."""
    digest = hashlib.sha256(f"{context.seed}/{group.name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.rand(group.size, generator=generator, dtype=torch.float64)


def _producer_sums(group: Group, context: Context, of: Callable[[Tensor], Tensor]) -> Tensor:
    """For every unit the sum of `of(weight)` over all weights that produce it, biases left out."""
    sums = torch.zeros(group.size, dtype=torch.float64)
    for piece in group.slices:
        weights = context.weights(piece.parameter)
        if piece.role != "producer" or weights.dim() < 2:
            continue
        each = of(weights.double()).movedim(piece.axis, 0).flatten(1).sum(1).cpu()
        mine = piece.units >= 0
        sums.index_add_(0, piece.units[mine], each[mine])
    return sums
