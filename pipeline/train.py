"""The stage "train": the original network, trained once.

A built-in example has no trained weights to start from. Who has some uses the stage "load" instead.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from ..targets.errors import RecipeError
from .training import Schedule, fit, rewind_path, training_words
from .work import Work, write_tensors
from .workload import built_model


@dataclass(frozen=True)
class Train:
    """Trains `build_model()` from scratch; the result is the network "original".

    Attributes:
        epochs, learning_rate, decay, keep, patience, precision, processes, rewind_step: see
            `training.Schedule`. The initial weights are always kept, as "step-0" of the network.
    """

    epochs: Annotated[int, Field(ge=0)] = 10
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    decay: Literal["cosine", "none"] = "cosine"
    keep: Literal["best", "last"] = "best"
    patience: Annotated[int, Field(ge=1)] | None = None
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    processes: Annotated[int, Field(ge=1)] = 1
    rewind_step: Annotated[int, Field(ge=0)] = 0
    trains: ClassVar[bool] = True

    def __call__(self, work: Work) -> Work:
        model = built_model(work.workload, seed=work.seed)
        checkpoint = work.directory / "checkpoint.safetensors"
        write_tensors(rewind_path(checkpoint, 0), model.state_dict())
        fitted = fit(
            model,
            work.workload,
            Schedule(**dataclasses.asdict(self)),
            seed=work.seed,
            checkpoint=checkpoint,
            progress=work.progress,
            what="train",
        )
        words = training_words(fitted, self.epochs, work.workload)
        early = {f"step-{step}": rewind_path(checkpoint, step) for step in (0, self.rewind_step)}
        if not early[f"step-{self.rewind_step}"].exists():
            raise RecipeError(
                f"The weights of step {self.rewind_step} were to be kept, and training ended before it.",
                f"Give a rewind_step within the first of the {self.epochs} epochs: early is what helps.",
            )
        return work.with_model("original", fitted.model, beside=early).logged("train", self, words)
