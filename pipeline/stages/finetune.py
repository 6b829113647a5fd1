"""The stage "finetune": fine-tuning, which restores accuracy after pruning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from ..compression.masks import load_masks
from ..training.loop import Schedule, TrainingJob, fit, training_sentence
from ..work import Work


@dataclass(frozen=True)
class Finetune(Schedule):
    """Fine-tunes the newest network; the result is the network "tuned".

    Attributes:
        epochs, learning_rate, decay, keep, patience, precision, processes, accumulate: see
            `training.Schedule`.
    """

    epochs: Annotated[int, Field(ge=0)] = 3
    recovers: ClassVar[bool] = True

    def __call__(self, work: Work) -> Work:
        latest = work.latest()
        held = {"masks": latest.path("masks")} if "masks" in latest.files else {}
        job = TrainingJob.of(work, self, "finetune", masks=load_masks(held["masks"])[0] if held else None)
        fitted = fit(work.model(latest), job)
        made = work.with_model("tuned", fitted.model, plan=work.plan(latest), beside=held)
        return made.logged("finetune", self, training_sentence(fitted, self.epochs, work.workload))
