"""The stage "prune": neurons whose activations stay near zero are taken out for real.

What goes follows from the statistics of the stage "statistics" and either two thresholds (a neuron goes if
its mean *and* its standard deviation are at or below them: it is silent, and constantly so) or a ratio with
a criterion. The result is a smaller dense network, and it is proven to be the old one without those neurons
before it is handed on.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, cast

from pydantic import Field
from torch import Tensor, nn

from ..targets.errors import ModelError, RecipeError
from ..targets.target import Target
from . import importance
from .importance import Context, Criterion, below
from .pruning.groups import BLOCKS, Groups, choose, remove
from .pruning.plan import Plan, plan_of
from .pruning.surgery import apply
from .pruning.trace import trace
from .pruning.verify import verify
from .statistics import ActivationStatistics
from .work import Work
from .workload import example_batch, users_code


@dataclass(frozen=True)
class Prune:
    """Removes neurons from the newest network; the result is the network "pruned".

    Attributes:
        mean, std: thresholds on a neuron's activations, in their own units; both are given, or none.
        ratio: instead of thresholds, the share of each group's neurons to remove, 0 to 1.
        criterion: with a ratio, what orders the neurons: a function of `importance`, or the dotted path
            of the user's own.
        heads: whether whole attention heads, and whole groups of grouped convolutions, may go too. A ratio
            holds for them on its own: half the heads with half the features of each are a quarter.
        align: whether widths are rounded up to what the target's kernels like.
    """

    mean: float | None = None
    std: float | None = None
    ratio: Annotated[float, Field(gt=0, lt=1)] | None = None
    criterion: str = "activation"
    heads: bool = False
    align: bool = True

    def __post_init__(self) -> None:
        given = (self.mean is not None) + (self.std is not None)
        if given == 1 or (given and self.ratio is not None) or (not given and self.ratio is None):
            raise RecipeError(
                f"The stage prune has mean {self.mean}, std {self.std} and ratio {self.ratio}.",
                "Give one or the other: both thresholds, or a ratio.",
            )

    def code(self) -> list[Path]:
        """The user's own criterion: an edit of it is another pruning."""
        return (
            [] if self.criterion.isidentifier() else [Path(inspect.getfile(find_criterion(self.criterion)))]
        )

    def __call__(self, work: Work) -> Work:
        model, example = work.model(), example_batch(work.workload)
        work.progress(0, 3, "prune: trace")
        groups = trace(model, example)
        if not len(groups):
            raise ModelError(
                "This network has no neurons that could be removed.",
                _frozen(groups) or "Prune another network.",
            )
        plan = self._plan(model, groups, work)
        work.progress(1, 3, "prune: cut")
        small = apply(model, plan, groups)
        plan = plan_of(small) or plan  # surgery says which form it chose, and why
        work.progress(2, 3, "prune: verify")
        verify(model, small, plan, groups)
        work.progress(3, 3, "prune")
        return work.with_model("pruned", small, plan=plan).logged("prune", self, _widths(plan))

    def _plan(self, model: nn.Module, groups: Groups, work: Work) -> Plan:
        statistics = _statistics(work)
        steps = alignment(work.target) if self.align else None
        chosen = [group for group in groups if self.heads or group.kind not in BLOCKS]
        if self.mean is not None and self.std is not None:
            if statistics is None:
                raise RecipeError(
                    "Thresholds on activations were given, and no statistics were taken.",
                    'Put the stage "statistics" before the stage "prune".',
                )
            dead = {g.name: below(statistics.of(g.name), mean=self.mean, std=self.std) for g in chosen}
            order = {g.name: importance.activation(g, _context(model, statistics, work)) for g in chosen}
            return remove(groups, dead, align=steps, scores=order)
        criterion = find_criterion(self.criterion)
        context = _context(model, statistics, work)
        with users_code(f'the criterion "{self.criterion}" was called'):
            scores: Mapping[str, Tensor] = {group.name: criterion(group, context) for group in chosen}
        return choose(groups, scores, ratio=self.ratio, align=steps)


def find_criterion(name: str) -> Criterion:
    """A criterion by the name of a function of `importance`, or by the user's own dotted path.

    Raises:
        RecipeError: there is no such function.
    """
    place, _, attribute = name.replace(":", ".").rpartition(".")
    with users_code(f'the criterion "{name}" was imported'):
        home = importlib.import_module(place) if place else importance
    found = getattr(home, attribute, None)
    if not callable(found):
        known = ", ".join(importance.CRITERIA)
        raise RecipeError(
            f'There is no criterion "{name}".', f"Known: {known}; your own is named by its dotted path."
        )
    return cast(Criterion, found)


def alignment(target: Target) -> dict[str, int]:
    """The multiples that a target likes widths to be, by the kind of operator."""
    return {kind: rule.step for kind, rule in target.alignment.items()}


def _context(model: nn.Module, statistics: ActivationStatistics | None, work: Work) -> Context:
    return Context(model=model, statistics=statistics, seed=work.seed)


def _statistics(work: Work) -> ActivationStatistics | None:
    if "statistics" not in work.artifacts:
        return None
    return ActivationStatistics.load(work.artifacts["statistics"].checked())


def _frozen(groups: Groups) -> str:
    return "; ".join(
        f"{frozen.parameter}: {frozen.reason} {frozen.line}".strip() for frozen in groups.frozen[:3]
    )


def _widths(plan: Plan) -> str:
    widths = ", ".join(
        f"{name} {w.before} -> {w.after}" for name, w in plan.widths.items() if w.after != w.before
    )
    return f"{widths or 'nothing was removed'}; form {plan.form}"
