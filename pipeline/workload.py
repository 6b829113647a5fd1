"""The workload contract: the user's network, data, loss and score.

A `Workload` is a protocol, not a base class: any object with these members will do, and it needs no import
of this package. `score` gets a `predict` that maps named arrays to named arrays, so the same score judges
the PyTorch module, the ONNX file and an engine on a board.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ..targets.errors import WorkloadError, users_code

Batch = Mapping[str, Tensor]
Array = np.ndarray[Any, Any]
Predict = Callable[[Mapping[str, Array]], Mapping[str, Array]]


class Workload(Protocol):
    """A network and its data, as a run needs them.

    Optional: `code`, paths of further source files that it depends on; `resolutions`, heights in pixels that
    the stage budget may choose from.

    Attributes:
        score_name: the name of the score in tables, e.g. "accuracy".
        higher_is_better: whether a higher score is better.
    """

    score_name: str
    higher_is_better: bool

    def build_model(self) -> nn.Module:
        """The untrained network; its initial weights depend on torch's global random state."""
        ...

    def example_inputs(self) -> Mapping[str, Tensor]:
        """Inputs by the names of `forward`'s parameters, in their order; the first axis is a batch of 2."""
        ...

    def batches(self, split: str, *, seed: int = 0) -> Iterable[Batch]:
        """The batches of "train", "validation", "calibration" or "test".

        A batch maps the input names, and any further names such as labels, to tensors. Only "train" may
        be shuffled, and only by `seed`.
        """
        ...

    def loss(self, outputs: Any, batch: Batch) -> Tensor:
        """The scalar to minimise, from what the module returned."""
        ...

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """A new optimizer over the model's parameters."""
        ...

    def score(self, predict: Predict, batches: Iterable[Batch]) -> float:
        """The quality of `predict` over some batches; post-processing such as NMS belongs here."""
        ...

    def fingerprint(self) -> str:
        """A hash of the data set; it must change whenever the data change."""
        ...


def lost(workload: Workload, before: float, after: float) -> float:
    """How much worse the second score is; below 0 if it is better."""
    return before - after if workload.higher_is_better else after - before


def built_model(workload: Workload, *, seed: int | None = None) -> nn.Module:
    """A new network from `build_model()`; with a seed, its initial weights are reproducible.

    Raises:
        DeadweightError: the user's code failed; the message names the line.
    """
    if seed is not None:
        torch.manual_seed(seed)
    with users_code("build_model() was called"):
        return workload.build_model()


def example_batch(workload: Workload) -> dict[str, Tensor]:
    """The example inputs, checked.

    Raises:
        WorkloadError: they are empty, not a mapping, or without a batch axis of at least 2.
    """
    with users_code("example_inputs() was called"):
        example = workload.example_inputs()
    if not isinstance(example, Mapping) or not example:
        raise WorkloadError(
            f"example_inputs() returned {type(example).__name__}, not a mapping of names to tensors.",
            'Return e.g. {"image": torch.zeros(2, 3, 224, 224)}.',
        )
    for name, value in example.items():
        if not isinstance(value, Tensor) or value.dim() < 1 or value.shape[0] < 2:
            raise WorkloadError(
                f"The example input {name!r} has no batch axis of 2: {tuple(getattr(value, 'shape', ()))}.",
                "Return tensors whose first axis is the batch, of 2: 1 can hide a fixed batch size.",
            )
    return dict(example)


def split_batches(workload: Workload, split: str, *, seed: int = 0) -> Iterator[Batch]:
    """The batches of a split, checked as they come.

    Raises:
        WorkloadError: there are none, or one lacks an input.
    """
    names = set(example_batch(workload))
    seen = False
    with users_code(f'batches("{split}") was read'):
        for batch in workload.batches(split, seed=seed):
            absent = names - set(batch)
            if absent:
                raise WorkloadError(
                    f'A batch of "{split}" lacks the inputs {sorted(absent)}; it has {sorted(batch)}.',
                    "Name the tensors of a batch as example_inputs() does.",
                )
            seen = True
            yield batch
    if not seen:
        cure = f'Let batches("{split}") yield at least one batch.'
        raise WorkloadError(f'The split "{split}" has no samples.', cure)


def inputs_of(workload: Workload, split: str) -> Iterator[dict[str, Tensor]]:
    """The inputs of a split's batches, without labels, in the order of `forward`'s parameters."""
    names = list(example_batch(workload))
    for batch in split_batches(workload, split):
        yield {name: batch[name] for name in names}
