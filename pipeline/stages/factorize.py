"""The stage "factorize": layers of low rank in the place of whole ones.

A trained weight is often close to one of low rank, and that one is a product: a linear layer becomes two,
a convolution two or three (`pruning.factors` has the methods). Fewer multiply-adds are not yet less time:
two thin layers read and write what lies between them. So a rank is chosen by what it keeps (`energy`), by the
score on the validation split (`score_drop`) or by time measured on the target (`speedup`), and a layer whose
thin layers would be slower stays whole, with the reason in the log. The result is tuned like any other.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field
from torch import nn

from ...export.to_onnx import to_onnx
from ...targets.errors import ModelError, RecipeError
from ...targets.timing.clock import time_together
from ...targets.timing.judge import Judgement, judge
from ...targets.timing.measurement import Protocol
from ..compression.low_rank import Convolution, candidates, factorized, product_of, prove
from ..compression.rank_selection import (
    COARSE,
    FINE,
    Candidate,
    Choice,
    between,
    last_within,
    measured,
    way_down,
)
from ..pruning.factors import most_ranks
from ..pruning.plan import plan_of
from ..training.batch_norm import reestimated
from ..training.predict import score_of, torch_predict
from ..work import Work
from ..workload import example_batch

Ranks = int | tuple[int, int]


@dataclass(frozen=True)
class Factorize:
    """Makes layers of the newest network thin; the result is the network "factorized".

    One of the first four says how ranks are chosen.

    Attributes:
        energy: the share of each weight's square sum that is kept; its relative error is at most the root of
            the rest.
        score_drop: how much the score on the validation split may fall, before any tuning.
        speedup: how many times as fast the network is to be, measured on this machine.
        ranks: by layer; a layer that is not named stays whole. Tucker takes two: of inputs, of outputs.
        convolution: "spatial" (k x 1, then 1 x k), "channel" (k x k, then 1 x 1) or "tucker" (1 x 1, k x k,
            1 x 1); a 1 x 1 convolution is always split by channel.
        layers: the layers that may be made thin; none named: all.
        events: of each timing, where there is one; with fewer than 12 no layer of several is proven faster.
        norms: over how many training batches batch norms are estimated anew; 0 for none.
    """

    energy: Annotated[float, Field(gt=0, le=1)] | None = None
    score_drop: Annotated[float, Field(ge=0)] | None = None
    speedup: Annotated[float, Field(gt=1)] | None = None
    ranks: dict[str, Ranks] = field(default_factory=dict)
    convolution: Convolution = "spatial"
    layers: tuple[str, ...] = ()
    events: Annotated[int, Field(ge=12)] = 24
    norms: Annotated[int, Field(ge=0)] = 64
    shrinks: ClassVar[bool] = True
    recovers: ClassVar[bool] = True  # controls of an earlier cut go through it too

    def __post_init__(self) -> None:
        given = {"energy": self.energy, "score_drop": self.score_drop, "speedup": self.speedup}
        named = [name for name, value in given.items() if value is not None] + ["ranks"] * bool(self.ranks)
        if len(named) != 1:
            raise RecipeError(
                f"The stage factorize has {' and '.join(named) or 'nothing'} to choose ranks by.",
                "Give one of energy, score_drop, speedup and ranks.",
            )

    def __call__(self, work: Work) -> Work:
        model, example = work.model(), example_batch(work.workload)
        work.progress(0, 3, "factorize: decompose")
        found, left = candidates(
            model, example, work.target, convolution=self.convolution, layers=(*self.layers, *self.ranks)
        )
        work.progress(1, 3, "factorize: ranks")
        chosen, words = self._chosen(model, found, left, work)
        if not chosen:
            whys = [f"{name}: {why}" for name, why in left.items()]
            more = f"; and {len(whys) - 5} more" if len(whys) > 5 else ""
            raise ModelError(
                f"No layer was made thin: {'; '.join(whys[:5])}{more}.",
                "Allow lower ranks, or leave this stage out: this network is as fast as it is.",
            )
        work.progress(2, 3, "factorize: check")
        thin = factorized(model, found, chosen)
        prove(model, thin, list(example.values()))
        told = [_told(model, thin, name) for name in chosen]
        thin = reestimated(thin, work.workload, batches=self.norms, seed=work.seed)
        alone = [f"{name} was left alone: {why}" for name, why in left.items()]
        work.progress(3, 3, "factorize")
        made = work.with_model("factorized", thin, plan=plan_of(thin))
        return made.logged("factorize", self, *told, *words, *alone)

    def _chosen(
        self, model: nn.Module, found: dict[str, Candidate], left: dict[str, str], work: Work
    ) -> tuple[Mapping[str, Choice], list[str]]:
        """Ranks by layer, and how they were come by; adds to `left` what stays whole."""
        if self.ranks or self.energy is not None:
            chosen = {}
            for name, candidate in found.items():
                choice = (
                    candidate.keeping(self.energy) if self.energy else candidate.at(self._asked(candidate))
                )
                if choice.cost < candidate.macs:
                    chosen[name] = choice
                else:
                    left[name] = (
                        f"at rank {_joined(choice.ranks)} thin layers take {choice.cost:,.0f} multiply-adds, "
                        f"and the whole one takes {candidate.macs:,}"
                    )
            return chosen, []
        shares = FINE if self.speedup is None else COARSE
        choices = {name: own for name, one in found.items() if (own := one.choices(shares))}
        none = "at no rank that the target likes do thin layers take fewer multiply-adds"
        left |= dict.fromkeys(sorted(found.keys() - choices.keys()), none)
        if not choices:
            return {}, []
        if self.speedup is not None:
            return self._by_latency(model, found, choices, left, work)
        way = way_down({name: float(found[name].macs) for name in choices}, choices)
        return self._by_score(model, found, way, work)

    def _asked(self, candidate: Candidate) -> tuple[int, ...]:
        asked = self.ranks[candidate.name]
        ranks = asked if isinstance(asked, tuple) else (asked,)
        most = tuple(candidate.energies.shape)
        if len(ranks) != len(most) or any(not 0 < one <= top for one, top in zip(ranks, most, strict=False)):
            raise RecipeError(
                f'The layer "{candidate.name}" was to get the rank {_joined(ranks)}, and with the method '
                f"{candidate.method} it has {_joined(most)}.",
                f"Give {'two numbers' if len(most) == 2 else 'one number'} from 1 to {_joined(most)}.",
            )
        return ranks

    def _by_score(
        self,
        model: nn.Module,
        found: Mapping[str, Candidate],
        way: Sequence[Mapping[str, Choice]],
        work: Work,
    ) -> tuple[Mapping[str, Choice], list[str]]:
        sign = 1 if work.workload.higher_is_better else -1
        names = list(example_batch(work.workload))
        scores = {0: score_of(work.workload, torch_predict(model, names), "validation")}

        def within(at: int) -> bool:
            work.progress(len(scores), len(way).bit_length() + 1, "factorize: score")
            thin = factorized(model, found, way[at])
            scores[at] = score_of(work.workload, torch_predict(thin, names), "validation")
            return sign * (scores[0] - scores[at]) <= (self.score_drop or 0.0) + 1e-12

        at = last_within(len(way), within)
        if at == 0:
            raise ModelError(
                f"No layer was made thin: the least that could be loses more than {self.score_drop} of the "
                f"validation {work.workload.score_name}, {scores[0]:.4f}.",
                "Allow a larger score_drop: what is lost here is before any tuning.",
            )
        name = work.workload.score_name
        said = (
            f"step {at} of {len(way) - 1}: validation {name} {scores[0]:.4f} -> {scores[at]:.4f}, not tuned"
        )
        return way[at], [said]

    def _by_latency(
        self,
        model: nn.Module,
        found: Mapping[str, Candidate],
        choices: Mapping[str, Sequence[Choice]],
        left: dict[str, str],
        work: Work,
    ) -> tuple[Mapping[str, Choice], list[str]]:
        assert self.speedup is not None
        if work.target.runtime.builds:
            raise RecipeError(
                f"The stage factorize has speedup = {self.speedup}, and this is no {work.target.title}.",
                "Choose by energy or by score_drop; the run measures on the board what came of it.",
            )
        with tempfile.TemporaryDirectory() as place:
            folder, example = Path(place), example_batch(work.workload)

            def made(ranks: Mapping[str, tuple[int, ...]]) -> nn.Module:
                return factorized(model, found, {name: found[name].at(own) for name, own in ranks.items()})

            whole, faster, slow = measured(
                model,
                choices,
                made,
                example,
                folder,
                seed=work.seed,
                events=self.events,
                progress=work.progress,
            )
            left |= slow
            way = way_down(whole, faster)
            if len(way) == 1:
                return {}, []
            judged: dict[tuple[object, ...], Judgement] = {}

            def speed(chosen: Mapping[str, Choice]) -> Judgement:
                key = tuple((name, choice.ranks) for name, choice in sorted(chosen.items()))
                if key not in judged:
                    work.progress(len(judged), 2 * len(way).bit_length(), "factorize: time")
                    to_onnx(factorized(model, found, chosen), example, folder / "thin.onnx")
                    pair = {"before": folder / "whole.onnx", "after": folder / "thin.onnx"}
                    protocol = Protocol(events=self.events, seed=work.seed, runtime=work.target.here.name)
                    times = time_together(pair, protocol=protocol)
                    judged[key] = judge(times["before"], times["after"])
                return judged[key]

            def first_fast(way: Sequence[Mapping[str, Choice]]) -> int:
                """The first place on a way that is fast enough; its first is not, and its last is."""
                return last_within(len(way) - 1, lambda at: speed(way[at]).ratio < (self.speedup or 1.0)) + 1

            if (most := speed(way[-1])).ratio < self.speedup:
                raise ModelError(
                    f"The network was to be {self.speedup}x as fast; at the lowest ranks tried it is "
                    f"{most.sentence()}.",
                    "Ask for less, prune before, or choose another convolution.",
                )
            at = first_fast(way)
            fine = between(way[at - 1], way[at], found)
            chosen = fine[first_fast(fine)]
            told = f"step {at} of {len(way) - 1} by measured time: {speed(chosen).sentence()}"
        return chosen, [told]


def _told(model: nn.Module, thin: nn.Module, name: str) -> str:
    plan = plan_of(thin)
    assert plan is not None
    one, weight = plan.factors[name], model.get_submodule(name).get_parameter("weight").detach().double()
    error = float((product_of(thin, name, one) - weight).norm() / weight.norm().clamp_min(1e-300))
    shape = "x".join(map(str, weight.shape))
    most = most_ranks(one.method, tuple(weight.shape))
    return f"{name} ({shape}): {one.method}, rank {_joined(one.ranks)} of {_joined(most)}, error {error:.3f}"


def _joined(ranks: Sequence[int]) -> str:
    return " and ".join(map(str, ranks))
