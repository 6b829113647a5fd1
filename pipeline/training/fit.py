"""Runs one training, in this process or in several, and returns the trained network with its score."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from ...targets.errors import WorkloadError
from ..pruning.narrow import copied_module
from ..workload import Workload, split_batches
from . import checkpoint as on_disk
from .loop import STEPS, TrainingJob, learn
from .predict import validation_score


@dataclass(frozen=True)
class Fitted:
    """A trained network, its validation score, the scores after each epoch, and how many of these epochs come
    from an interrupted run."""

    model: nn.Module
    score: float
    scores: tuple[float, ...]
    resumed_epochs: int = 0


def fit(model: nn.Module, job: TrainingJob) -> Fitted:
    """Trains a copy of `model` and returns it on the CPU, in eval mode.

    Raises:
        ModelError: the loss became NaN or infinite, or a process was killed; the last checkpoint stays.
        WorkloadError: the user's loss, optimizer or data failed, or the validation split is shuffled.
    """
    check_order(job.workload)
    trained = copied_module(model, {})
    resumed_epochs = len(on_disk.reached(job.checkpoint).scores) if job.checkpoint.exists() else 0
    if job.schedule.processes > 1:
        from .distributed import train_in_processes

        train_in_processes(trained, job)
    else:
        learn(trained, job, Fabric(accelerator="auto", devices=1, precision=job.schedule.precision))
    job.progress(STEPS, STEPS, job.what)
    found = on_disk.reached(job.checkpoint)
    trained.cpu().load_state_dict(dict(found.best))
    trained.eval()
    score = found.scores[found.kept] if found.scores else validation_score(job.workload, trained)
    return Fitted(trained, score, found.scores, resumed_epochs)


def training_sentence(fitted: Fitted, epochs: int, workload: Workload) -> str:
    early = f" of {epochs}, stopped early" if len(fitted.scores) < epochs else ""
    early += f" ({fitted.resumed_epochs} from the interrupted run)" if fitted.resumed_epochs else ""
    return f"{len(fitted.scores)} epochs{early}, validation {workload.score_name} {fitted.score:.4f}"


def check_order(workload: Workload) -> None:
    """Reads the first validation batch twice; a WorkloadError if they differ: the split is shuffled."""
    first, again = (next(split_batches(workload, "validation")) for _ in range(2))
    for name, value in first.items():
        if isinstance(value, Tensor) and not torch.equal(value, again[name]):
            raise WorkloadError(
                f'batches("validation") gave other values of "{name}" when it was read a second time.',
                'Shuffle and augment only "train": epochs and settings are compared on this split.',
            )
