"""The stage "controls": networks of the pruned size that were made without the criterion.

Two networks with the widths that pruning chose: in one, the removed neurons were drawn at random and the same
stages followed; the other was trained from scratch for as many epochs as the whole chain (Liu et al. 2019,
"Rethinking the Value of Network Pruning"). If they score as well, the criterion gained nothing, and the
report says so.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import nn

from ...targets.errors import RecipeError
from ..budget.resolutions import at_resolution
from ..pruning.bypass import dropping
from ..pruning.groups import Groups, choose, random_like
from ..pruning.plan import Plan, plan_of
from ..pruning.surgery import apply, replay
from ..stage import NamedStage, Stage, is_users_own, make_stage, run_stage, settings_of
from ..training.batch_norm import reestimated
from ..training.loop import WORKER, Schedule, TrainingJob, fit
from ..work import Done, Facts, Variant, Work
from ..workload import built_model, example_batch
from .depth import Depth


@dataclass(frozen=True)
class Controls:
    """Adds the networks "random" (or "random_blocks") and "scratch", marked as controls.

    Attributes:
        random: whether to add the control with random neurons (or blocks) removed.
        scratch: whether to train the small network from scratch.
        epochs: of the training from scratch; None for as many as the chain, which is known only if the
            chain trained the original.
    """

    random: bool = True
    scratch: bool = True
    epochs: Annotated[int, Field(ge=0)] | None = None
    long: ClassVar[bool] = True

    def code(self) -> list[Path]:
        """The module that several training processes run, if the stage train uses it."""
        return [WORKER]

    def check(self, earlier: Sequence[NamedStage]) -> None:
        """Every stage before this one declares what it does, one shrinks, and the epochs are known.

        Raises:
            RecipeError: a control would not be fair.
        """
        log = [Done(one.name, settings_of(one.stage), (), Facts.of(one.stage)) for one in earlier]
        for done in log:
            _check_declared(done.stage, done.facts)
        if not any(done.facts.shrinks for done in log):
            raise RecipeError("Controls need a pruned network, and there is none.", 'Put "prune" before it.')
        if self.scratch:
            self._epochs(log)

    def __call__(self, work: Work) -> Work:
        for done in work.log:
            _check_declared(done.stage, done.facts)
        if (plan := work.plan(work.latest())) is None:
            raise RecipeError("Controls need a pruned network, and there is none.", 'Put "prune" before it.')
        result, words = work, []
        first = next((done for done in work.log if done.facts.shrinks), None)
        thin = (*plan.earlier, plan)[0].form == "layers"
        if self.random and (thin or (first is not None and first.facts.recovers)):
            words.append("no random control: the first cut was not a plain choice of neurons")
        elif self.random:
            result = result.with_variant(_random(work, plan))
        if self.scratch:
            result = result.with_variant(_scratch(work, plan, self._epochs(work.log)))
        return result.logged("controls", self, *words)

    def _epochs(self, log: Sequence[Done]) -> int:
        if self.epochs is not None:
            return self.epochs
        first = [done for done in log if done.facts.trains]
        steps = (*first, *recovery(log))
        unknown = [one.stage for one in steps if "epochs" not in one.settings and is_users_own(one.stage)]
        if not first or unknown:
            whose = f'the stage "{unknown[0]}" trains' if unknown else "the original was trained"
            raise RecipeError(
                f"The number of epochs for which {whose} is not known, so neither is that of a fair control.",
                "Set epochs in the stage controls, or set scratch = false.",
            )
        return sum(done.settings.get("epochs", 0) for done in steps)


def _random(work: Work, plan: Plan) -> Variant:
    """Random neurons of the same widths, or as many random blocks, through the same recovery."""
    steps = (*plan.earlier, plan)
    if any(step.dropped or step.resized for step in steps):
        return _random_steps(work, steps)
    original = work.model(work.variant("original"))
    groups = work.networks.groups(original, work.workload)
    drawn = random_plan(groups, plan, work.seed)
    cut = next((cut for stage in _shrinking(work) if (cut := getattr(stage, "cut", None))), None)
    if cut is None:  # a user's own stage: its control gets the best treatment that the stage may have used
        small = reestimated(apply(original, drawn, groups), work.workload, seed=work.seed)
    else:  # means and batch norms are corrected as after the real cut
        small, _ = cut(original, drawn, groups, work)
    place = work.directory / "random"
    twin = dataclasses.replace(work, directory=place, log=()).with_model("pruned", small, plan=plan_of(small))
    return _recovered(twin, work, "random")


def _random_steps(work: Work, steps: Sequence[Plan]) -> Variant:
    """As many random blocks removed; else random neurons, with the same blocks and the same resolution."""
    place = work.directory / "random"
    start = dataclasses.replace(work, directory=place, log=(), variants=(work.variant("original"),))
    if all(step.dropped for step in steps):
        count = sum(len(step.dropped) for step in steps)
        depth = next((stage for stage in _shrinking(work) if isinstance(stage, Depth)), Depth(blocks=count))
        drawn = dataclasses.replace(depth, order="random", blocks=count, parameters=None, score_drop=None)
        return _recovered(drawn(start), work, "random_blocks")
    small = work.model(work.variant("original"))
    for step in steps:
        if step.dropped:
            small = apply(small, dropping(small, step.dropped))
        elif step.resized:
            small = at_resolution(small, step.resized)
        else:
            groups = work.networks.groups(small, work.workload)
            small = apply(small, random_like(groups, step, seed=work.seed), groups)
    small = reestimated(small, work.workload, seed=work.seed)
    return _recovered(start.with_model("pruned", small, plan=plan_of(small)), work, "random")


def _recovered(twin: Work, work: Work, name: str) -> Variant:
    place = twin.directory
    for index, done in enumerate(recovery(work.log)):
        twin = dataclasses.replace(twin, directory=place / str(index))  # each has its own checkpoints
        twin = run_stage(done.stage, make_stage(done.stage, done.settings, "controls"), twin)
    return dataclasses.replace(twin.latest(), name=name, role="control")


def random_plan(groups: Groups, plan: Plan, seed: int) -> Plan:
    """Random units of the same widths, removed in one cut, however many the plan needed."""
    if not plan.earlier:
        return random_like(groups, plan, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    scores = {group.name: torch.rand(group.size, generator=generator) for group in groups}
    left = {name: width.after for name, width in plan.widths.items()}
    return choose(groups, scores, keep={group.name: left.get(group.name, group.size) for group in groups})


def _scratch(work: Work, plan: Plan, epochs: int) -> Variant:
    small = replay(built_model(work.workload, seed=work.seed + 2), plan, example_batch(work.workload))
    rescale(small, plan)
    schedule = Schedule.of({**(work.training() or {}), "epochs": epochs})
    job = TrainingJob.of(work, schedule, "control: from scratch", seed=work.seed + 2)
    made = work.with_model("scratch", fit(small, job).model, plan=plan_of(small), role="control")
    return made.variant("scratch")


def recovery(log: Sequence[Done]) -> list[Done]:
    """The recovering stages, from the first stage on that shrinks the network."""
    after = min((place for place, done in enumerate(log) if done.facts.shrinks), default=len(log))
    return [done for done in log[after:] if done.facts.recovers]


def _shrinking(work: Work) -> list[Stage]:
    return [make_stage(done.stage, done.settings, "controls") for done in work.log if done.facts.shrinks]


def _check_declared(name: str, facts: Facts) -> None:
    if facts.shrinks is None and facts.recovers is None and is_users_own(name):
        raise RecipeError(
            f'The stage "{name}" does not declare what it does, so controls would not be fair to it.',
            "Declare in its class: shrinks: ClassVar[bool] = True if it removes parameters, "
            "recovers: ClassVar[bool] = True if it trains the rest; both False if it does neither.",
        )


def rescale(model: nn.Module, plan: Plan) -> None:
    """Scales initial weights that `build_model()` drew for the large network to the width of the small one.

    The usual rules use a deviation of one over the root of a layer's inputs (LeCun, Glorot, He). Scaling by
    the root of inputs before over inputs after gives weights as if drawn for the small network, and keeps
    the rest of the user's initialisation, e.g. a bias that starts low.
    """
    before: dict[str, tuple[int, ...]] = {}
    for one in (*plan.earlier, plan):
        for name, shapes in one.shapes.items():
            before.setdefault(name, shapes.before)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in before and parameter.dim() > 1:
                parameter.mul_((math.prod(before[name][1:]) / math.prod(parameter.shape[1:])) ** 0.5)
