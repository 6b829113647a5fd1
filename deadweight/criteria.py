"""The criteria for a loop of one's own: by group, a score for each unit; the highest stay.

scores = deadweight.criteria.taylor(model, groups, batches, loss=loss)
plan = deadweight.choose(groups, scores, ratio=0.5)
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from torch import Tensor, nn

from .pipeline.importance import criteria
from .pipeline.importance.activations import collect
from .pipeline.importance.criteria import Context, Criterion
from .pipeline.importance.gradients import Gradients
from .pipeline.pruning.groups import Groups
from .pipeline.workload import inputs_of
from .pipeline.workloads.in_python import workload


class Scores(Protocol):
    """A criterion over all groups of a network.

    Args:
        model: the network from which the groups were traced.
        batches: of data, for criteria that need any: dictionaries of tensors, or tuples of inputs and label.
            They are read once, into memory.
        loss: from what the module returned and the batch, for criteria that need gradients.
        seed: of random draws.

    Raises:
        DeadweightError: the criterion needs batches or a loss, and none are given.
    """

    def __call__(
        self,
        model: nn.Module,
        groups: Groups,
        batches: Iterable[Any] = (),
        *,
        loss: Callable[[Any, Any], Tensor] | None = None,
        seed: int = 0,
    ) -> dict[str, Tensor]:
        """By group, float64[size]."""
        ...


def _over_all_groups(criterion: Criterion) -> Scores:
    @functools.wraps(criterion, assigned=("__name__", "__qualname__", "__doc__"))
    def scores(
        model: nn.Module,
        groups: Groups,
        batches: Iterable[Any] = (),
        *,
        loss: Callable[[Any, Any], Tensor] | None = None,
        seed: int = 0,
    ) -> dict[str, Tensor]:
        held = [*batches]
        given = workload(
            lambda: model,
            train=held,
            validation=held,
            calibration=held,
            loss=loss or _no_loss,
            score=lambda predict, some: 0.0,
        )
        measures = held and criterion.__name__ in criteria.OF_ACTIVATIONS
        statistics = collect(groups, inputs_of(given, "calibration")) if measures else None
        gradients = Gradients(model, groups, given) if held and loss else None
        context = Context(model, statistics, seed, gradients)
        return {group.name: criterion(group, context) for group in groups}

    return scores


def _no_loss(outputs: Any, batch: Any) -> Tensor:
    raise NotImplementedError


activation = _over_all_groups(criteria.activation)
activation_std = _over_all_groups(criteria.activation_std)
activation_outgoing = _over_all_groups(criteria.activation_outgoing)
mean_absolute = _over_all_groups(criteria.mean_absolute)
apoz = _over_all_groups(criteria.apoz)
weight_l1 = _over_all_groups(criteria.weight_l1)
weight_l2 = _over_all_groups(criteria.weight_l2)
batch_norm = _over_all_groups(criteria.batch_norm)
taylor = _over_all_groups(criteria.taylor)
geometric_median = _over_all_groups(criteria.geometric_median)
lamp = _over_all_groups(criteria.lamp)
random = _over_all_groups(criteria.random)
