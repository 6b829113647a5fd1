"""The stage "lottery": lottery tickets, by rounds of pruning, rewinding and training.

Frankle and Carbin 2019, "The Lottery Ticket Hypothesis": a trained network is pruned by magnitude, the rest
is rewound to its values before training, or after the first k steps (Frankle et al. 2020, "Linear Mode
Connectivity"), and is trained again; and so on. The claim is that the ticket then learns as well as the full
network. Controls of the same size and training test it: weights that were not rewound, new initial weights,
random instead of chosen weights. Tickets are made of single weights (masks: shapes stay) or of neurons (the
network shrinks).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from ...targets.errors import RecipeError
from ..compression.masks import (
    Masks,
    kept_share,
    magnitude_masks,
    masked,
    random_masks,
    save_masks,
    threshold_masks,
    weights_of,
)
from ..importance.allocation import Scope
from ..pruning.plan import Plan, plan_of
from ..pruning.surgery import apply, replay
from ..stage import NamedStage
from ..training.checkpoint import tensors_in
from ..training.loop import WORKER, Fitted, Schedule, TrainingJob, fit
from ..work import Facts, Work
from ..workload import built_model, example_batch
from .controls import random_plan, rescale
from .prune import Prune, Share
from .statistics import Statistics

Control = Literal["reinitialised", "random", "tuned_on"]
Start = Control | Literal["rewound"]


@dataclass(frozen=True)
class Cut:
    """The result of a round's cut: masks over the full network, or the plan of a smaller one.

    Attributes:
        source: the trained network before this round's training, full (weights) or cut (neurons); the
            control *tuned on* starts from it.
    """

    masks: Masks | None
    plan: Plan | None
    source: nn.Module

    def words(self) -> str:
        if self.masks is not None:
            return f"{kept_share(self.masks):.1%} of the weights are left"
        widths = self.plan.widths.values() if self.plan else ()
        return f"{', '.join(str(width.after) for width in widths)} neurons are left"


@dataclass(frozen=True)
class Lottery:
    """Searches a ticket in the network "original"; the result is the network "ticket" and its controls.

    Attributes:
        unit: what is cut, single "weights" or "neurons".
        rounds: number of rounds. Ten of 0.2 leave a tenth.
        share: the share of the rest that is cut in each round.
        shares: another share for single layers (or groups of neurons) by name. In the paper, an output
            layer is cut by half as much.
        scope: of weights, see `masks.magnitude_masks`.
        threshold: instead of rounds, one cut of all weights under this magnitude.
        criterion: of neurons, see `importance`.
        rewind_step: the step of the first training to whose weights each round rewinds; 0 for the initial
            weights. The stage train must have kept them, by its own rewind_step.
        tune_on: whether the rounds continue from the trained weights instead: iterative magnitude pruning.
        controls: "reinitialised" draws new initial weights, "random" cuts other weights (as many of each
            layer) or other neurons, "tuned_on" continues from the weights before the last cut.
        epochs, learning_rate: of each training; None for those of the stage train, which also has every
            other setting of the training.
    """

    unit: Literal["weights", "neurons"] = "weights"
    rounds: Annotated[int, Field(ge=1)] = 7
    share: Share = 0.2
    shares: dict[str, Share] = field(default_factory=dict)
    scope: Scope = "local"
    threshold: Annotated[float, Field(gt=0)] | None = None
    criterion: str = "weight_l2"
    rewind_step: Annotated[int, Field(ge=0)] = 0
    tune_on: bool = False
    controls: tuple[Control, ...] = ()
    epochs: Annotated[int, Field(ge=0)] | None = None
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    long: ClassVar[bool] = True

    @property
    def shrinks(self) -> bool:
        """Tickets of neurons are smaller networks; those of single weights keep their shapes."""
        return self.unit == "neurons"

    @property
    def recovers(self) -> bool:
        """Every round trains, so only the stage's own `controls` are fair to a smaller ticket."""
        return self.shrinks

    def __post_init__(self) -> None:
        if self.threshold is not None and (self.unit == "neurons" or self.shares):
            raise RecipeError(
                f"The stage lottery has a threshold of {self.threshold:g}, the unit {self.unit!r} and shares "
                f"{self.shares}.",
                'A threshold drops single weights in one cut: leave shares out, and set unit = "weights".',
            )
        if self.shares and self.scope == "global":
            raise RecipeError(
                f'The stage lottery has shares {self.shares} and scope "global".',
                'Shares by layer are local: give scope = "local", or leave them out.',
            )

    def code(self) -> list[Path]:
        """The user's own criterion, and the module that several training processes run."""
        return [WORKER, *Prune(ratio=0.5, criterion=self.criterion).code()]

    def check(self, earlier: Sequence[NamedStage]) -> None:
        """The original is trained before, and the weights to rewind to are kept."""
        trains = [one.stage for one in earlier if Facts.of(one.stage).trains]
        kept = {0, getattr(trains[0], "rewind_step", self.rewind_step)} if trains else set()
        if self.rewind_step not in kept:
            raise _unstored(self.rewind_step, kept)

    def __call__(self, work: Work) -> Work:
        words, cut, fitted = [], None, None
        for number, (cut, fitted) in enumerate(self.found(work), start=1):
            words.append(f"round {number}: {cut.words()}, {fitted.score:.4f}")
        assert cut is not None  # there is at least one round
        assert fitted is not None
        result = saved(work, "ticket", cut, fitted.model)
        for start in self.controls:
            made = self.trained(work, cut, start, work.directory / start)
            words.append(f"{start}: {made.score:.4f}")
            result = saved(result, f"ticket_{start}", _as(work, cut, start, made), made.model, role="control")
        return result.logged("lottery", self, *words)

    def found(self, work: Work) -> Iterator[tuple[Cut, Fitted]]:
        """The rounds: the cut of each, and the network trained from it. Finished ones are read from disk."""
        self.schedule(work)
        stored(work, self.rewind_step)
        trained, plan, masks = work.model(work.variant("original")), None, None
        rounds = 1 if self.threshold is not None else self.rounds
        for number in range(1, rounds + 1):
            place = work.directory / f"round-{number}"
            work.progress(number - 1, rounds, f"lottery: round {number} of {rounds}")
            if self.unit == "neurons":
                cut = self._fewer_neurons(work, trained, plan, place)
            else:
                cut = self._fewer_weights(trained, masks)
            fitted = self.trained(work, cut, "tuned_on" if self.tune_on else "rewound", place)
            trained, plan, masks = fitted.model, cut.plan, cut.masks
            yield cut, fitted

    def trained(self, work: Work, cut: Cut, start: Start, place: Path) -> Fitted:
        """The network of a cut, trained from a start like the original; resumes from `place`."""
        model, masks = self.start(work, cut, start)
        # The order of samples is the original's, whatever the start.
        own = dataclasses.replace(work, directory=place)
        job = TrainingJob.of(own, self.schedule(work), f"lottery: {start}", seed=work.seed, masks=masks)
        return fit(model, job)

    def start(self, work: Work, cut: Cut, start: Start) -> tuple[nn.Module, Masks | None]:
        """The initial network of a training, and its masks."""
        if start == "tuned_on":
            return (masked(cut.source, cut.masks) if cut.masks is not None else cut.source), cut.masks
        fresh = built_model(work.workload, seed=work.seed + 2 if start == "reinitialised" else work.seed)
        if start != "reinitialised":
            fresh.load_state_dict(stored(work, self.rewind_step))
        example = example_batch(work.workload)
        if cut.masks is not None:
            masks = random_masks(cut.masks, seed=work.seed) if start == "random" else cut.masks
            return masked(fresh, masks), masks
        assert cut.plan is not None
        if start == "random":
            groups = work.networks.groups(fresh, work.workload)
            return apply(fresh, random_plan(groups, cut.plan, work.seed), groups), None
        small = replay(fresh, cut.plan, example)
        if start == "reinitialised":
            rescale(small, cut.plan)
        return small, None

    def schedule(self, work: Work) -> Schedule:
        """The settings of each round's training; a RecipeError without those of the original."""
        if (settings := work.training()) is None:
            raise _unstored(self.rewind_step, ())
        given = {"epochs": self.epochs, "learning_rate": self.learning_rate}
        settings |= {name: value for name, value in given.items() if value is not None}
        return Schedule.of(settings)

    def _fewer_weights(self, trained: nn.Module, before: Masks | None) -> Cut:
        weights = weights_of(trained)
        if self.threshold is not None:
            return Cut(threshold_masks(weights, self.threshold), None, trained)
        masks = magnitude_masks(weights, self.share, scope=self.scope, shares=self.shares, before=before)
        return Cut(masks, None, trained)

    def _fewer_neurons(self, work: Work, trained: nn.Module, plan: Plan | None, place: Path) -> Cut:
        last = work.quiet(place / "cut").with_model("trained", trained, plan=plan)
        if not self.criterion.startswith("weight"):
            last = Statistics()(last)
        cut = Prune(ratio=self.share, ratios=self.shares, criterion=self.criterion, align=False, norms=0)
        pruned = cut(last)
        newest = pruned.variant("pruned")
        return Cut(None, pruned.plan(newest), pruned.model(newest))


def stored(work: Work, step: int) -> dict[str, Tensor]:
    """The original's weights after `step` steps of its training; a RecipeError if they were not kept."""
    original = work.variant("original")
    if f"step-{step}" not in original.files:
        raise _unstored(step, [int(kind[5:]) for kind in original.files if kind.startswith("step-")])
    return tensors_in(original.path(f"step-{step}"))


def saved(work: Work, name: str, cut: Cut, model: nn.Module, *, role: str = "chain") -> Work:
    """This work with the network of a cut, and its masks if it has any."""
    if cut.masks is None:
        return work.with_model(name, model, plan=cut.plan, role=role)
    path = work.directory / name / "masks.safetensors"
    save_masks(path, cut.masks, "free")
    return work.with_model(name, model, role=role, beside={"masks": path})


def _as(work: Work, cut: Cut, start: Start, made: Fitted) -> Cut:
    """The cut of a control: a different one if it was random."""
    if cut.masks is None:
        return dataclasses.replace(cut, plan=plan_of(made.model))
    drawn = random_masks(cut.masks, seed=work.seed) if start == "random" else cut.masks
    return dataclasses.replace(cut, masks=drawn)


def _unstored(step: int, kept: Collection[int]) -> RecipeError:
    what = "initial weights" if step == 0 else f"weights of step {step}"
    if not kept:
        return RecipeError(
            f"The {what} to rewind to were not stored: the original was not trained by the stage train.",
            'Train it in this recipe, by the stage "train", which keeps them; loaded weights have none.',
        )
    return RecipeError(
        f"The {what} to rewind to were not stored; stored are those of step "
        f"{', '.join(map(str, sorted(kept)))}.",
        f"Set rewind_step = {step} in the stage train too, or rewind to a step that it kept.",
    )
