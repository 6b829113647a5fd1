"""The stage "train": the first training of the original network.

Trained weights are loaded by the stage "load" instead.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from ...targets.errors import RecipeError
from ..training.checkpoint import write_tensors
from ..training.loop import Schedule, TrainingJob, fit, rewind_path, training_sentence
from ..work import Work
from ..workload import built_model


@dataclass(frozen=True)
class Train(Schedule):
    """Trains `build_model()` from scratch; the result is the network "original".

    Attributes:
        epochs, learning_rate, decay, keep, patience, precision, processes, accumulate: see
            `training.Schedule`.
        rewind_step: the weights after this many steps are kept too, to rewind to. The initial weights are
            always kept, as "step-0" of the network.
    """

    epochs: Annotated[int, Field(ge=0)] = 10
    rewind_step: Annotated[int, Field(ge=0)] = 0
    trains: ClassVar[bool] = True

    def __call__(self, work: Work) -> Work:
        model = built_model(work.workload, seed=work.seed)
        job = TrainingJob.of(work, self, "train", seed=work.seed)
        job = dataclasses.replace(job, rewind_step=self.rewind_step)
        write_tensors(rewind_path(job.checkpoint, 0), model.state_dict())
        fitted = fit(model, job)
        words = training_sentence(fitted, self.epochs, work.workload)
        early = {f"step-{step}": rewind_path(job.checkpoint, step) for step in (0, self.rewind_step)}
        if not early[f"step-{self.rewind_step}"].exists():
            raise RecipeError(
                f"Training ended before step {self.rewind_step}, whose weights were to be kept.",
                f"Give a rewind_step within the first of the {self.epochs} epochs: an early step helps.",
            )
        return work.with_model("original", fitted.model, beside=early).logged("train", self, words)
