"""The stage "factorize": low-rank factorization of layers.

A trained weight is often close to a product of low-rank factors: a linear layer becomes two layers, a
convolution two or three (`pruning.factors` has the methods). Fewer multiply-adds are not always less time:
the tensor between the layers is written and read. So a rank is chosen by kept energy (`energy`), by the
validation score (`score_drop`) or by time measured on the target (`speedup`), and a layer whose factors would
be slower stays full, with the reason in the log. The result can be fine-tuned like any other.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, ClassVar

import onnx
from pydantic import Field
from torch import nn

from ...export.onnx_graph.graph import load
from ...export.onnx_graph.segments import segments
from ...export.to_onnx import to_onnx
from ...targets.errors import ModelError, RecipeError
from ...targets.target import Target
from ...targets.timing.judge import Judgement, judge
from ...targets.timing.measurement import Protocol
from ..budget.grids import empty_file
from ..budget.measured import seconds_in_chunks
from ..budget.table import EMPTY
from ..budget.timer import QUICK, Together, check_clock, timer
from ..compression.low_rank import Convolution, candidates, factorized, product_of, prove
from ..compression.rank_selection import (
    COARSE,
    FINE,
    Candidate,
    Choice,
    Chosen,
    between,
    last_within,
    way_down,
)
from ..pruning.factors import joined, most_ranks
from ..pruning.plan import plan_of
from ..training.batch_norm import reestimated
from ..training.predict import validation_score
from ..work import Work
from ..workload import example_batch, lost
from .profile import how_on

_NOISE = 0.02
"""How much faster a layer must be, as a share; the network itself is judged."""
Ranks = int | tuple[int, int]


@dataclass(frozen=True)
class Factorize:
    """Factorizes layers of the newest network; the result is the network "factorized".

    One of the first four says how ranks are chosen.

    Attributes:
        energy: the share of each weight's square sum that is kept; its relative error is at most the root of
            the rest.
        score_drop: how much worse the validation score may get, before fine-tuning.
        speedup: the required speed-up of the network, measured.
        on: the board on which that is timed; without one, the target's runtime on this machine.
        ranks: by layer; a layer that is not named stays full. Tucker needs two: of inputs, of outputs.
        convolution: "spatial" (k x 1, then 1 x k), "channel" (k x k, then 1 x 1) or "tucker" (1 x 1, k x k,
            1 x 1); a 1 x 1 convolution is always split by channel.
        layers: the layers that may be factorized; empty for all.
        events: of each timing of the network.
        norms: number of training batches for batch-norm re-estimation; 0 for none.
    """

    energy: Annotated[float, Field(gt=0, le=1)] | None = None
    score_drop: Annotated[float, Field(ge=0)] | None = None
    speedup: Annotated[float, Field(gt=1)] | None = None
    on: str = ""
    ranks: dict[str, Ranks] = field(default_factory=dict)
    convolution: Convolution = "spatial"
    layers: tuple[str, ...] = ()
    events: Annotated[int, Field(ge=12)] = 24
    norms: Annotated[int, Field(ge=0)] = 64
    shrinks: ClassVar[bool] = True
    recovers: ClassVar[bool] = True  # controls of an earlier cut run through it too

    def __post_init__(self) -> None:
        given = {"energy": self.energy, "score_drop": self.score_drop, "speedup": self.speedup}
        named = [name for name, value in given.items() if value is not None] + ["ranks"] * bool(self.ranks)
        if len(named) != 1:
            raise RecipeError(
                f"The stage factorize has {' and '.join(named) or 'nothing'} to choose ranks by.",
                "Give one of energy, score_drop, speedup and ranks.",
            )

    def check_target(self, target: Target) -> None:
        """The speed-up that is asked for can be measured."""
        if self.speedup is not None:
            check_clock(self.on, target, f"speedup = {self.speedup}")

    def __call__(self, work: Work) -> Work:
        model, example = work.model(), example_batch(work.workload)
        work.progress(0, 3, "factorize: decompose")
        layers = (*self.layers, *self.ranks)
        found, left = candidates(model, example, work.target, convolution=self.convolution, layers=layers)
        work.progress(1, 3, "factorize: ranks")
        chosen, words = self._chosen(model, found, left, work)
        if not chosen:
            whys = [f"{name}: {why}" for name, why in left.items()]
            more = f"; and {len(whys) - 5} more" if len(whys) > 5 else ""
            raise ModelError(
                f"No layer was factorized: {'; '.join(whys[:5])}{more}.",
                "Allow lower ranks, or leave this stage out.",
            )
        work.progress(2, 3, "factorize: check")
        thin = factorized(model, found, chosen)
        prove(model, thin, list(example.values()))
        ranks = [_rank_sentence(model, thin, name) for name in chosen]
        thin = reestimated(thin, work.workload, batches=self.norms, seed=work.seed)
        unchanged = [f"{name} was not factorized: {why}" for name, why in left.items()]
        work.progress(3, 3, "factorize")
        made = work.with_model("factorized", thin, plan=plan_of(thin))
        return made.logged("factorize", self, *ranks, *words, *unchanged)

    def _chosen(
        self, model: nn.Module, found: dict[str, Candidate], left: dict[str, str], work: Work
    ) -> tuple[Chosen, list[str]]:
        """Ranks by layer, and sentences on their choice; adds the layers that stay full to `left`."""
        if self.ranks or self.energy is not None:
            chosen = {}
            for name, candidate in found.items():
                cheap = candidate.keeping(self.energy) if self.energy else None
                choice = cheap or candidate.at(self._asked(candidate))
                if choice.cost < candidate.macs:
                    chosen[name] = choice
                else:
                    left[name] = (
                        f"at rank {joined(choice.ranks)} its factors take {choice.cost:,.0f} multiply-adds, "
                        f"and the full layer takes {candidate.macs:,}"
                    )
            return chosen, []
        shares = FINE if self.speedup is None else COARSE
        choices = {name: own for name, one in found.items() if (own := one.choices(shares))}
        none = "at no rank with the target's alignment do its factors take fewer multiply-adds"
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
                f'The layer "{candidate.name}" is set to rank {joined(ranks)}, but with the method '
                f"{candidate.method} its full rank is {joined(most)}.",
                f"Give {'two numbers' if len(most) == 2 else 'one number'} from 1 to {joined(most)}.",
            )
        return ranks

    def _by_score(
        self, model: nn.Module, found: Mapping[str, Candidate], way: Sequence[Chosen], work: Work
    ) -> tuple[Chosen, list[str]]:
        scores = {0: validation_score(work.workload, model)}

        def within(at: int) -> bool:
            work.progress(len(scores), len(way).bit_length() + 1, "factorize: score")
            scores[at] = validation_score(work.workload, factorized(model, found, way[at]))
            return lost(work.workload, scores[0], scores[at]) <= (self.score_drop or 0.0) + 1e-12

        if (at := last_within(len(way), within)) == 0:
            raise ModelError(
                f"No layer was factorized: the smallest step loses more than {self.score_drop} of the "
                f"validation {work.workload.score_name}, {scores[0]:.4f}.",
                "Allow a larger score_drop: it counts before fine-tuning.",
            )
        change = f"validation {work.workload.score_name} {scores[0]:.4f} -> {scores[at]:.4f}, not fine-tuned"
        return way[at], [f"step {at} of {len(way) - 1}: {change}"]

    def _by_latency(
        self,
        model: nn.Module,
        found: Mapping[str, Candidate],
        choices: Mapping[str, Sequence[Choice]],
        left: dict[str, str],
        work: Work,
    ) -> tuple[Chosen, list[str]]:
        assert self.speedup is not None
        how = how_on(work, runtime="", precision="fp16")
        with tempfile.TemporaryDirectory() as place, timer(self.on, how, work.target) as clock:
            folder, example = Path(place), example_batch(work.workload)

            def file_of(ranks: Mapping[str, tuple[int, ...]], name: str) -> Path:
                some = {layer: found[layer].at(own) for layer, own in ranks.items()}
                to_onnx(factorized(model, found, some) if some else model, example, folder / name)
                return folder / name

            whole, faster, slow = self._layers(choices, file_of, clock.together, work)
            left |= slow
            if len(way := way_down(whole, faster)) == 1:
                return {}, []
            judged: dict[tuple[object, ...], Judgement] = {}

            def speed(chosen: Chosen) -> Judgement:
                key = tuple((name, choice.ranks) for name, choice in sorted(chosen.items()))
                if key not in judged:
                    work.progress(len(judged), 2 * len(way).bit_length(), "factorize: time")
                    thin = file_of({name: choice.ranks for name, choice in chosen.items()}, "thin.onnx")
                    protocol = Protocol(events=self.events, seed=work.seed, runtime=work.target.here.name)
                    times = clock.together({"before": folder / "whole.onnx", "after": thin}, protocol)
                    judged[key] = judge(times["before"], times["after"])
                return judged[key]

            def first_fast(way: Sequence[Chosen]) -> int:
                """The first place on a path that is fast enough; its start is not, and its end is."""
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
            sentence = f"step {at} of {len(way) - 1} by measured time: {speed(chosen).sentence()}"
        return chosen, [sentence]

    def _layers(
        self,
        choices: Mapping[str, Sequence[Choice]],
        file_of: Callable[[Mapping[str, tuple[int, ...]], str], Path],
        together: Together,
        work: Work,
    ) -> tuple[dict[str, float], dict[str, list[Choice]], dict[str, str]]:
        """Seconds of the full layers; their faster choices with seconds as cost; why others have none.

        Segments are timed as for the stage budget: those of the full network, then of a network in which
        every layer has its first choice, and so on.
        """
        deepest = max(map(len, choices.values()))
        levels = [{n: own[at].ranks for n, own in choices.items() if at < len(own)} for at in range(deepest)]
        keys: dict[tuple[str, int], list[str]] = {}
        makers: dict[str, Callable[[], onnx.ModelProto]] = {EMPTY: empty_file}
        dense = load(file_of({}, "whole.onnx"))
        for at, level in enumerate([{}, *levels]):
            work.progress(at, deepest + 1, "factorize: networks to time")
            for one in segments(load(file_of(level, "level.onnx")) if at else dense):
                own = [n for n in choices if one.name == n or one.name.startswith((f"{n}/", f"{n}."))]
                if own:
                    keys.setdefault((max(own, key=len), at), []).append(one.key())
                    makers.setdefault(one.key(), partial(_itself, one.model))
        seconds: dict[str, float] = {}
        quick = replace(QUICK, runtime=work.target.here.name)
        for _, found in seconds_in_chunks(makers, dense.proto, {"": together}, quick):
            seconds |= found
            work.progress(len(seconds), len(makers) + 1, "factorize: layers")
        cost = {
            at: sum(max(seconds[key] - seconds[EMPTY], 1e-9) for key in several)
            for at, several in keys.items()
        }
        whole = {name: cost[name, 0] for name in choices if (name, 0) in cost}
        faster: dict[str, list[Choice]] = {}
        slow: dict[str, str] = {}
        for name, full_s in whole.items():
            times = [(one, cost.get((name, at + 1), math.inf)) for at, one in enumerate(choices[name])]
            faster[name] = [replace(one, cost=s) for one, s in times if s < full_s * (1 - _NOISE)]
            listed = ", ".join(f"{joined(one.ranks)}: {full_s / s:.2f}x" for one, s in times)
            slow[name] = f"its low-rank layers are not measured faster (rank {listed})"
        slow |= dict.fromkeys(choices.keys() - whole.keys(), "it is no segment of the exported file")
        return (
            whole,
            {n: own for n, own in faster.items() if own},
            {n: w for n, w in slow.items() if not faster.get(n)},
        )


def _itself(model: onnx.ModelProto) -> onnx.ModelProto:
    return model


def _rank_sentence(model: nn.Module, thin: nn.Module, name: str) -> str:
    plan = plan_of(thin)
    assert plan is not None
    one, weight = plan.factors[name], model.get_submodule(name).get_parameter("weight").detach().double()
    error = float((product_of(thin, name, one) - weight).norm() / weight.norm().clamp_min(1e-300))
    shape = "x".join(map(str, weight.shape))
    most = most_ranks(one.method, tuple(weight.shape))
    return f"{name} ({shape}): {one.method}, rank {joined(one.ranks)} of {joined(most)}, error {error:.3f}"
