"""Knowledge distillation: the loss between a student and its teachers (Hinton et al. 2015, "Distilling").

Soft targets: the teachers' class probabilities at a temperature, averaged over all teachers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...export.opened import outputs_of
from ...targets.errors import ModelError
from ..workload import Batch, Workload, example_batch
from .networks import load_network

Loss = Callable[[Any, Batch], Tensor]


@dataclass(frozen=True)
class Teaching:
    """Teachers and the weight of their loss.

    Attributes:
        teachers: folders with a network's model.safetensors (and plan.json).
        temperature: above 1 it raises the probabilities of the wrong classes.
        share: of the soft targets in the loss; the rest is the workload's own loss.
    """

    teachers: tuple[Path, ...]
    temperature: float = 4.0
    share: float = 0.7

    @contextlib.contextmanager
    def loss(self, workload: Workload, student: nn.Module, device: torch.device) -> Iterator[Loss]:
        """The loss of (outputs, batch) for this student.

        Raises:
            ModelError: a teacher has other outputs than the student.
        """
        teachers = [load_network(workload, folder).to(device).eval() for folder in self.teachers]
        names = list(example_batch(workload))
        check_outputs(student, teachers, list(example_batch(workload).values()), device)

        def loss(outputs: Any, batch: Batch) -> Tensor:
            with torch.no_grad():
                taught = [outputs_of(teacher(*(batch[name] for name in names))) for teacher in teachers]
            total = self.share * soft_loss(outputs_of(outputs), taught, self.temperature)
            if self.share < 1:
                total = total + (1 - self.share) * workload.loss(outputs, batch)
            return total

        yield loss


def soft_loss(
    outputs: Mapping[str, Tensor], taught: Sequence[Mapping[str, Tensor]], temperature: float
) -> Tensor:
    """The distance of a student's outputs from the average of its teachers'; 0 where they agree.

    A single output (batch, classes) is read as logits: cross entropy with the averaged probabilities, minus
    their entropy, times the temperature squared, so that gradients keep their scale. Any other output is
    compared by mean square error, in units of the teachers' variance.
    """
    (first, *rest) = outputs.items()
    if not rest and first[1].dim() == 2 and first[1].shape[1] > 1:
        name, scores = first
        soft = torch.stack([F.softmax(one[name].float() / temperature, 1) for one in taught]).mean(0)
        found = F.log_softmax(scores.float() / temperature, 1)
        return F.kl_div(found, soft, reduction="batchmean") * temperature**2
    targets = {name: torch.stack([one[name].float() for one in taught]).mean(0) for name in outputs}
    return torch.stack([_relative(value.float(), targets[name]) for name, value in outputs.items()]).mean()


def check_outputs(
    student: nn.Module, teachers: Sequence[nn.Module], inputs: Sequence[Tensor], device: torch.device
) -> None:
    """Refuses teachers whose outputs have other names or shapes than the student's, by a ModelError."""
    was_training = student.training
    student.eval()
    with torch.no_grad():
        on_device = [value.to(device) for value in inputs]
        own = {name: tuple(value.shape) for name, value in outputs_of(student(*on_device)).items()}
        for number, teacher in enumerate(teachers, start=1):
            found = {name: tuple(value.shape) for name, value in outputs_of(teacher(*on_device)).items()}
            if found != own:
                raise ModelError(
                    f"Teacher {number} of {len(teachers)} has the outputs {found}, the student {own}.",
                    "Give teachers of the same task, with outputs of the same names and shapes.",
                )
    student.train(was_training)


def _relative(value: Tensor, target: Tensor) -> Tensor:
    """The mean square error in units of the target's variance."""
    return F.mse_loss(value, target) / target.var().clamp_min(1e-8)
