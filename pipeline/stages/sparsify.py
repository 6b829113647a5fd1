"""The stage "sparsify": unstructured or 2:4 sparsity; single weights become zero, the shapes stay.

It is a comparison for pruning neurons at the same number of parameters; the report has the result. A dense
kernel multiplies by zero as by any other number. Zeros save bytes in a sparse file, and time only with a
kernel for their pattern: 2:4, two of every four neighbours along a layer's inputs, on the tensor cores of
Ampere and later GPUs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import nn

from ...targets.errors import RecipeError
from ..compression.masks import (
    Masks,
    is_structured,
    magnitude_masks,
    masked,
    save_masks,
    structured_masks,
    weights_of,
)
from ..importance.allocation import Scope
from ..pruning.narrow import elements_of
from ..training.loop import Schedule, TrainingJob, fit
from ..work import Work
from .prune import Share

Pattern = Literal["free", "2:4"]


@dataclass(frozen=True)
class Sparsify:
    """Drops single weights of a network; the result is the network "sparse", whose masks later tuning keeps.

    Attributes:
        pattern: "free" drops the weights of least magnitude, wherever they are; "2:4" two of every four.
        share: the share of the weights to drop. 2:4 always drops half, so it has no share.
        like: instead, the name of a network of this run: as many parameters stay as it has.
        scope: "local" drops the same share of each layer, "global" the smallest weights of all.
        network: the network whose weights are dropped; "" for the newest.
        dense: names of layers that are not sparsified.
        epochs, learning_rate: of the fine-tuning after the cut; 0 epochs leave it to a later stage.
    """

    pattern: Pattern = "free"
    share: Share | None = None
    like: str = ""
    scope: Scope = "local"
    network: str = ""
    dense: tuple[str, ...] = ()
    epochs: Annotated[int, Field(ge=0)] = 0
    learning_rate: Annotated[float, Field(gt=0)] | None = None

    def __post_init__(self) -> None:
        given = (self.share is not None) + bool(self.like)
        if given != (self.pattern == "free"):
            raise RecipeError(
                f"The stage sparsify has the pattern {self.pattern!r}, share {self.share} and like "
                f"{self.like!r}.",
                'Give a share of the weights, or like = "NAME" of a network of this run; 2:4 needs neither: '
                "it drops half.",
            )

    def __call__(self, work: Work) -> Work:
        source = work.variant(self.network) if self.network else work.latest()
        model = work.model(source)
        weights = weights_of(model, self.dense)
        if self.pattern == "2:4":
            masks = structured_masks(weights)
        else:
            masks = magnitude_masks(weights, self._share(work, model, weights), scope=self.scope)
        sparse = masked(model, masks)
        if self.epochs:
            schedule = Schedule(self.epochs, self.learning_rate)
            sparse = fit(sparse, TrainingJob.of(work, schedule, "sparsify", masks=masks)).model
        place = work.directory / "sparse" / "masks.safetensors"
        save_masks(place, masks, self.pattern)
        facts = sparse_facts(sparse, masks, self.pattern)
        made = work.with_model("sparse", sparse, plan=work.plan(source), beside={"masks": place})
        made = made.with_json("sparse", {"network": "sparse", **facts})
        words = f"{facts['left']:,} of {facts['parameters']:,} parameters are left"
        return made.logged("sparsify", self, words)

    def _share(self, work: Work, model: nn.Module, weights: Mapping[str, nn.Parameter]) -> float:
        if self.share is not None:
            return self.share
        whole, wanted = (elements_of(one) for one in (model, work.model(work.variant(self.like))))
        there = sum(weight.numel() for weight in weights.values())
        if not 0 < whole - wanted < there:
            raise RecipeError(
                f'The network cannot be left with the {wanted:,} parameters of "{self.like}": it has '
                f"{whole:,}, of which {there:,} are weights that may be dropped.",
                "Name a smaller network, or leave fewer layers dense.",
            )
        return (whole - wanted) / there


def sparse_facts(model: nn.Module, masks: Masks, pattern: Pattern) -> dict[str, Any]:
    """Zeros and parameters left of a network with masks."""
    zeros = {name: int((~mask).sum()) for name, mask in masks.items()}
    whole = elements_of(model)
    return {
        "pattern": pattern,
        "structured": all(is_structured(mask) for mask in masks.values()),
        "parameters": whole,
        "left": whole - sum(zeros.values()),
        "zeros": zeros,
    }
