"""The stage "depth": depth pruning, which removes whole residual blocks or layers.

Blocks are dropped one at a time. Before each removal the network is scored on the validation split without
each remaining block, because blocks are redundant with each other: the cost of the second removal is known
only after the first. Very deep networks lose little without some of their blocks (Veit et al. 2016, "Residual
Networks Behave Like Ensembles of Relatively Shallow Networks").

A shallower network launches fewer kernels, a narrower one smaller kernels: only a measurement on the target
says which is faster at equal accuracy.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from torch import nn

from ...targets.errors import ModelError, RecipeError
from ..pruning.blocks import Block, Kind, find, removable
from ..pruning.bypass import Dropped, dropping, without
from ..pruning.narrow import copied_module, elements_of
from ..pruning.plan import plan_of
from ..pruning.surgery import apply
from ..pruning.verify import verify
from ..training.batch_norm import reestimated
from ..training.predict import validation_score
from ..work import Work
from ..workload import example_batch, lost
from .prune import Share


@dataclass(frozen=True)
class Depth:
    """Drops blocks or layers of the newest network; the result is the network "shallow".

    It writes "depth": every measured score, and the blocks that could not be dropped, with the reason.

    Attributes:
        blocks: how many are dropped.
        parameters: instead, the least share of the network's parameters to remove.
        score_drop: how much worse the validation score may get, in its own unit, before fine-tuning; with
            a number or a share it ends the stage early, alone it is the budget.
        kind: "blocks" for residual blocks, "layers" for single layers as wide as their input.
        only: names of modules, with wildcards, that are tried instead.
        order: "drop" for the block whose removal costs the least score; "random" for the control.
        norms: number of training batches for batch-norm re-estimation afterwards; 0 for none.
    """

    blocks: Annotated[int, Field(ge=1)] | None = None
    parameters: Share | None = None
    score_drop: Annotated[float, Field(ge=0)] | None = None
    kind: Kind = "blocks"
    only: tuple[str, ...] = ()
    order: Literal["drop", "random"] = "drop"
    norms: Annotated[int, Field(ge=0)] = 64
    shrinks: ClassVar[bool] = True

    def __post_init__(self) -> None:
        goals = (self.blocks is not None) + (self.parameters is not None)
        if goals == 2 or (goals == 0 and self.score_drop is None):
            raise RecipeError(
                f"The stage depth has blocks {self.blocks}, parameters {self.parameters} and score_drop "
                f"{self.score_drop}.",
                "Give a number of blocks, or a share of the parameters, or only a score_drop.",
            )

    def __call__(self, work: Work) -> Work:
        model, example = work.model(), example_batch(work.workload)
        work.progress(0, 1, "depth: find blocks")
        found = find(model, example, kind=self.kind, only=self.only)
        search = _Search(self, work, model, removable(found))
        plan = dropping(model, search.dropped())
        small = apply(model, plan)
        plan = plan_of(small) or plan
        verify(model, small, plan, example)
        small = reestimated(small, work.workload, batches=self.norms, seed=work.seed)
        fixed = {block.path: block.reason for block in found if block.reason}
        work = work.with_json("depth", {"score": search.whole, "rounds": search.rounds, "fixed": fixed})
        work = work.with_model("shallow", small, plan=plan)
        stay = "; ".join(f"{path}: {reason}" for path, reason in fixed.items())
        return work.logged("depth", self, *search.words(), *([f"cannot be dropped: {stay}"] if stay else []))


class _Search:
    """The search for blocks to drop: each round scores the network without each remaining block."""

    def __init__(self, stage: Depth, work: Work, model: nn.Module, blocks: Sequence[Block]) -> None:
        self.stage, self.work, self.blocks = stage, work, blocks
        self.model = copied_module(model, {})
        self.size = elements_of(self.model)
        self.gone: list[Block] = []
        self.rounds: list[dict[str, Any]] = []
        self.ended = ""
        if stage.blocks is not None and stage.blocks > len(blocks):
            raise RecipeError(
                f"The stage asks for {stage.blocks} blocks, but only {len(blocks)} can be dropped.",
                f"Ask for fewer. They are: {', '.join(block.path for block in blocks)}.",
            )
        share = sum(block.parameters for block in blocks) / self.size
        if stage.parameters is not None and stage.parameters > share:
            raise RecipeError(
                f"The stage asks for {stage.parameters:.1%} of the parameters, but all blocks that can "
                f"be dropped have {share:.1%}.",
                "Ask for less, or prune neurons too.",
            )
        self.whole = self._score({})

    def dropped(self) -> Dropped:
        """The dropped blocks, in order; a ModelError if the first removal costs more than is allowed."""
        draw, limit = random.Random(self.work.seed), self.stage.score_drop
        while not self._is_done() and (left := [block for block in self.blocks if block not in self.gone]):
            if self.stage.order == "random":
                left = [draw.choice(left)]
            scores: dict[str, float] = {}
            for block in left:
                with contextlib.suppress(ModelError):  # outputs with NaN: it cannot be dropped
                    scores[block.path] = self._score(self._without(block))
            left = [block for block in left if block.path in scores]
            if not left:
                self.ended = "without any of the remaining blocks the outputs are NaN or infinite"
                break
            cost = {path: lost(self.work.workload, self.whole, score) for path, score in scores.items()}
            best = min(left, key=lambda block: (cost[block.path], -block.parameters))
            over = limit is not None and cost[best.path] > limit
            self.rounds.append({"scores": scores, "dropped": "" if over else best.path})
            if over:
                self.ended = f"{best.path} stays, as without it the score would be {scores[best.path]:.4f}"
                break
            self.gone.append(best)
        if not self.gone:
            raise ModelError(
                f"The first removal already costs more than is allowed (score_drop {limit}): {self.ended}.",
                "Allow a larger drop (fine-tuning recovers a part of it), or prune neurons instead.",
            )
        return self._without()

    def words(self) -> tuple[str, ...]:
        """Sentences: the dropped blocks in order, with the score after each, before norms and fine-tuning."""
        score = self.work.workload.score_name
        gone = [
            f"{block.path} ({block.kind}, {block.parameters:,} parameters): validation {score} "
            f"{found['scores'][block.path]:.4f}"
            for block, found in zip(self.gone, self.rounds, strict=False)
        ]
        share = sum(block.parameters for block in self.gone) / self.size
        summary = f"{len(self.gone)} of {len(self.blocks)} dropped, {share:.1%} of the parameters"
        return (f"{summary}; before, validation {score} {self.whole:.4f}", *gone, *filter(None, [self.ended]))

    def _is_done(self) -> bool:
        if self.stage.blocks is not None:
            return len(self.gone) >= self.stage.blocks
        share = self.stage.parameters
        return share is not None and sum(block.parameters for block in self.gone) >= share * self.size

    def _without(self, *more: Block) -> Dropped:
        return {block.path: block.bypass for block in (*self.gone, *more) if block.bypass is not None}

    def _score(self, dropped: Dropped) -> float:
        words = f"depth: without {', '.join(dropped)}" if dropped else "depth: score"
        self.work.progress(len(self.gone), self.stage.blocks or len(self.blocks), words)
        with without(self.model, dropped):
            return validation_score(self.work.workload, self.model)
