"""The stage "finetune": the accuracy that pruning cost, won back."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from .masks import load_masks
from .training import Schedule, fit, training_words
from .work import Work


@dataclass(frozen=True)
class Finetune:
    """Trains the newest network on; the result is the network "tuned".

    Attributes:
        epochs, learning_rate, decay, keep, patience, precision, processes: see `training.Schedule`.
    """

    epochs: Annotated[int, Field(ge=0)] = 3
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    decay: Literal["cosine", "none"] = "cosine"
    keep: Literal["best", "last"] = "best"
    patience: Annotated[int, Field(ge=1)] | None = None
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    processes: Annotated[int, Field(ge=1)] = 1
    recovers: ClassVar[bool] = True

    def __call__(self, work: Work) -> Work:
        latest = work.latest()
        held = {"masks": latest.path("masks")} if "masks" in latest.files else {}
        fitted = fit(
            work.model(latest),
            work.workload,
            Schedule(**dataclasses.asdict(self)),
            seed=work.seed + 1,  # not the order of samples that the original saw
            checkpoint=work.directory / "checkpoint.safetensors",
            progress=work.progress,
            what="finetune",
            masks=load_masks(held["masks"])[0] if held else None,
        )
        words = training_words(fitted, self.epochs, work.workload)
        made = work.with_model("tuned", fitted.model, plan=work.plan(latest), beside=held)
        return made.logged("finetune", self, words)
