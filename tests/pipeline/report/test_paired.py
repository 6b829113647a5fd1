"""The interval and the sign-flip test of paired differences, against their definitions."""

from __future__ import annotations

import itertools
import random

import pytest
from scipy import stats

from deadweight.pipeline.runs.seeds import paired


@pytest.mark.parametrize("differences", [[0.1, 0.3, 0.2], [0.5, -0.2, 0.1, 0.7], [1.0, 1.1] * 20])
def test_the_interval_is_students(differences: list[float]) -> None:
    found = paired(differences)
    low, high = stats.ttest_1samp(differences, 0.0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((low, high))


@pytest.mark.parametrize("seed", range(40))
def test_the_sign_flip_test_tries_all_signs_and_ties_count(seed: int) -> None:
    draw = random.Random(seed)
    differences = [draw.choice((-3, -1, 1, 2, 2, 3)) / 10 for _ in range(draw.randint(2, 8))]
    sums = [
        abs(sum(sign * value for sign, value in zip(signs, differences, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(differences))
    ]
    expected = sum(total >= abs(sum(differences)) - 1e-12 for total in sums) / len(sums)
    assert paired(differences).p == pytest.approx(expected)


def test_three_seeds_can_hardly_tell() -> None:
    found = paired([0.3, 0.1, 0.5])
    assert found.p == 0.25
    assert not found.apart
    assert found.words() == "+0.30 (-0.20 to +0.80)"


def test_equal_differences_have_an_interval_without_width() -> None:
    found = paired([0.2, 0.2])
    assert (found.low, found.mean, found.high) == (0.2, 0.2, 0.2)


def test_one_pair_allows_no_interval() -> None:
    with pytest.raises(ValueError, match="1 pairs"):
        paired([0.1])
