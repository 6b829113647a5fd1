"""The stage "train": the original network, trained once.

A built-in example has no trained weights to start from. Who has some uses the stage "load" instead.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field

from .training import Schedule, fit, training_words
from .work import Work
from .workload import users_code


@dataclass(frozen=True)
class Train:
    """Trains `build_model()` from scratch; the result is the network "original".

    Attributes:
        epochs, learning_rate, decay, keep, patience, precision, processes: see `training.Schedule`.
    """

    epochs: Annotated[int, Field(ge=0)] = 10
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    decay: Literal["cosine", "none"] = "cosine"
    keep: Literal["best", "last"] = "best"
    patience: Annotated[int, Field(ge=1)] | None = None
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    processes: Annotated[int, Field(ge=1)] = 1

    def __call__(self, work: Work) -> Work:
        torch.manual_seed(work.seed)
        with users_code("build_model() was called"):
            model = work.workload.build_model()
        fitted = fit(
            model,
            work.workload,
            Schedule(**dataclasses.asdict(self)),
            seed=work.seed,
            checkpoint=work.directory / "checkpoint.safetensors",
            progress=work.progress,
            what="train",
        )
        words = training_words(fitted, self.epochs, work.workload)
        return work.with_model("original", fitted.model).logged("train", self, words)
