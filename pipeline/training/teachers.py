"""Knowledge distillation: the losses between a student and its teachers (Hinton et al. 2015, "Distilling").

Soft targets: the teachers' class probabilities at a temperature, averaged over all teachers. Hints (Romero et
al. 2015, "FitNets"): the inputs of the student's layers are trained towards those of the same layers of its
original. The student was pruned from the first teacher, so the plan maps each of its units to one of the
teacher's and no projection has to be learned; other teachers have other units and give only soft targets.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...export.opened import outputs_of
from ...targets.errors import ModelError, RecipeError
from ..pruning.plan import Plan, plan_of
from ..workload import Batch, Workload, example_batch
from .networks import load_network

Loss = Callable[[Any, Batch], Tensor]


@dataclass(frozen=True)
class Teaching:
    """Teachers and the weights of their losses.

    Attributes:
        teachers: folders with a network's model.safetensors (and plan.json).
        temperature: above 1 it raises the probabilities of the wrong classes.
        share: of the soft targets in the loss; the rest is the workload's own loss.
        hints: the weight of the hints, added to both; 0 for none.
    """

    teachers: tuple[Path, ...]
    temperature: float = 4.0
    share: float = 0.7
    hints: float = 0.0

    @contextlib.contextmanager
    def loss(self, workload: Workload, student: nn.Module, device: torch.device) -> Iterator[Loss]:
        """The loss of (outputs, batch) for this student.

        Raises:
            ModelError: a teacher has other outputs than the student.
            RecipeError: hints are set, but the student has no layers in common with its teacher.
        """
        teachers = [load_network(workload, folder).to(device).eval() for folder in self.teachers]
        names = list(example_batch(workload))
        check_outputs(student, teachers, list(example_batch(workload).values()), device)
        pairs = _pairs(student, teachers[0]) if self.hints else {}
        if self.hints and not pairs:
            raise RecipeError(
                "Hints compare the layers of the student with those of its original, but they have none in "
                "common: the student is of another class.",
                "Set hints = 0; soft targets need no common layers.",
            )

        def loss(outputs: Any, batch: Batch) -> Tensor:
            with torch.no_grad():
                taught = [outputs_of(teacher(*(batch[name] for name in names))) for teacher in teachers]
            total = self.share * soft_loss(outputs_of(outputs), taught, self.temperature)
            if self.share < 1:
                total = total + (1 - self.share) * workload.loss(outputs, batch)
            if pairs:
                total = total + self.hints * _hint_loss(mine, theirs, pairs)
            return total

        with _inputs(student, pairs) as mine, _inputs(teachers[0], pairs) as theirs:
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


@contextlib.contextmanager
def _inputs(model: nn.Module, names: Iterable[str]) -> Iterator[Mapping[str, Tensor]]:
    """The newest inputs of some modules, by the module's name."""
    seen: dict[str, Tensor] = {}

    def keep(name: str, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        seen[name] = inputs[0]

    with contextlib.ExitStack() as hooks:
        for name in names:
            recorder = functools.partial(keep, name)
            hooks.enter_context(model.get_submodule(name).register_forward_pre_hook(recorder))
        yield seen


def _pairs(student: nn.Module, teacher: nn.Module) -> dict[str, Tensor]:
    """By layer, the teacher's input channel of each of the student's: int64[student's channels]."""
    found = {}
    theirs = dict(teacher.named_modules())
    for name, module in student.named_modules():
        twin = theirs.get(name)
        if type(module) is not type(twin) or not isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)):
            continue
        if getattr(module, "groups", 1) == 1 and not getattr(module, "transposed", False):
            weight = theirs[name].get_parameter("weight")
            kept = _kept(plan_of(student), f"{name}.weight", weight.shape[1])
            if len(kept) == module.get_parameter("weight").shape[1]:
                found[name] = kept.to(weight.device)
    return found


def _kept(plan: Plan | None, parameter: str, size: int) -> Tensor:
    """The columns of the original's weight that remain after all plans."""
    kept = torch.arange(size)
    for one in (*plan.earlier, plan) if plan is not None else ():
        mask = torch.ones(len(kept), dtype=torch.bool)
        mask[list(one.cut.get(parameter, {}).get(1, ()))] = False
        kept = kept[mask]
    return kept


def _hint_loss(
    mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor], pairs: Mapping[str, Tensor]
) -> Tensor:
    """The mean over the layers of the relative square error of their inputs."""
    errors = []
    for name, kept in pairs.items():
        if name in mine and name in theirs:
            axis = 1 if mine[name].dim() > 3 else -1
            errors.append(_relative(mine[name].float(), theirs[name].float().index_select(axis, kept)))
    return torch.stack(errors).mean()


def _relative(value: Tensor, target: Tensor) -> Tensor:
    """The mean square error in units of the target's variance."""
    return F.mse_loss(value, target) / target.var().clamp_min(1e-8)
