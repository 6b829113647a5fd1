from __future__ import annotations

import pytest
from scipy import stats

from deadweight.targets.timing.binomial import binomial_below, clopper_pearson


@pytest.mark.parametrize("trials", [1, 7, 24, 600, 2995, 20_000])
@pytest.mark.parametrize("chance", [0.001, 0.01, 0.5, 0.99, 0.999])
def test_the_distribution_is_scipys(trials: int, chance: float) -> None:
    for successes in {0, 1, trials // 2, (trials + 1) // 2, trials // 2 + 1, trials - 1, trials}:
        expected = stats.binom.cdf(successes - 1, trials, chance)
        assert binomial_below(successes, trials, chance) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (3, 10), (10, 10), (4, 600), (1490, 1500)])
def test_the_interval_of_a_rate_is_scipys(successes: int, trials: int) -> None:
    expected = stats.binomtest(successes, trials).proportion_ci(0.95)
    assert clopper_pearson(successes, trials) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_nothing_tried_is_nothing_known() -> None:
    assert clopper_pearson(0, 0) == (0.0, 1.0)


def test_certain_and_impossible_coins() -> None:
    assert binomial_below(1, 5, 0.0) == 1.0
    assert binomial_below(5, 5, 1.0) == 0.0
    assert binomial_below(0, 5, 0.5) == 0.0
