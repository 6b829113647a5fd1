"""A workload from parts: a network, data, and a task or the user's own loss and score."""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...export.opened import outputs_of
from ...targets.errors import WorkloadError, meant, users_code
from ..workload import Array, Batch, Predict
from . import tasks
from .data import Data, Picture, loaders, read_data
from .tasks import Task

Loss = Callable[[Any, Batch], Tensor]
Score = Callable[[Predict, Iterable[Batch]], float]


@dataclass(frozen=True)
class Network:
    """What a factory makes of a name.

    Attributes:
        build: makes the network.
        task: what it is for, if nothing else is said.
        picture: how images become its inputs.
        loss: its own, from outputs and batch; None for the task's.
        optimizer: its own; None for AdamW.
        loaders: its own data by split, see `data.loaders`.
        code: files of which it is made.
    """

    build: Callable[[], nn.Module]
    task: str = ""
    picture: Picture = field(default=Picture())
    loss: Loss | None = None
    optimizer: Callable[[nn.Module], torch.optim.Optimizer] | None = None
    loaders: Callable[[], Mapping[str, Any]] | None = None
    code: tuple[Path, ...] = ()


@dataclass(eq=False)
class Assembled:
    """A `Workload` from parts; see `deadweight.workload`.

    Attributes:
        code: source files that it depends on, besides the one that names it.
        spec: how another process makes it; "" where it was made in Python.
    """

    network: Network
    data: Data
    task: Task | None
    score_name: str
    higher_is_better: bool
    makes_optimizer: Callable[[nn.Module], torch.optim.Optimizer]
    users_score: Score | None = None
    code: tuple[Path, ...] = ()
    spec: str = ""

    def build_model(self) -> nn.Module:
        """The network, made anew."""
        return self.network.build()

    def example_inputs(self) -> dict[str, Tensor]:
        """The first two samples of the validation split."""
        first = next(iter(self.batches("validation")), None)
        if first is None:
            raise WorkloadError('The split "validation" has no samples.', "Give at least two.")
        given = {name: first[name] for name in self._names(first)}
        return {name: torch.cat([one, one])[:2] if len(one) < 2 else one[:2] for name, one in given.items()}

    def batches(self, split: str, *, seed: int = 0) -> Iterable[Batch]:
        """The batches of a split, their tensors by name."""
        return _Named(self.data.batches(split, seed=seed), self._parameters)

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """A new one over the module's parameters."""
        return self.makes_optimizer(model)

    def loss(self, outputs: Any, batch: Batch) -> Tensor:
        """The user's or the network's own loss, or the task's."""
        if self.network.loss is not None:
            return self.network.loss(outputs, batch)
        assert self.task is not None  # `assembled` has checked both
        assert self.task.loss is not None
        return self.task.loss(next(iter(outputs_of(outputs).values())), self._label(batch))

    def score(self, predict: Predict, batches: Iterable[Batch]) -> float:
        """The user's own score, or the task's."""
        if self.users_score is not None:
            return self.users_score(predict, batches)
        assert self.task is not None  # `assembled` has checked it
        return self.task.score(self._pairs(predict, batches))

    def fingerprint(self) -> str:
        """The hash of the data."""
        return self.data.fingerprint()

    def _pairs(self, predict: Predict, batches: Iterable[Batch]) -> Iterator[tuple[Array, Array]]:
        for batch in batches:
            found = predict({name: batch[name].numpy() for name in self._names(batch)})
            yield next(iter(found.values())), self._label(batch).numpy()

    @functools.cached_property
    def _parameters(self) -> tuple[str, ...]:
        """The names of forward's parameters that can be inputs."""
        with torch.random.fork_rng(devices=[]):
            found = inspect.signature(self.build_model().forward).parameters.values()
        rest = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        return tuple(one.name for one in found if one.kind not in rest and one.name not in _LABELS)

    def _names(self, batch: Batch) -> list[str]:
        return _inputs_in(batch, self._parameters)

    def _label(self, batch: Batch) -> Tensor:
        """The label of a batch; the first input is its own, where there is none, as in a language model."""
        names = self._names(batch)
        return batch[next((name for name in batch if name not in names), names[0])]


_LABELS = ("label", "labels", "target", "targets")


class _Named:
    """Batches with their tensors by name, from the user's dictionaries or tuples."""

    def __init__(self, batches: Iterable[Any], parameters: tuple[str, ...]) -> None:
        self.source, self.parameters = batches, parameters

    def __length_hint__(self) -> int:
        return operator.length_hint(self.source)

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.source:
            yield _named(batch, self.parameters)


def _inputs_in(batch: Batch, parameters: tuple[str, ...]) -> list[str]:
    """The inputs among a batch's names: forward's parameters in their order, else all but the labels."""
    known = [name for name in parameters if name in batch]
    others = [name for name in batch if name not in _LABELS]
    return known or (others if len(others) < len(batch) else others[:-1]) or others


def _named(batch: Any, parameters: tuple[str, ...]) -> dict[str, Tensor]:
    if isinstance(batch, Mapping):
        return {name: torch.as_tensor(value) for name, value in batch.items()}
    if not isinstance(batch, (list, tuple)):
        raise WorkloadError(
            f"A batch is a {type(batch).__name__}, not a dictionary of tensors or a tuple of them.",
            'Let the loader give {"image": ..., "label": ...}, or (inputs, labels).',
        )
    flat = [one for part in batch for one in (part if isinstance(part, (list, tuple)) else [part])]
    names = [*parameters[: len(flat) - 1], "label"] if len(flat) > 1 else [*parameters[:1]]
    if len(names) != len(flat):
        raise WorkloadError(
            f"A batch has {len(flat)} tensors; forward takes {', '.join(parameters) or 'none by name'}, and "
            "one is the label.",
            "Let the loader give dictionaries: the inputs by forward's parameters, and the label.",
        )
    return {name: torch.as_tensor(one) for name, one in zip(names, flat, strict=True)}


def assembled(
    network: Network,
    data: str | Path | Mapping[str, Any] | Callable[[], Any] | None,
    /,
    *,
    task: str = "",
    loss: Loss | None = None,
    score: Score | None = None,
    score_name: str = "",
    higher_is_better: bool = True,
    optimizer: Callable[[nn.Module], torch.optim.Optimizer] | None = None,
    learning_rate: float = 1e-3,
    batch: int = 32,
    size: int = 0,
    fingerprint: str = "",
) -> Assembled:
    """See `deadweight.workload`; the network is made, and files have their whole paths."""
    known = tasks.task_names()
    name = task or network.task
    if name and name not in known:
        cure = f"The tasks are {', '.join(known)}; for another give loss and score of your own."
        raise WorkloadError(f'There is no task "{name}".', meant(name, known, cure))
    chosen: Task | None = getattr(tasks, name) if name else None
    own_loss = loss or network.loss
    lacks = [
        part
        for part, has in (("loss", own_loss or (chosen and chosen.loss)), ("score", score or chosen))
        if not has
    ]
    if lacks:
        raise WorkloadError(
            f"The workload has no {' and no '.join(lacks)}.",
            f"Name a task ({', '.join(known)}), or give functions: loss(outputs, batch), "
            "score(predict, batches).",
        )
    if data is None and network.loaders is not None:
        data = network.loaders
    if data is None:
        raise WorkloadError(
            "The workload has no data.",
            'Give a folder of images, an .npz file, or loaders: data = "file.py:function", or '
            "train = ... and validation = ... in Python.",
        )
    picture = network.picture if not size else Picture(size, network.picture.mean, network.picture.std)
    if callable(data):
        with users_code("the loaders were made"):
            made = data()
        data = (
            made
            if isinstance(made, Mapping)
            else dict(zip(("train", "validation", "test"), made, strict=False))
        )
    of = getattr(data, "__name__", "The data")
    parts = (
        loaders(data, fingerprint, of=of)
        if isinstance(data, Mapping)
        else read_data(Path(data), picture, batch)
    )
    return Assembled(
        replace(network, loss=own_loss),
        parts,
        chosen,
        score_name or ("score" if score or chosen is None else chosen.score_name),
        higher_is_better if score or chosen is None else chosen.higher_is_better,
        optimizer or network.optimizer or functools.partial(_adamw, learning_rate),
        score,
        network.code,
    )


def _adamw(rate: float, model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        (one for one in model.parameters() if one.requires_grad), lr=rate, weight_decay=1e-2
    )
