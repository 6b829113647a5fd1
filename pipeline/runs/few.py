"""A workload with few samples, so that a recipe can be tried in seconds."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..workload import Batch, Workload
from ..workloads.assembled import Assembled
from ..workloads.data import Loaders

BATCHES = 2
"""How many of each split are tried, at most."""
PASSES_S = 0.25
"""How long the samples of a split may take in one forward pass; a check takes about 25 such passes."""


@dataclass(frozen=True)
class _Few:
    """The first batches of each split of a workload, each with its first rows."""

    whole: Workload
    count: int
    rows: int | None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.whole, name)

    def batches(self, split: str, *, seed: int = 0) -> Iterator[Batch]:
        """As the whole workload's, but few."""
        for batch in itertools.islice(iter(self.whole.batches(split, seed=seed)), self.count):
            yield batch if self.rows is None else _first_rows(batch, self.rows)


def few(workload: Workload, sample_s: float = 0.0) -> Workload:
    """The workload with the first batches of each split, of fewer samples where the network is slow.

    Args:
        sample_s: the time of a forward pass over one sample.
    """
    most = int(PASSES_S / sample_s) if sample_s else None
    count = BATCHES if most is None or most >= 2 * BATCHES else 1
    return cast(Workload, _Few(workload, count, None if most is None else max(2, most // BATCHES)))


def _first_rows(batch: Batch, rows: int) -> Batch:
    counts = {len(one) for one in batch.values() if isinstance(one, Tensor) and one.dim()}
    if len(counts) != 1:  # not a row for each sample
        return batch
    return {n: one[:rows] if isinstance(one, Tensor) and one.dim() else one for n, one in batch.items()}


def sample_time(model: nn.Module, example: Mapping[str, Tensor]) -> float:
    """The time of a forward pass over one sample of a batch in seconds, after a first pass."""
    with torch.inference_mode():
        started = time.perf_counter()
        model.eval()(*example.values())
    return (time.perf_counter() - started) / len(next(iter(example.values())))


class _Begin:
    """The first batches of a loader, drawn anew in each pass."""

    def __init__(self, loader: Iterable[Any]) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[Any]:
        return itertools.islice(iter(self.loader), BATCHES)


def with_few_to_hash(workload: Workload) -> Workload:
    """The workload, its `fingerprint()` over the first batches of the user's loaders instead of all."""
    if not isinstance(workload, Assembled) or not isinstance(workload.data, Loaders):
        return workload
    begin = {split: _Begin(one) for split, one in workload.data.given.items()}
    return dataclasses.replace(workload, data=Loaders(begin, workload.data.mark))


def within(batches: Iterable[Batch], count: int, seconds: float) -> Iterator[Batch]:
    """The first batches, fewer where reading them takes longer than that."""
    started = time.monotonic()
    for batch in itertools.islice(batches, count):
        yield batch
        if time.monotonic() - started > seconds:
            return
