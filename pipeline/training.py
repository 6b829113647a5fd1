"""The one training loop: for the first training, for winning accuracy back, and for the controls.

Every epoch is seeded anew from (seed, epoch), and a checkpoint is written after each: a training that is
killed goes on at its last epoch and ends with the very bits of one that was left alone. Device and
precision are lightning-fabric's business; optimizer and loss are the workload's.
"""

from __future__ import annotations

import copy
import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning_fabric import Fabric
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..targets.errors import ArtifactError, ModelError
from .work import Progress, write_tensors
from .workload import Workload, example_batch, score_of, split_batches, torch_predict, users_code

STEPS = 1000  # the resolution of the progress bar


@dataclass(frozen=True)
class Schedule:
    """How long and how fast.

    Attributes:
        epochs: passes over the training split.
        learning_rate: replaces the workload's own at the start; None keeps it.
        decay: "cosine" (Loshchilov and Hutter 2017, without restarts) or "none".
        keep: "best" returns the epoch with the best validation score, "last" the last one.
    """

    epochs: int
    learning_rate: float | None = None
    decay: Literal["cosine", "none"] = "cosine"
    keep: Literal["best", "last"] = "best"


@dataclass(frozen=True)
class Fitted:
    """A trained network, its validation score, and the scores after each epoch."""

    model: nn.Module
    score: float
    scores: tuple[float, ...]


def fit(
    model: nn.Module,
    workload: Workload,
    schedule: Schedule,
    *,
    seed: int,
    checkpoint: Path,
    progress: Progress,
    what: str,
) -> Fitted:
    """Trains a copy of `model` and returns it on the CPU, in eval mode.

    Args:
        checkpoint: a safetensors file, written after every epoch and taken up again where it exists.
        what: the words beside the progress bar.

    Raises:
        ModelError: the loss became NaN or infinite; the checkpoint of the last good epoch is kept.
        WorkloadError: the user's loss, optimizer or data failed.
    """
    trained = copy.deepcopy(model)
    with users_code("optimizer() was called"):
        optimizer = workload.optimizer(trained)
    fabric = Fabric(accelerator="auto", devices=1)
    wrapped, optimizer = fabric.setup(trained, optimizer)
    rates = [schedule.learning_rate or group["lr"] for group in optimizer.param_groups]
    best, scores, kept = _load(checkpoint, trained, optimizer)
    names = list(example_batch(workload))
    count = _batch_count(workload)
    for epoch in range(len(scores), schedule.epochs):
        _seed_all(seed, epoch)
        wrapped.train()
        for step, batch in enumerate(split_batches(workload, "train", seed=_mixed(seed, epoch))):
            share = (epoch + min(step / count, 1.0)) / schedule.epochs
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * _decay(schedule.decay, share)
            _step(fabric, wrapped, optimizer, workload, batch, names, f"epoch {epoch + 1}, step {step + 1}")
            progress(round(STEPS * share), STEPS, what)
        scores.append(score_of(workload, torch_predict(wrapped, names), "validation"))
        if schedule.keep == "last" or epoch == 0 or _is_better(workload, scores[-1], scores[kept]):
            kept = epoch
            best = {name: value.detach().clone() for name, value in trained.state_dict().items()}
        _save(checkpoint, trained, optimizer, best, scores, kept)
    progress(STEPS, STEPS, what)
    trained.load_state_dict(best)
    trained = trained.cpu().eval()
    score = scores[kept] if scores else score_of(workload, torch_predict(trained, names), "validation")
    return Fitted(trained, score, tuple(scores))


def _step(
    fabric: Fabric,
    model: nn.Module,
    optimizer: Any,
    workload: Workload,
    batch: Any,
    names: Sequence[str],
    where: str,
) -> None:
    batch = fabric.to_device(dict(batch))
    optimizer.zero_grad()
    with users_code("the network ran on a training batch"):
        outputs = model(*(batch[name] for name in names))
    with users_code("loss() was called"):
        loss = workload.loss(outputs, batch)
        value = loss.item()
    if not math.isfinite(value):
        raise ModelError(
            f"Training diverged: the loss is {value} in {where}.",
            "Lower the learning rate (learning_rate of this stage); the epochs before are kept.",
        )
    fabric.backward(loss)
    optimizer.step()


def _decay(kind: str, share: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * share)) if kind == "cosine" else 1.0


def _is_better(workload: Workload, score: float, than: float) -> bool:
    return score > than if workload.higher_is_better else score < than


def _batch_count(workload: Workload) -> int:
    with users_code('batches("train") was called'):
        batches: Any = workload.batches("train")
        return max(1, len(batches) if hasattr(batches, "__len__") else sum(1 for _ in batches))


def _mixed(seed: int, epoch: int) -> int:
    """A seed for one epoch; neighbouring seeds and epochs share nothing."""
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])


def _seed_all(seed: int, epoch: int) -> None:
    mixed = _mixed(seed, epoch)
    torch.manual_seed(mixed)
    np.random.seed(mixed)  # the user's augmentations may draw from any of the three
    random.seed(mixed)


def _save(
    path: Path, model: nn.Module, optimizer: Any, best: dict[str, Tensor], scores: Sequence[float], kept: int
) -> None:
    state = optimizer.state_dict()
    tensors = {f"model/{name}": value for name, value in model.state_dict().items()}
    tensors |= {f"best/{name}": value for name, value in best.items()}
    plain: dict[str, dict[str, Any]] = {}
    for index, slots in state["state"].items():
        for name, value in slots.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{index}/{name}"] = value
            else:
                plain.setdefault(str(index), {})[name] = value
    facts = {"scores": list(scores), "kept": kept, "plain": plain, "groups": state["param_groups"]}
    write_tensors(path, tensors, {"training": json.dumps(facts, sort_keys=True)})


def _load(path: Path, model: nn.Module, optimizer: Any) -> tuple[dict[str, Tensor], list[float], int]:
    """What a checkpoint holds is put in place; without one, the start of a training is returned."""
    if not path.exists():
        return {name: value.detach().clone() for name, value in model.state_dict().items()}, [], 0
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads(file.metadata()["training"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"The checkpoint {path} is damaged: {error}.", f"Delete it (rm {path}): the training starts anew."
        ) from error
    state: dict[int, dict[str, Any]] = {int(index): dict(slots) for index, slots in facts["plain"].items()}
    for name, value in tensors.items():
        kind, _, rest = name.partition("/")
        if kind == "optimizer":
            index, _, slot = rest.partition("/")
            state.setdefault(int(index), {})[slot] = value
    optimizer.load_state_dict({"state": state, "param_groups": facts["groups"]})
    model.load_state_dict({name[6:]: value for name, value in tensors.items() if name.startswith("model/")})
    best = {name[5:]: value for name, value in tensors.items() if name.startswith("best/")}
    return best, list(facts["scores"]), int(facts["kept"])
