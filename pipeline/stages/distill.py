"""The stage "distill": accuracy won back from teachers, beside the labels.

The first teacher is the original. More of them, an ensemble, are trained here for as long as the original
was, each from a seed of its own, or come from the user's own checkpoints; their word is averaged.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import nn

from ...targets.artifact import write_json
from ...targets.errors import RecipeError
from ..compression.masks import load_masks
from ..training.checkpoint import write_tensors
from ..training.fit import fit, training_sentence
from ..training.loop import WORKER, Schedule, TrainingJob
from ..training.networks import student_class
from ..training.teachers import Teaching
from ..work import Work
from ..workload import built_model, users_code
from .load import read_weights


@dataclass(frozen=True)
class Distill(Schedule):
    """Trains the newest network on, with teachers; the result is the network "tuned".

    Attributes:
        teachers: how many networks like the original teach, itself included; those beyond it are trained
            here, with the settings of the stage train.
        checkpoints: files of the user's own that hold further teachers, networks of `build_model()`.
        student: the dotted path of a network of the user's own, which learns in place of the pruned one, from
            scratch; "" for the newest network of the chain.
        temperature, share, hints: see `teaching.Teaching`.
        epochs, learning_rate, decay, keep, patience, precision, processes: see `training.Schedule`.
    """

    epochs: Annotated[int, Field(ge=0)] = 3
    teachers: Annotated[int, Field(ge=1)] = 1
    checkpoints: tuple[str, ...] = ()
    student: str = ""
    temperature: Annotated[float, Field(gt=0)] = 4.0
    share: Annotated[float, Field(gt=0, le=1)] = 0.7
    hints: Annotated[float, Field(ge=0)] = 0.0
    recovers: ClassVar[bool] = True

    def reads(self) -> list[Path]:
        """The teachers' checkpoints: other bytes are another stage."""
        return [Path(path) for path in self.checkpoints]

    def code(self) -> list[Path]:
        """The student's file, an edit of which is another student; teachers train as the original did."""
        student = [Path(inspect.getfile(student_class(self.student)))] if self.student else []
        return [*student, *([WORKER] if self.processes > 1 or self.teachers > 1 else [])]

    def __call__(self, work: Work) -> Work:
        if self.student and self.processes > 1:
            raise RecipeError(
                f'The student "{self.student}" cannot be trained by {self.processes} processes.',
                "Set processes = 1; a pruned network of build_model() can be.",
            )
        latest = work.latest()
        held = {"masks": latest.path("masks")} if "masks" in latest.files and not self.student else {}
        folders = [work.variant("original").path("weights").parent]
        folders += [_trained(work, number) for number in range(1, self.teachers)]
        folders += [_loaded(work, number, path) for number, path in enumerate(self.checkpoints, start=1)]
        job = TrainingJob(
            work.workload,
            work.networks,
            self,
            seed=work.seed + 1,  # as in finetune: the two can be compared
            checkpoint=work.directory / "checkpoint.safetensors",
            progress=work.progress,
            what="distill",
            teaching=Teaching(tuple(folders), self.temperature, self.share, self.hints),
            masks=load_masks(held["masks"])[0] if held else None,
        )
        fitted = fit(_student(self.student, work.seed) if self.student else work.model(latest), job)
        words = f"{len(folders)} teachers, {training_sentence(fitted, self.epochs, work.workload)}"
        if not self.student:
            made = work.with_model("tuned", fitted.model, plan=work.plan(latest), beside=held)
            return made.logged("distill", self, words)
        told = work.directory / "tuned" / "student.json"
        write_json(told, {"class": self.student})
        made = work.with_model("tuned", fitted.model).with_file("tuned", "student", told)
        return made.logged("distill", self, words)


def _student(name: str, seed: int) -> nn.Module:
    torch.manual_seed(seed + 2)
    with users_code(f"{name} was made"):
        return student_class(name)()


def _trained(work: Work, number: int) -> Path:
    """One more network like the original, from a seed of its own."""
    settings = work.training()
    if settings is None:
        raise RecipeError(
            "How the original was trained is not known, so no further teachers can be trained like it.",
            "Give their files as checkpoints, or set teachers = 1.",
        )
    seed = work.seed + 1000 * number
    model = built_model(work.workload, seed=seed)
    folder = work.directory / f"teacher-{number}"
    job = TrainingJob(
        work.workload,
        work.networks,
        Schedule.of(settings),
        seed=seed,
        checkpoint=folder / "checkpoint.safetensors",
        progress=work.progress,
        what=f"teacher {number + 1}",
    )
    write_tensors(folder / "model.safetensors", fit(model, job).model.state_dict())
    return folder


def _loaded(work: Work, number: int, path: str) -> Path:
    """A teacher of the user's own, in a folder as ours are."""
    folder = work.directory / f"checkpoint-{number}"
    write_tensors(folder / "model.safetensors", read_weights(Path(path)))
    return folder
