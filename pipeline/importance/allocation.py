"""Allocation: how many units each group keeps, by an equal share of each or by one global ranking.

A global ranking needs scores that are comparable across groups, and a criterion's are not: a layer of small
weights is not a useless layer. `NORMALISATIONS` makes them comparable. A local allocation is the same ranking
with a unit's rank within its group as its score. So a budget in parameters is met in one way: remove the
lowest units of the ranking until enough parameters are gone.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from ...targets.errors import ModelError
from ..pruning.groups import Align, Groups, choose
from ..pruning.plan import Plan, parameters_left
from .criteria import lamp_of

Scope = Literal["local", "global"]
Normalise = Literal["mean", "lamp", "none"]

NORMALISATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    # as a multiple of the group's mean score
    "mean": lambda scores: scores / scores.mean().clamp_min(torch.finfo(scores.dtype).tiny),
    # as a share of the scores at least as high (Lee et al. 2021)
    "lamp": lamp_of,
    # unchanged: for criteria in units of the loss, such as taylor
    "none": lambda scores: scores,
}


def check_scores(groups: Groups, scores: Mapping[str, Tensor]) -> None:
    """Refuses scores that cannot be ranked.

    Raises:
        ModelError: a group's scores are not one number per unit, or have a NaN.
    """
    for name, own in scores.items():
        if tuple(own.shape) != (groups[name].size,) or bool(own.isnan().any()):
            raise ModelError(
                f'The scores of the group "{name}" have the shape {tuple(own.shape)} and '
                f"{int(own.isnan().sum())} of them are NaN; it has {groups[name].size} units.",
                "Let the criterion return one number per unit.",
            )


def ranking(
    scores: Mapping[str, Tensor], *, scope: Scope = "global", normalise: Normalise = "mean", most: float = 1.0
) -> list[str]:
    """The order of removal: the group's name once for each unit, the unit to remove first at the front.

    Args:
        scores: by group, one number per unit; the highest stay.
        scope: "local" removes an equal share of every group, "global" the lowest scores of all groups.
        normalise: for "global", see `NORMALISATIONS`.
        most: the largest share of a group that may be removed; one unit always stays.
    """
    entries = []
    for at, (name, own) in enumerate(scores.items()):
        size, own = len(own), torch.sort(own.double()).values
        common = NORMALISATIONS[normalise](own) if scope == "global" else (torch.arange(size) + 0.5) / size
        may_go = min(size - 1, int(round(most * size, 9)))
        entries += [(float(score), at, name) for score in common[:may_go]]
    return [name for _, _, name in sorted(entries, key=lambda entry: entry[:2])]


def kept(groups: Groups, scores: Mapping[str, Tensor], order: list[str], count: int) -> dict[str, int]:
    """How many units each group keeps when the first `count` of the order are removed."""
    return {name: groups[name].size - order[:count].count(name) for name in scores}


class TooFewUnitsError(ModelError):
    """Removing all units that may be removed is not enough."""


def choose_by_parameters(
    model: nn.Module,
    groups: Groups,
    scores: Mapping[str, Tensor],
    *,
    removed: float,
    order: list[str],
    align: Align = None,
) -> Plan:
    """The plan that removes the fewest units of an order until that share of the parameters is removed.

    Raises:
        TooFewUnitsError: removing all units that may be removed is not enough.
    """
    total = sum(parameter.numel() for parameter in model.parameters())

    def tried(count: int) -> tuple[Plan, float]:
        plan = choose(groups, scores, keep=kept(groups, scores, order, count), align=align)
        return plan, 1 - parameters_left(model, plan) / total

    plan, most = tried(len(order))
    if most < removed:
        raise TooFewUnitsError(
            f"{removed:.1%} of the parameters were to be removed, but without emptying a layer only "
            f"{most:.1%} can be.",
            "Ask for less; remove whole heads too (heads = true); or see what could not be pruned.",
        )
    count = bisect.bisect_left(range(len(order)), removed, key=lambda count: tried(count)[1])
    return plan if count == len(order) else tried(count)[0]
