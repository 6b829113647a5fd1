from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from deadweight.targets.errors import MeasurementError
from deadweight.targets.timing.measurement import Measurement, Protocol
from deadweight.targets.timing.tail import design_effect, needed_samples, tail_bound, tail_of


@pytest.mark.parametrize(("percent", "needed"), [(99.0, 299), (99.9, 2995)])
def test_the_samples_that_are_needed_are_those_of_the_binomial_and_fewer_are_refused(
    percent: float, needed: int
) -> None:
    assert needed_samples(percent) == needed
    assert 1 - (percent / 100) ** needed >= 0.95 > 1 - (percent / 100) ** (needed - 1)
    draws = np.random.default_rng(0).random(needed)
    assert math.isfinite(tail_bound(draws, percent).bound_s)
    refused = tail_bound(draws[1:], percent)
    assert math.isinf(refused.bound_s)
    assert f"{needed:,} are needed for 95 % confidence" in refused.sentence()


@pytest.mark.parametrize("shape", ["lognormal", "two modes", "heavy"])
def test_the_bound_holds_as_often_as_it_says_whatever_the_shape(shape: str) -> None:
    generator = np.random.default_rng(1)
    uniform = generator.random((1000, 700))
    truth = 0.99
    # One monotone map turns uniform draws into any shape, and the percentile with them.
    if shape == "lognormal":
        drawn, true = np.exp(stats.norm.ppf(uniform)), math.exp(stats.norm.ppf(truth))
    elif shape == "heavy":
        drawn, true = (1 - uniform) ** (-1 / 1.2), (1 - truth) ** (-1 / 1.2)
    else:
        drawn, true = np.where(uniform > 0.985, 70.0, 2.0) + 0.1 * uniform, 70.0 + 0.1 * truth
    held = sum(tail_bound(row, 99).bound_s >= true for row in drawn)
    assert stats.binomtest(held, 1000, 0.95, alternative="less").pvalue > 0.001


def test_the_percentile_lies_between_the_two_bounds_and_both_are_samples() -> None:
    draws = np.random.default_rng(2).random(2000)
    found = tail_bound(draws, 99)
    assert found.low_s < found.value_s < found.bound_s
    assert {found.low_s, found.bound_s} <= set(draws.tolist())


def test_slow_runs_in_bursts_count_for_less_and_spread_ones_do_not() -> None:
    generator = np.random.default_rng(3)
    spread = generator.random((20, 100))
    bursts = spread.copy()
    bursts[4] += 1  # all slow runs in one event
    assert design_effect(spread, 0.95) < 2
    assert design_effect(bursts, 1.0) > 20
    assert math.isfinite(tail_bound(spread, 99).bound_s)
    assert "in bursts count as" in tail_bound(bursts, 99).sentence()


def test_a_measurements_tail_keeps_its_events_whole() -> None:
    wall_ns = np.random.default_rng(4).integers(1_000_000, 2_000_000, size=(10, 8, 10))
    measured = Measurement(
        name="a",
        model_sha256="",
        file_bytes=0,
        run_id="",
        wall_ns=wall_ns,
        cpu_ns=None,
        runs=1,
        protocol=Protocol(events=10),
        conditions={},
    )
    found = tail_of(measured, 99)
    assert found.samples == 800
    assert 1.9e-3 < found.bound_s < 2e-3


@pytest.mark.parametrize("samples", [np.array([]), np.array([1.0, np.nan])])
def test_no_samples_and_no_numbers_are_refused(samples: np.ndarray) -> None:
    with pytest.raises(MeasurementError, match="There is no tail bound"):
        tail_bound(samples, 99)


@pytest.mark.parametrize(("percent", "confidence"), [(0, 0.95), (100, 0.95), (99, 1.0)])
def test_a_percentile_that_means_nothing_is_refused(percent: float, confidence: float) -> None:
    with pytest.raises(MeasurementError, match="There is no bound"):
        tail_bound(np.ones(500), percent, confidence=confidence)
