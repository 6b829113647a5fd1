"""The calibration histogram with growing bins, and the methods that choose a range from it.

Bins are of |x|, with a width that is a power of two and doubles for a larger value. Doubling merges pairs of
bins exactly, so that the result does not depend on the order or the batches of the data.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from ..onnx_graph.graph import Array

Method = Literal["minmax", "percentile", "entropy", "mse"]
METHODS: tuple[Method, ...] = ("minmax", "percentile", "entropy", "mse")

BINS = 4096  # after a doubling at least half of them are in use: 16 or more per int8 step
STEPS = 127  # positive steps of int8
PERCENTILE = 99.99
TILE = 1 << 18  # numbers counted at a time, so that the temporaries stay in the cache
SMALLEST_EXPONENT = -100  # of a bin's width, so that its inverse is a float32


class Histogram:
    """The extremes of the added values, and with `bins` above 0 also the counts by size."""

    def __init__(self, bins: int = BINS) -> None:
        self.low = math.inf
        self.high = -math.inf
        self.counts = np.zeros(bins, np.int64)
        self.width = 0.0

    def add(self, values: Array) -> tuple[Array, Array]:
        """Adds numbers.

        Returns:
            The lowest and the highest of each entry of the first axis, each of shape [len(values)].

        Raises:
            FloatingPointError: one is not finite; the message is "NaN" or "infinity".
        """
        if values.size == 0:
            return values.reshape(-1), values.reshape(-1)
        rows = values.reshape(len(values), -1)
        lows, highs = rows.min(axis=1), rows.max(axis=1)
        low, high = float(lows.min()), float(highs.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise FloatingPointError("NaN" if math.isnan(low) or math.isnan(high) else "infinity")
        self.low, self.high = min(self.low, low), max(self.high, high)
        if self.counts.size:
            self._reach(max(abs(low), abs(high)))
            flat = values.reshape(-1)
            for start in range(0, flat.size, TILE):
                self._count(np.abs(flat[start : start + TILE]))
        return lows, highs

    def _reach(self, largest: float) -> None:
        bins = self.counts.size
        if largest > 0 and self.width == 0.0:
            zeros = int(self.counts[0])
            self.width = 2.0 ** max(math.ceil(math.log2(largest / bins)), SMALLEST_EXPONENT)
            self.counts[:] = 0
            self.counts[0] = zeros
        while self.width and largest >= self.width * bins:
            self.counts = _pairs(self.counts)
            self.width *= 2.0

    def _count(self, sizes: Array) -> None:
        if self.width:
            places = (sizes * np.float32(1.0 / self.width)).astype(np.int32)
            self.counts += np.bincount(places, minlength=self.counts.size)
        else:
            self.counts[0] += sizes.size


def merged(first: Histogram, second: Histogram) -> Histogram:
    """The exact sum of two histograms with equal numbers of bins."""
    whole = Histogram(first.counts.size)
    whole.low, whole.high = min(first.low, second.low), max(first.high, second.high)
    whole.width = max(first.width, second.width)
    for part in (first, second):
        counts, width = part.counts, part.width
        while 0.0 < width < whole.width:
            counts, width = _pairs(counts), 2.0 * width
        whole.counts += counts
    return whole


def _pairs(counts: Array) -> Array:
    joined = np.zeros_like(counts)
    joined[: counts.size // 2] = counts.reshape(-1, 2).sum(axis=1)
    return joined


def threshold(seen: Histogram, method: Method) -> float:
    """The size |x| at which to saturate.

    percentile: 99.99 % of the values are below it.
    entropy: least Kullback-Leibler divergence between the values and their rounded copy (Migacz, "8-bit
        Inference with TensorRT", 2017). The bin of zeros is excluded, since after a ReLU it would dominate.
    mse: least mean squared error of rounding and saturating.
    """
    largest = max(abs(seen.low), abs(seen.high))
    if method == "percentile":
        total = np.cumsum(seen.counts)
        place = int(np.searchsorted(total, math.ceil(total[-1] * PERCENTILE / 100.0)))
        return min((place + 1) * seen.width, largest)
    used = int(np.flatnonzero(seen.counts)[-1]) + 1
    if used <= STEPS + 1:
        return largest
    if method == "entropy":
        candidates = np.unique(np.linspace(STEPS + 1, used, 256).astype(int))
        costs = [_divergence(seen.counts[:used], int(end)) for end in candidates]
    else:
        candidates = np.unique(np.linspace(used // 20 + 1, used, 128).astype(int))
        costs = [_squared_error(seen.counts[:used], int(end)) for end in candidates]
    return min(int(candidates[int(np.argmin(costs))]) * seen.width, largest)


def _divergence(counts: Array, end: int) -> float:
    reference = counts[:end].astype(np.float64)
    reference[0] = reference[1]
    inside = reference.copy()
    reference[-1] += counts[end:].sum()
    # The rounded copy: each of 128 levels spreads its mass evenly over its occupied bins.
    levels = np.arange(end) * (STEPS + 1) // end
    filled = inside > 0
    share = np.bincount(levels, filled.astype(np.float64), STEPS + 1)
    copy = np.where(filled, (np.bincount(levels, inside, STEPS + 1) / np.maximum(share, 1.0))[levels], 0.0)
    if copy.sum() == 0.0:
        return math.inf
    p, q = reference / reference.sum(), copy / copy.sum()
    # A bin that only outliers filled is empty in the copy; a small mass keeps the cost finite.
    q = np.where(q > 0, q, 1e-9)
    occupied = p > 0
    return float(np.sum(p[occupied] * np.log(p[occupied] / q[occupied])))


def _squared_error(counts: Array, end: int) -> float:
    centres = np.arange(counts.size) + 0.5
    centres[0] = 0.0  # most of the first bin are exact zeros of a ReLU
    step = end / STEPS
    return float(np.dot(counts, (centres - np.minimum(np.rint(centres / step), STEPS) * step) ** 2))
