"""The stage "distill": knowledge distillation, which restores accuracy with teachers and labels.

The first teacher is the original. Further ones (an ensemble, whose outputs are averaged) are trained here for
as long as the original, each with its own seed, or come from the user's checkpoints.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import nn

from ...targets.artifact import write_json
from ...targets.errors import RecipeError, users_code
from ..compression.masks import load_masks
from ..stage import NamedStage, beside
from ..training.checkpoint import write_tensors
from ..training.loop import WORKER, Schedule, TrainingJob, fit, training_sentence
from ..training.networks import student_class
from ..training.teachers import Teaching
from ..work import Facts, Work
from ..workload import built_model
from .load import read_weights

GONE = "hints has no effect any more and ends with 0.4: matching the layers' inputs gained nothing"


@dataclass(frozen=True)
class Distill(Schedule):
    """Fine-tunes the newest network with teachers; the result is the network "tuned".

    Attributes:
        teachers: number of teachers like the original, itself included; the others are trained here, with
            the settings of the stage train.
        checkpoints: the user's own files with further teachers, networks of `build_model()`.
        student: the dotted path of the user's own network, which is trained from scratch instead of the
            pruned one; "" for the newest network of the chain.
        temperature, share: see `training.teachers.Teaching`.
        hints: has no effect any more, see docs/results.md.
        epochs, learning_rate, decay, keep, patience, precision, processes, accumulate: see
            `training.Schedule`.
    """

    epochs: Annotated[int, Field(ge=0)] = 3
    teachers: Annotated[int, Field(ge=1)] = 1
    checkpoints: tuple[str, ...] = ()
    student: str = ""
    temperature: Annotated[float, Field(gt=0)] = 4.0
    share: Annotated[float, Field(gt=0, le=1)] = 0.7
    hints: Annotated[float, Field(ge=0)] = 0.0
    recovers: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.student and self.processes > 1:
            raise RecipeError(
                f'The student "{self.student}" cannot be trained by {self.processes} processes.',
                "Set processes = 1, or distill a pruned network of build_model().",
            )

    def reads(self) -> list[Path]:
        """The teachers' checkpoints; their content enters the cache key."""
        return [Path(path) for path in self.checkpoints]

    def code(self) -> list[Path]:
        """The student's source file, and what teachers need to train as the original did."""
        student = [Path(inspect.getfile(student_class(self.student)))] if self.student else []
        return [*student, *([WORKER] if self.processes > 1 or self.teachers > 1 else [])]

    def check(self, earlier: Sequence[NamedStage]) -> None:
        """Teachers can be trained or read."""
        if self.teachers > 1 and not any(Facts.of(one.stage).trains for one in earlier):
            raise RecipeError(
                "The original was not trained in this run, so no further teachers can be trained like it.",
                "Give their files as checkpoints, or set teachers = 1.",
            )

    def check_files(self, files: Sequence[Path]) -> None:
        """The teachers' checkpoints can be read."""
        for path in files:
            read_weights(path)

    def __call__(self, work: Work) -> Work:
        latest = work.latest()
        held = {"masks": latest.path("masks")} if "masks" in latest.files and not self.student else {}
        folders = [work.variant("original").path("weights").parent]
        folders += [_trained(work, number) for number in range(1, self.teachers)]
        folders += [_loaded(work, number, path) for number, path in enumerate(self.checkpoints, start=1)]
        masks = load_masks(held["masks"])[0] if held else None
        teaching = Teaching(tuple(folders), self.temperature, self.share)
        job = dataclasses.replace(TrainingJob.of(work, self, "distill", masks=masks), teaching=teaching)
        fitted = fit(_student(self.student, work.seed) if self.student else work.model(latest), job)
        words = [f"{len(folders)} teachers, {training_sentence(fitted, self.epochs, work.workload)}"]
        words += [GONE] if self.hints else []
        if self.student:
            write_json(work.directory / "tuned" / "student.json", {"class": self.student})
            made = work.with_model("tuned", fitted.model)
            made = made.with_file("tuned", "student", work.directory / "tuned" / "student.json")
        else:
            made = work.with_model("tuned", fitted.model, plan=work.plan(latest), beside=held)
        return made.logged("distill", self, *words)


def _student(name: str, seed: int) -> nn.Module:
    torch.manual_seed(seed + 2)
    with users_code(f"{name} was made"):
        return student_class(name)()


def _trained(work: Work, number: int) -> Path:
    settings = work.training() or {}  # `check` was called
    seed = work.seed + 1000 * number
    model = built_model(work.workload, seed=seed)
    folder = work.directory / f"teacher-{number}"
    own = dataclasses.replace(work, directory=folder)
    job = TrainingJob.of(own, Schedule.of(settings), f"teacher {number + 1}", seed=seed)
    write_tensors(folder / "model.safetensors", fit(model, job).model.state_dict())
    return folder


def _loaded(work: Work, number: int, path: str) -> Path:
    folder = work.directory / f"checkpoint-{number}"
    write_tensors(folder / "model.safetensors", read_weights(beside(Path(path), work.folder)))
    return folder
