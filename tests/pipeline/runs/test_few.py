"""The few samples that `check` tries."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from support.digits import Digits
from torch import Tensor, nn

import deadweight
from deadweight.pipeline.runs.few import few, sample_time, with_few_to_hash, within


def sizes(workload: Any, split: str) -> list[int]:
    return [len(batch["pixels"]) for batch in workload.batches(split)]


@pytest.mark.parametrize(
    ("sample_s", "expected"), [(0.0, [64, 64]), (1e-4, [64, 64]), (0.01, [12, 12]), (0.1, [2]), (9.0, [2])]
)
def test_a_slow_network_is_tried_on_fewer_samples(sample_s: float, expected: list[int]) -> None:
    some = few(Digits(), sample_s)
    assert sizes(some, "train") == sizes(some, "validation") == expected
    (batch, *_) = some.batches("validation")
    assert len(batch["label"]) == expected[0]


def test_a_batch_without_a_row_for_each_sample_stays_whole() -> None:
    class Graphs(Digits):
        def batches(self, split: str, *, seed: int = 0) -> Iterator[dict[str, Tensor]]:
            for batch in super().batches(split, seed=seed):
                yield {**batch, "edges": torch.zeros(7, 2)}

    assert sizes(few(Graphs(), 9.0), "train") == [64]


def test_the_time_of_a_sample_is_that_of_a_batch_by_its_samples() -> None:
    assert 0 < sample_time(nn.Linear(64, 10), {"pixels": torch.randn(2, 64)}) < 1


class Counted:
    """Batches that count how often they were drawn, with noise of numpy's own in each."""

    def __init__(self, noise: float) -> None:
        self.drawn, self.noise = 0, noise

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(100):
            self.drawn += 1
            values = np.full((4, 3), 1 + self.noise * np.random.default_rng().normal(), np.float32)
            yield torch.from_numpy(values), torch.zeros(4, dtype=torch.int64)


def workload_of(train: Counted) -> Any:
    batch = (torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64))
    return deadweight.workload(nn.Linear(3, 2), train=train, validation=[batch, batch], task="classification")


def test_only_the_beginning_of_loaders_is_hashed_to_see_whether_the_hash_repeats() -> None:
    train = Counted(0.0)
    some = with_few_to_hash(workload_of(train))
    assert some.fingerprint() == some.fingerprint()
    assert 2 <= train.drawn <= 2 * 4


def test_loaders_that_draw_differently_each_time_are_still_noticed() -> None:
    some = with_few_to_hash(workload_of(Counted(1.0)))
    assert some.fingerprint() != some.fingerprint()
    given = with_few_to_hash(
        deadweight.workload(
            nn.Linear(3, 2), train=Counted(1.0), validation=[], task="classification", fingerprint="1"
        )
    )
    assert given.fingerprint() == given.fingerprint()


def test_a_workload_of_ones_own_is_hashed_as_it_says() -> None:
    own = Digits()
    assert with_few_to_hash(own) is own


def test_reading_ends_with_the_number_of_batches_or_with_the_time() -> None:
    batches: Any = itertools.repeat({"x": torch.zeros(1)})
    assert len([*within(batches, 3, 60.0)]) == 3
    assert len([*within(batches, 3, 0.0)]) == 1
