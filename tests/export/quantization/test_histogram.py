from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deadweight.export.quantization.histogram import BINS, Histogram, merged, threshold

METHODS: list[Any] = ["percentile", "entropy", "mse"]


def histogram_of(*parts: Any) -> Histogram:
    made = Histogram()
    for part in parts:
        made.add(np.asarray(part, np.float32))
    return made


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=60), st.randoms(use_true_random=False))
def test_neither_order_nor_batching_changes_a_histogram(values: list[float], random: Any) -> None:
    whole = histogram_of(values)
    random.shuffle(values)
    cut = random.randint(0, len(values))
    parts = histogram_of(values[:cut], values[cut:])
    assert (parts.low, parts.high, parts.width) == (whole.low, whole.high, whole.width)
    np.testing.assert_array_equal(parts.counts, whole.counts)


@given(st.lists(st.floats(-1e6, 1e6, width=32), max_size=40), st.integers(0, 40))
def test_two_histograms_merge_into_that_of_all_values(values: list[float], cut: int) -> None:
    whole, found = histogram_of(values), merged(histogram_of(values[:cut]), histogram_of(values[cut:]))
    assert (found.low, found.high, found.width) == (whole.low, whole.high, whole.width)
    np.testing.assert_array_equal(found.counts, whole.counts)


def test_adding_tells_the_extremes_of_each_sample() -> None:
    values = np.array([[[1.0, -3.0]], [[0.5, 2.0]], [[0.0, 0.0]]], np.float32)
    lows, highs = Histogram().add(values)
    assert lows.tolist() == [-3.0, 0.5, 0.0]
    assert highs.tolist() == [1.0, 2.0, 0.0]


def test_growth_joins_bins_exactly() -> None:
    generator = np.random.default_rng(0)
    parts = [generator.standard_normal(500) * 4.0**power for power in range(6)]
    found = histogram_of(*parts)
    sizes = np.abs(np.concatenate(parts).astype(np.float32))
    expected, _ = np.histogram(sizes, bins=BINS, range=(0.0, found.width * BINS))
    np.testing.assert_array_equal(found.counts, expected)
    assert np.flatnonzero(found.counts)[-1] >= BINS // 2


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_a_threshold_scales_with_the_data(method: Any, scale: float) -> None:
    values = np.random.default_rng(0).standard_normal(100_000)
    once = threshold(histogram_of(values), method)
    assert threshold(histogram_of(values * scale), method) == pytest.approx(once * scale, rel=0.25)
    assert 2.0 < once <= np.abs(values).max() * 1.001


@pytest.mark.parametrize("method", METHODS)
def test_values_spread_evenly_are_not_cut_off(method: Any) -> None:
    values = np.random.default_rng(0).uniform(-3.0, 3.0, 100_000)
    assert threshold(histogram_of(values), method) > 2.9


@pytest.mark.parametrize("method", METHODS)
def test_the_zeros_of_a_relu_do_not_decide(method: Any) -> None:
    values = np.abs(np.random.default_rng(0).standard_normal(50_000))
    once = threshold(histogram_of(values), method)
    padded = threshold(histogram_of(values, np.zeros(50_000)), method)
    assert padded == pytest.approx(once, rel=0.15)


def test_the_percentile_is_that_of_numpy() -> None:
    values = np.random.default_rng(0).standard_normal(200_000).astype(np.float32)
    expected = np.percentile(np.abs(values), 99.99)
    found = histogram_of(values)
    assert threshold(found, "percentile") == pytest.approx(expected, abs=3 * found.width)


def test_mse_has_less_error_than_minmax_and_than_its_neighbours() -> None:
    values = np.random.default_rng(1).laplace(size=100_000)

    def error(bound: float) -> float:
        step = bound / 127
        return float(np.mean((np.clip(np.rint(values / step), -127, 127) * step - values) ** 2))

    best = threshold(histogram_of(values), "mse")
    assert error(best) < error(np.abs(values).max())
    assert error(best) <= min(error(best * factor) for factor in (0.8, 0.9, 1.1, 1.25)) * 1.02


def test_two_levels_are_kept_as_they_are() -> None:
    for method in METHODS:
        assert threshold(histogram_of([0.0, 1.0, 0.0, 1.0]), method) == pytest.approx(1.0)


def test_what_is_not_finite_is_an_error() -> None:
    for value, said in ((np.nan, "NaN"), (np.inf, "infinity")):
        with pytest.raises(FloatingPointError, match=said):
            histogram_of([0.0, value, 1.0])
