"""Tail latency: a distribution-free upper bound for p99 or p99.9.

The j-th smallest of n samples is above the p-quantile with the probability that at most j - 1 of n samples
fall below it, each with probability p (order statistics: Hahn and Meeker 1991, section 5.3). No shape is
assumed, so two modes or a heavy tail are allowed. With 95 % confidence that takes 299 samples for p99 and
2,995 for p99.9: with fewer, even the largest sample is no bound, and none is returned.

This needs independent samples, but slow runs come in bursts. For samples by event, the sample count is
divided by the design effect (Kish 1965): the variance of the share of slow runs between events over its
variance if they were independent. That is an estimate. Of 48 events of 60 samples each, drawn as an AR(1)
with 0.9, 5.6 % of 286 bounds for p99 were too low, as claimed; with 0.98, where an event is hardly more than
one sample, two runs of three got no bound, and 16 % of the other 102 were too low: bursts that outlast an
event need more events.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from ..errors import MeasurementError
from .binomial import binomial_below

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .measurement import Measurement


@dataclass(frozen=True)
class TailBound:
    """The percentile is at most `bound_s` with `confidence`; where that is infinite, `reason` says why."""

    percent: float
    value_s: float
    """The sample at that percentile: an estimate, without any confidence."""
    bound_s: float
    low_s: float
    """The percentile is at least this, with the same confidence; 0 where there are too few samples."""
    confidence: float
    samples: int
    counted: float
    """Effective number of independent samples."""
    needed: int
    """Smallest number of independent samples that allows a bound."""
    reason: str = ""

    def sentence(self) -> str:
        """For people: `p99 at most 1.32 ms (95 % confidence, 1,200 samples)`."""
        if not math.isfinite(self.bound_s):
            return f"p{self.percent:g}: no bound, {self.reason}"
        burst = "" if self.counted >= self.samples else f" in bursts, effectively {self.counted:,.0f}"
        return (
            f"p{self.percent:g} at most {1e3 * self.bound_s:.4g} ms "
            f"({100 * self.confidence:.3g} % confidence, {self.samples:,} samples{burst})"
        )


def tail_bound(samples_s: NDArray[np.float64], percent: float, *, confidence: float = 0.95) -> TailBound:
    """The bound from float64[n] independent samples, or float64[events, n] correlated within an event."""
    if not 0 < percent < 100 or not 0 < confidence < 1:
        raise MeasurementError(
            f"There is no bound for p{percent:g} with the confidence {confidence:g}.",
            "The percentile must be between 0 and 100, the confidence between 0 and 1.",
        )
    flat = np.sort(np.asarray(samples_s, dtype=np.float64).ravel())
    if not flat.size or not np.isfinite(flat).all():
        raise MeasurementError(
            f"There is no tail bound for {flat.size} samples: "
            + ("some are not finite." if flat.size else "there are none."),
            "Measure again.",
        )
    share = percent / 100
    needed = needed_samples(percent, confidence)
    value = float(flat[min(int(share * flat.size), flat.size - 1)])
    counted = flat.size / design_effect(np.asarray(samples_s, dtype=np.float64), value)
    whole = int(counted)
    bound, low, reason = math.inf, 0.0, ""
    if whole < needed:
        reason = f"{flat.size:,} samples" + (f" in bursts count as {whole:,}" if whole < flat.size else "")
        reason += f"; {needed:,} are needed for {100 * confidence:.3g} % confidence"
    else:
        place = _place(whole, share, confidence)
        bound = float(flat[min(math.ceil(place / whole * flat.size), flat.size) - 1])
    below = _place(whole, share, 1 - confidence) - 1 if whole else 0
    if below > 0:
        low = float(flat[int(below / whole * flat.size) - 1])
    return TailBound(percent, value, bound, low, confidence, flat.size, counted, needed, reason)


def needed_samples(percent: float, confidence: float = 0.95) -> int:
    """Smallest number of samples whose largest is a bound: 299 for p99 with 95 %, 2,995 for p99.9."""
    return math.ceil(math.log1p(-confidence) / math.log(percent / 100))


def tail_of(measurement: Measurement, percent: float) -> TailBound:
    """The bound for the wall time of one run of a model, from samples by event.

    Where one clock reading covers several runs (`runs` above 1), a sample is their mean, and the bound is for
    such means.
    """
    times = measurement.wall_s
    return tail_bound(times.reshape(times.shape[0], -1), percent)


def design_effect(samples_s: NDArray[np.float64], value_s: float) -> float:
    """How many correlated samples count as one: 1 where slow runs are spread at random."""
    if samples_s.ndim != 2 or samples_s.shape[0] < 2 or samples_s.shape[1] < 2:
        return 1.0
    slow = (samples_s >= value_s).mean(axis=1)
    expected = float(slow.mean() * (1 - slow.mean())) / samples_s.shape[1]
    return max(1.0, float(slow.var(ddof=1)) / expected) if expected else 1.0


@lru_cache(maxsize=1024)
def _place(samples: int, share: float, confidence: float) -> int:
    """The smallest j whose j-th smallest sample is above the quantile with the confidence."""
    low, high = 1, samples
    while low < high:
        middle = (low + high) // 2
        if binomial_below(middle, samples, share) >= confidence:
            high = middle
        else:
            low = middle + 1
    return low
