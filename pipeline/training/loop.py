"""The training loop: for the first training, for fine-tuning and for the controls.

Every epoch has its own seed from (seed, epoch), and a checkpoint is written after each: a killed training
resumes at its last epoch and, on a CPU, ends with the same bits as an uninterrupted one. lightning-fabric
handles device, precision and gradients across processes; the workload defines optimizer and loss.
"""

from __future__ import annotations

import contextlib
import math
import operator
import random
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from pydantic import Field
from torch import Tensor, nn

from ...targets.errors import ModelError, RecipeError, WorkloadError, users_code
from ..pruning.narrow import copied_module
from ..workload import Batch, Workload, example_batch, lost, split_batches
from . import checkpoint as on_disk
from .predict import score_of, torch_predict, validation_score

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from ...targets.progress import Progress
    from ..work import Work
    from .networks import NetworkFiles
    from .teachers import Teaching

STEPS = 1000  # the resolution of the progress bar
WORKER = Path(__file__).with_name("worker.py")
"""The module that several processes run; nothing imports it, so stages that start it name it as code."""

Loss = Callable[[Any, Batch], Tensor]
Masks = Mapping[str, Tensor]
"""By parameter, which of its weights stay: bool, of its shape."""

Held = Sequence[tuple[nn.Parameter, Tensor]]


class DivergedError(ModelError):
    """The loss of a training became NaN or infinite."""


@dataclass(frozen=True)
class Schedule:
    """The settings of a training.

    Attributes:
        epochs: passes over the training split.
        learning_rate: replaces the workload's initial learning rate; None keeps it.
        decay: "cosine" (Loshchilov and Hutter 2017, without restarts) or "none".
        keep: "best" returns the epoch with the best validation score, "last" the last one.
        patience: training stops after so many epochs without a better validation score; None never stops.
        precision: of the forward pass, in lightning-fabric's names; weights stay in 32 bits.
        processes: how many share each batch, each on its own device if there are several; those of torchrun
            and srun go before.
        accumulate: how many batches make one step of the optimizer, each with its share of the gradient.
    """

    epochs: Annotated[int, Field(ge=0)]
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    decay: Literal["cosine", "none"] = "cosine"
    keep: Literal["best", "last"] = "best"
    patience: Annotated[int, Field(ge=1)] | None = None
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    processes: Annotated[int, Field(ge=1, le=64)] = 1
    accumulate: Annotated[int, Field(ge=1, le=4096)] = 1

    def code(self) -> list[Path]:
        """The module that several processes run; an edit of it changes the cache key."""
        return [WORKER] if self.processes > 1 else []

    @staticmethod
    def of(settings: Mapping[str, Any]) -> Schedule:
        """The schedule among a stage's settings; other settings are ignored."""
        names = {field.name for field in fields(Schedule)}
        return Schedule(**{name: value for name, value in settings.items() if name in names})


@dataclass(frozen=True)
class TrainingJob:
    """All inputs of a training except the network.

    Attributes:
        networks: gives other processes the network; not used by a single process.
        checkpoint: a safetensors file, written after every epoch; training resumes from it if it exists.
        what: the text beside the progress bar.
        teaching: teachers for distillation, in addition to the workload's loss.
        masks: weights that are zero and stay zero, see `masks`.
        rewind_step: after this many steps the weights are saved too, to rewind to; 0: never.
    """

    workload: Workload
    networks: NetworkFiles
    schedule: Schedule
    _: KW_ONLY
    seed: int
    checkpoint: Path
    what: str = ""
    progress: Progress = lambda done, total, what: None
    teaching: Teaching | None = None
    masks: Masks | None = None
    rewind_step: int = 0

    @classmethod
    def of(
        cls, work: Work, schedule: Schedule, what: str, *, seed: int | None = None, masks: Masks | None = None
    ) -> TrainingJob:
        """A stage's job, with its checkpoint in the stage's directory.

        The default seed is the run's and one more: samples come in another order than the original saw.
        """
        return cls(
            work.workload,
            work.networks,
            schedule,
            seed=work.seed + 1 if seed is None else seed,
            checkpoint=work.directory / "checkpoint.safetensors",
            what=what,
            progress=work.progress,
            masks=masks,
        )


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
        DivergedError: the loss became NaN or infinite; the last checkpoint stays.
        ModelError: a process was killed; the last checkpoint stays.
        WorkloadError: the user's loss, optimizer or data failed, or the validation split is shuffled.
    """
    check_order(job.workload)
    trained = copied_module(model, {})
    resumed_epochs = len(on_disk.reached(job.checkpoint).scores) if job.checkpoint.exists() else 0
    if dist.is_initialized():
        from .distributed import shared

        with shared(trained, job) as fabric:
            learn(trained, job, fabric)
    elif job.schedule.processes > 1:
        from .distributed import train_in_processes

        train_in_processes(trained, job)
    else:
        from lightning_fabric import Fabric  # seconds, where torchmetrics is installed

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The `srun` command")  # one process needs none
            fabric = Fabric(accelerator="auto", devices=1, precision=job.schedule.precision)
        learn(trained, job, fabric)
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


def learn(model: nn.Module, job: TrainingJob, fabric: Fabric) -> None:
    """Trains `model` in place, as the only process or one of several; the result is in the checkpoint."""
    workload, schedule, checkpoint, seed = job.workload, job.schedule, job.checkpoint, job.seed
    with users_code("optimizer() was called"):
        optimizer = workload.optimizer(model)
    wrapped, optimizer = fabric.setup(model, optimizer)
    held = holding(model, job.masks or {})
    hold(held)
    rates = [schedule.learning_rate or group["lr"] for group in optimizer.param_groups]
    if checkpoint.exists():
        reached = on_disk.load(checkpoint, model, optimizer)
        if reached.seed != seed:
            raise RecipeError(
                f"The checkpoint {checkpoint} is of a training with seed {reached.seed}, not {seed}.",
                f"Use that seed, or delete it (rm {checkpoint}).",
            )
    else:
        reached = on_disk.Reached((), 0, _copied(model), seed)
        if fabric.is_global_zero:
            on_disk.save(checkpoint, model, optimizer, reached)
    names = list(example_batch(workload))
    count = _batch_count(workload)
    taught = contextlib.nullcontext(workload.loss)
    with taught if job.teaching is None else job.teaching.loss(workload, model, fabric.device) as loss:
        for epoch in range(len(reached.scores), schedule.epochs):
            if _has_stopped_improving(workload, reached.scores, schedule.patience):
                break
            _seed_all(seed, epoch, fabric.global_rank)
            wrapped.train()
            for step, whole in enumerate(split_batches(workload, "train", seed=_epoch_seed(seed, epoch))):
                share = (epoch + min(step / count, 1.0)) / schedule.epochs
                decay = 0.5 * (1 + math.cos(math.pi * share)) if schedule.decay == "cosine" else 1.0
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * decay
                if 0 < job.rewind_step == epoch * count + step and fabric.is_global_zero:
                    on_disk.write_tensors(rewind_path(checkpoint, job.rewind_step), model.state_dict())
                batch = _part(whole, fabric.global_rank, fabric.world_size)
                where = f"epoch {epoch + 1}, step {step + 1}"
                at, last = step % schedule.accumulate, step == count - 1
                several = (at == 0, at == schedule.accumulate - 1 or last, schedule.accumulate)
                train_step(fabric, wrapped, optimizer, loss, batch, names, where, held, several)
                job.progress(round(STEPS * share), STEPS, job.what)
            first = fabric.is_global_zero
            score = score_of(workload, torch_predict(model, names), "validation") if first else 0.0
            scores = (*reached.scores, fabric.broadcast(score))
            keep = schedule.keep == "last" or epoch == 0
            keep = keep or lost(workload, scores[reached.kept], scores[-1]) < 0
            kept, best = (epoch, _copied(model)) if keep else (reached.kept, reached.best)
            reached = on_disk.Reached(scores, kept, best, seed)
            if first:
                on_disk.save(checkpoint, model, optimizer, reached)
            fabric.barrier()


def rewind_path(checkpoint: Path, step: int) -> Path:
    return checkpoint.with_name(f"step-{step}.safetensors")


def train_step(
    fabric: Fabric,
    model: Any,
    optimizer: Any,
    loss_of: Loss,
    batch: Batch,
    names: Sequence[str],
    where: str,
    held: Held = (),
    several: tuple[bool, bool, int] = (True, True, 1),
) -> None:
    """One step of the optimizer; `held` are the masked parameters, `where` is for messages.

    `several`: whether the batch is the first, and the last, of those that make the step, and how many do.
    """
    first, last, count = several
    batch = fabric.to_device(dict(batch))
    if first:
        optimizer.zero_grad()
    with users_code("the network ran on a training batch"):
        outputs = model(*(batch[name] for name in names))
    with users_code("loss() was called"):
        loss = loss_of(outputs, batch)
        value = loss.item()
    if not math.isfinite(value):
        cure = "Lower the learning rate (learning_rate of this stage); earlier epochs are kept."
        raise DivergedError(f"Training diverged: the loss is {value} in {where}.", cure)
    with fabric.no_backward_sync(model, enabled=not last):  # gradients meet once, at the last batch
        fabric.backward(loss / count)
    if last:
        optimizer.step()
        hold(held)


def holding(model: nn.Module, masks: Masks) -> Held:
    """The masked parameters with their masks, on the network's device; a ModelError if one is another's."""
    parameters = dict(model.named_parameters())
    for name, mask in masks.items():
        if name not in parameters or parameters[name].shape != mask.shape:
            raise ModelError(
                f'The mask of "{name}", {list(mask.shape)}, does not fit any weight of this network.',
                "Masks belong to one network: make them after pruning, not before.",
            )
    return [(parameters[name], mask.to(parameters[name].device)) for name, mask in masks.items()]


def hold(held: Held) -> None:
    """Sets dropped weights to zero again: momentum and weight decay change weights without a gradient.

    To +0.0: multiplication by a mask would make half of them -0.0, which costs a bit each in a packed file.
    """
    with torch.no_grad():
        for parameter, mask in held:
            parameter.masked_fill_(~mask, 0.0)


def _part(batch: Batch, rank: int, processes: int) -> Batch:
    """One process's share of a batch; together the shares are the batch, so the steps are the same."""
    if processes == 1 or min(len(value) for value in batch.values()) < processes:
        return batch
    return {name: value[rank::processes] for name, value in batch.items()}


def _copied(model: nn.Module) -> Mapping[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def _has_stopped_improving(workload: Workload, scores: Sequence[float], patience: int | None) -> bool:
    """Whether none of the last `patience` epochs is better than the best before them."""
    if patience is None or len(scores) <= patience:
        return False
    best = max if workload.higher_is_better else min
    return lost(workload, best(scores[:-patience]), best(scores[-patience:])) >= 0


def _batch_count(workload: Workload) -> int:
    with users_code('batches("train") was called'):
        batches: Any = workload.batches("train")
        return max(1, operator.length_hint(batches) or sum(1 for _ in batches))


def _epoch_seed(seed: int, epoch: int) -> int:
    """A seed for one epoch, different for neighbouring seeds and epochs."""
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])


def _seed_all(seed: int, epoch: int, rank: int) -> None:
    own = (_epoch_seed(seed, epoch) + rank) % 2**32
    torch.manual_seed(own)
    np.random.seed(own)  # the user's augmentations may draw from any of the three
    random.seed(own)
