from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from deadweight.pipeline.budget.latency import fitted
from deadweight.pipeline.budget.table import SegmentTable, TimedSegment, key_of
from deadweight.pipeline.budget.timer import Conditions

LEVELS = {name: tuple(range(8, 65, 8)) for name in ("a", "b", "c")}
CONDITIONS = Conditions("onnxruntime", "1", "", 1, "a CPU", "", (), "measured")
PAIRS = (("a",), ("a", "b"), ("b", "c"), ("c",))


def stepped(widths: tuple[int, ...], step: int) -> float:
    """Microseconds of a layer that computes whole steps of channels."""
    return 0.5 + 0.004 * math.prod(-(-width // step) * step for width in (*widths, 8)[:2])


def table(step: int) -> SegmentTable:
    """Layers timed alone: each with a call of 2 us, and the later the layer, the slower it is alone."""
    laid, seconds = [], {"empty": 2e-6}
    for place, own in enumerate(PAIRS):
        grid = tuple(LEVELS[name] for name in own)
        keys = {key_of(widths): f"{place}/{widths}" for widths in itertools.product(*grid)}
        times = {f"{place}/{widths}": stepped(widths, step) for widths in itertools.product(*grid)}
        seconds |= {key: 2e-6 + (1 + place) * 1e-6 * time for key, time in times.items()}
        laid.append(TimedSegment("/".join(own), own, grid, keys))
    dense = {name: own[-1] for name, own in LEVELS.items()}
    choices, weights = tuple(LEVELS.items()), dict.fromkeys(seconds, 0)
    return SegmentTable("", CONDITIONS, {}, choices, dense, tuple(laid), weights, seconds)


def true_seconds(widths: dict[str, int], step: int) -> float:
    """In the network each layer costs as much as the first alone, and weights beyond a cache cost more."""
    parts = sum(stepped(tuple(widths[name] for name in own), step) for own in PAIRS)
    return 1e-6 * (3 + parts) * (1 + 0.2 / (1 + math.exp((100 - sum(widths.values())) / 10)))


@pytest.mark.parametrize("step", [8, 16, 32])
def test_a_planted_clock_is_predicted_though_the_table_alone_is_far_off(step: int) -> None:
    rng = np.random.default_rng(step)
    networks = [{name: int(rng.choice(own)) for name, own in LEVELS.items()} for _ in range(120)]
    true = np.array([true_seconds(one, step) for one in networks])
    found = fitted(table(step), networks[:60], list(true[:60] * np.exp(0.01 * rng.standard_normal(60))))
    predicted = found.predicted(networks[60:])
    errors = np.abs(predicted / true[60:] - 1)
    assert np.median(errors) < 0.02
    assert errors.max() < 0.1
    assert np.mean(np.abs(np.log(predicted / true[60:])) <= np.log(found.factor)) >= 0.9
    one_table = table(step)
    alone = np.array([one_table.parts(one).sum() for one in networks[60:]])
    assert np.median(np.abs(alone / true[60:] - 1)) > 0.5
    assert np.median(np.abs(found.errors)) < 0.03


def test_a_layer_that_costs_nothing_in_the_chain_leaves_the_others_their_weights() -> None:
    # With a weight at its bound an iterative solver stops too early, as in these networks: seconds and shares
    # are of unlike scales.
    rng, shares = np.random.default_rng(11), (0.1, 0.3, 0.6, 1.0)
    alone = rng.uniform(1e-6, 5e-5, 10)
    names, widths = [f"g{at}" for at in range(10)], (1, 3, 6, 10)
    seconds = {
        f"{name}/{w}": 1e-9 + one * w / 10 for name, one in zip(names, alone, strict=True) for w in widths
    }
    segments = [
        TimedSegment(name, (name,), (widths,), {key_of([w]): f"{name}/{w}" for w in widths}) for name in names
    ]
    choices = tuple((name, widths) for name in names)
    dense, weights = dict.fromkeys(names, 10), dict.fromkeys(seconds, 0)
    planted = SegmentTable(
        "", CONDITIONS, {}, choices, dense, tuple(segments), weights, {"empty": 1e-9, **seconds}
    )
    drawn = rng.choice(shares, (60, 10))
    true = (alone * drawn)[:, 1:].sum(1) * np.exp(0.1 * rng.standard_normal(60))
    networks = [dict(zip(names, (10 * row).round().astype(int).tolist(), strict=True)) for row in drawn]
    found = fitted(planted, networks, true.tolist())
    assert np.median(found.weights[1:]) == pytest.approx(1.0, abs=0.1)
    assert found.dense_s == pytest.approx(alone[1:].sum(), rel=0.1)
