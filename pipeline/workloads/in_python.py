"""`deadweight.workload`: a workload without a class, in a notebook or a file of one function."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .assembled import Assembled, Loss, Network, Score, assembled
from .named import file_of, named_object, network_of


def workload(
    model: nn.Module | Callable[[], nn.Module] | str,
    data: str | Path | Mapping[str, Any] | Callable[[], Any] | None = None,
    *,
    train: Iterable[Any] | None = None,
    validation: Iterable[Any] | None = None,
    calibration: Iterable[Any] | None = None,
    test: Iterable[Any] | None = None,
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
    folder: Path | str = ".",
) -> Assembled:
    """A workload without a class, from a network and its data.

    >>> import deadweight, torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> batches = [(torch.randn(16, 4), torch.randint(2, (16,))) for _ in range(4)]
    >>> work = deadweight.workload(net, train=batches, validation=batches, task="classification")
    >>> work.score_name, list(work.example_inputs())
    ('accuracy', ['input'])

    Args:
        model: the network (its weights are kept), a function that builds it, or a factory's name, e.g.
            "timm:resnet18?classes=10".
        data: a folder of images, an .npz file or a folder of such files, or a function (or its name,
            "file.py:function") that returns the loaders: {"train": ..., "validation": ...}, with "test" and
            "calibration" if there are such data.
        train, validation, calibration, test: the loaders themselves. Batches are dictionaries of tensors, or
            tuples of inputs and label. A loader can be read again; "train" alone may be shuffled.
        task: classification, regression, segmentation, detection or language: gives loss and score.
        loss: instead, from what the module returned and the batch: a scalar.
        score: instead, from `predict` and batches, as `deadweight.Workload` has it; with its `score_name` and
            whether `higher_is_better`.
        optimizer: makes one for a module; None for AdamW with `learning_rate`.
        batch, size: of data from files: samples of a batch, and the side of images in pixels.
        fingerprint: changes whenever the loaders' data change; "" for a hash of one pass over them.
        folder: of files that are named.

    Raises:
        WorkloadError: data, or a loss or score, are missing or not known.
    """
    place = Path(folder)
    code: tuple[Path, ...] = ()
    if isinstance(data, str) and ":" in data:
        code, data = file_of(data, place), named_object(data, place)
    elif isinstance(data, (str, Path)):
        data = place / data
    if isinstance(model, str):
        network = network_of(model, place)
    elif isinstance(model, nn.Module):
        network = Network(functools.partial(copy.deepcopy, model))
    else:
        network = Network(model)
    given = {"train": train, "validation": validation, "calibration": calibration, "test": test}
    own = {split: one for split, one in given.items() if one is not None}
    return assembled(
        replace(network, code=(*network.code, *code)),
        data if data is not None else own or None,
        task=task,
        loss=loss,
        score=score,
        score_name=score_name,
        higher_is_better=higher_is_better,
        optimizer=optimizer,
        learning_rate=learning_rate,
        batch=batch,
        size=size,
        fingerprint=fingerprint,
    )
