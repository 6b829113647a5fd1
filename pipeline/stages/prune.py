"""The stage "prune": structured pruning, which removes the least important neurons.

Neurons are chosen by two thresholds on the statistics of the stage "statistics" (a neuron is removed if its
mean *and* its standard deviation are at or below them: it is always near zero), or by a criterion and a
budget: a share of the neurons of each group, or a share of the network's parameters. The result is a smaller
dense network, and it is proven to be the old one without those neurons.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, cast

from pydantic import Field
from torch import Tensor, nn

from ...targets.errors import ModelError, RecipeError, meant_and, users_code
from ...targets.target import Target
from ..importance import criteria
from ..importance.activations import ActivationStatistics
from ..importance.allocation import Normalise, Scope, check_scores, choose_by_parameters, kept, ranking
from ..importance.criteria import Context, Criterion, below
from ..importance.gradients import Gradients
from ..pruning.groups import BLOCKS, Align, Groups, choose, remove, step_of
from ..pruning.means import fold_means
from ..pruning.plan import Plan, plan_of, together
from ..pruning.verify import proven
from ..stage import NamedStage, is_users_own
from ..training.batch_norm import reestimated
from ..work import Work
from ..workload import inputs_of
from .statistics import Statistics

Share = Annotated[float, Field(gt=0, lt=1)]


@dataclass(frozen=True, kw_only=True)
class Cutting:
    """The settings of a cut: the ranking of units, and the corrections afterwards.

    Attributes:
        criterion: with a budget, ranks the neurons: a function of `importance`, or the dotted path of
            the user's own.
        scope: the allocation of the budget: "local" removes an equal share of every group, "global" the
            lowest of one ranking across groups.
        normalise: makes scores of different groups comparable, see `allocation.NORMALISATIONS`.
        most: in a global ranking, the largest share of one group that may be removed.
        heads: whether whole attention heads, and whole groups of grouped convolutions, may be removed too.
            A ratio applies to them separately: half the heads with half the features of each are a quarter.
        align: whether widths are rounded up to the target's alignment.
        means: whether the mean output of a removed neuron is added to its readers' biases.
        norms: number of training batches for batch-norm re-estimation after the cut; 0 for none.
    """

    criterion: str = "activation"
    scope: Scope = "local"
    normalise: Normalise = "mean"
    most: Annotated[float, Field(gt=0, le=1)] = 0.95
    heads: bool = False
    align: bool = True
    means: bool = False
    norms: Annotated[int, Field(ge=0)] = 64
    shrinks: ClassVar[bool] = True

    def code(self) -> list[Path]:
        """The source file of the user's own criterion; it enters the cache key."""
        found = find_criterion(self.criterion)
        return [] if self.criterion.isidentifier() else [Path(inspect.getfile(found))]

    def cut(
        self, model: nn.Module, plan: Plan, groups: Groups, work: Work
    ) -> tuple[nn.Module, tuple[str, ...]]:
        """The network after a plan, proven, with corrected means and norms; and sentences on it."""
        small, proof = proven(model, plan, groups)
        work.progress(2, 3, "prune: norms")
        words: tuple[str, ...] = (str(proof),)
        if self.means:
            small, skipped = fold_means(small, groups, inputs_of(work.workload, "calibration"))
            words += (f"no means for {'; '.join(skipped)}",) if skipped else ()
        return reestimated(small, work.workload, batches=self.norms, seed=work.seed), words


@dataclass(frozen=True)
class Prune(Cutting):
    """Removes neurons from the newest network; the result is the network "pruned".

    Attributes:
        mean, std: thresholds on a neuron's activations, in their own units; give both or neither.
        ratio: instead of thresholds, the share of each group's neurons to remove, 0 to 1.
        ratios: the same for single groups by name; other groups use `ratio`, or are not pruned without it.
        parameters: instead of both, the share of the network's parameters to remove.
        criterion ... norms: see `Cutting`.
    """

    mean: Annotated[float, Field(ge=0)] | None = None
    std: Annotated[float, Field(ge=0)] | None = None
    ratio: Share | None = None
    ratios: dict[str, Share] = field(default_factory=dict)
    parameters: Share | None = None

    def __post_init__(self) -> None:
        thresholds = (self.mean is not None) + (self.std is not None)
        budgets = (self.ratio is not None or bool(self.ratios)) + (self.parameters is not None)
        if thresholds == 1 or (thresholds > 0) + budgets != 1:
            raise RecipeError(
                f"The stage prune has mean {self.mean}, std {self.std}, ratio {self.ratio}, ratios "
                f"{self.ratios} and parameters {self.parameters}.",
                "Give one of three: both thresholds, or a ratio (and ratios), or parameters.",
            )
        if self.ratios and self.scope == "global":
            raise RecipeError(
                f'The stage prune has ratios {self.ratios} and scope "global".',
                'Ratios by group are local: give scope = "local", or leave them out.',
            )

    def check(self, earlier: Sequence[NamedStage]) -> None:
        """Statistics are collected before, if the criterion needs them; a user's own stage may do so."""
        made = any(isinstance(one.stage, Statistics) or is_users_own(one.name) for one in earlier)
        if self.criterion in criteria.OF_ACTIVATIONS and not made:
            raise RecipeError(
                f'The criterion "{self.criterion}" needs statistics of activations, and none are collected.',
                'Put the stage "statistics" before the stage "prune", or choose a criterion of the weights: '
                "weight_l1 or weight_l2.",
            )

    def __call__(self, work: Work) -> Work:
        if "masks" in work.latest().files:
            raise RecipeError(
                f'Single weights of the network "{work.latest().name}" were dropped, and their masks would '
                "not fit it without some of its neurons.",
                'Put the stage "prune" before the one that drops single weights.',
            )
        model = work.model()
        work.progress(0, 3, "prune: trace")
        groups = work.networks.groups(model, work.workload)
        if not len(groups):
            why = "; ".join(f"{one.parameter}: {one.reason} {one.line}".strip() for one in groups.frozen[:3])
            cure = why or "Prune another network."
            raise ModelError("This network has no neurons that could be removed.", cure)
        choose_by = self.chooser(model, groups, work)
        steps = alignment(work.target) if self.align else None
        plan = choose_by(steps)
        said = alignment_words(groups, plan, choose_by(None), steps) if steps else ()
        work.progress(1, 3, "prune: cut")
        small, words = self.cut(model, plan, groups, work)
        work.progress(3, 3, "prune")
        plan = plan_of(small) or plan  # surgery adds the form that it chose, and why
        return work.with_model("pruned", small, plan=plan).logged("prune", self, _widths(plan), *words, *said)

    def chooser(self, model: nn.Module, groups: Groups, work: Work) -> Callable[[Align], Plan]:
        """The choice of units by these settings, for any alignment."""
        held = work.artifacts.get("statistics")
        statistics = ActivationStatistics.load(held.checked()) if held else None
        context = Context(model, statistics, work.seed, Gradients(model, groups, work.workload))
        chosen = [group for group in groups if self.heads or group.kind not in BLOCKS]
        if self.mean is not None and self.std is not None:
            order = {g.name: criteria.activation(g, context) for g in chosen}  # raises without statistics
            assert statistics is not None
            dead = {g.name: below(statistics.of(g.name), mean=self.mean, std=self.std) for g in chosen}
            return lambda steps: remove(groups, dead, align=steps, scores=order)
        criterion = find_criterion(self.criterion)
        with users_code(f'the criterion "{self.criterion}" was called'):
            scores: Mapping[str, Tensor] = {group.name: criterion(group, context) for group in chosen}
        if self.ratios:
            ratios = {group.name: self.ratio for group in chosen} | self.ratios
            sizes = {name: groups[name].size for name in ratios}
            keep = {name: sizes[name] - _gone(share, sizes[name]) for name, share in ratios.items()}
            return lambda steps: choose(groups, scores, keep=keep, align=steps)
        if self.ratio is not None and self.scope == "local":
            return lambda steps: choose(groups, scores, ratio=self.ratio, align=steps)
        check_scores(groups, scores)
        ranked = ranking(scores, scope=self.scope, normalise=self.normalise, most=self.most)
        if (removed := self.parameters) is not None:
            return lambda steps: choose_by_parameters(
                model, groups, scores, removed=removed, order=ranked, align=steps
            )
        count = _gone(self.ratio, sum(map(len, scores.values())))
        left = kept(groups, scores, ranked, count)
        return lambda steps: choose(groups, scores, keep=left, align=steps)


def _gone(share: float | None, size: int) -> int:
    return int(round((share or 0.0) * size, 9))


def find_criterion(name: str) -> Criterion:
    """A criterion by its name in `importance.criteria` or its dotted path; a RecipeError if there is none."""
    place, _, attribute = name.replace(":", ".").rpartition(".")
    with users_code(f'the criterion "{name}" was imported'):
        home = importlib.import_module(place) if place else criteria
    found = getattr(home, attribute, None)
    if not callable(found) or not (place or attribute in criteria.CRITERIA):
        known = f"Known: {', '.join(criteria.CRITERIA)}; your own is named by its dotted path."
        raise RecipeError(f'There is no criterion "{name}".', meant_and(name, criteria.CRITERIA, known))
    return cast(Criterion, found)


def alignment(target: Target) -> dict[str, int]:
    """The target's alignment of widths, by the kind of operator."""
    return {kind: rule.step for kind, rule in target.alignment.items()}


def alignment_words(groups: Groups, plan: Plan, free: Plan, steps: Align) -> tuple[str, ...]:
    """A sentence on the groups that keep their width only because of the alignment.

    Args:
        free: the plan without one.
    """
    whole: dict[int, list[str]] = {}
    for name, width in plan.widths.items():
        if width.after == width.before > free.widths[name].after:
            whole.setdefault(step_of(groups[name], steps), []).append(name)
    said = ", ".join(f"{together(names)} (multiples of {step})" for step, names in sorted(whole.items()))
    count = sum(map(len, whole.values()))
    words = f"alignment keeps {count} of {len(groups)} groups whole: {said}; align = false prunes them too"
    return (words,) if count else ()


def _widths(plan: Plan) -> str:
    changed = {name: width for name, width in plan.widths.items() if width.after != width.before}
    widths = ", ".join(f"{name} {width.before} -> {width.after}" for name, width in changed.items())
    return f"{widths or 'nothing was removed'}; form {plan.form}"
