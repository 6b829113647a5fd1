"""Adequacy of calibration data: how much each range changes with more samples.

If the ranges of halves of the samples equal that of all, twice as many samples would hardly change it; if
not, it still grows. Extremes are averaged over all ways to halve the samples, which needs only the few
largest: the largest is in a half with probability 1/2, else the second largest, and so on. A method's
histogram range is compared with one halving, every second sample. A range may also depend on a single sample,
which more data do not cure. All of it is computed in the pass that measures the ranges.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..onnx_graph.graph import Array, OnnxModel
from .histogram import Histogram, merged

# A share of a range's width. Simulated, 200 samples of 64 values: 99 % of Gaussian tensors move by less than
# 0.13, 95 % of those with exponential tails by less than 0.14, half of Student's t (2) by more than 0.24.
MOVES = 0.15
SETTLED = 0.1  # below it more samples would change little
KEPT = 16  # largest samples of a tensor that are stored
OUTLIERS = 0.001  # share of the samples, and at least one sample ...
FEWEST = 100  # ... of at least this many: among fewer none is rare
LEAST = 32  # samples, below which a half and all agree by chance
NAMED = 3  # tensors in a sentence
MANY_DEAD = 0.25  # share of the tensors above which the samples are suspect, not the network

Ends = tuple[float, float]  # of a range: low, high


@dataclass(frozen=True)
class Adequacy:
    """The stability of one tensor's range.

    Attributes:
        moved: the distance of the range from that of half of the samples, as a share of its width; None with
            only one sample, or one piece that could not be divided.
        carriers: the number of samples with a value beyond half of the range; 16 for more or unknown; 0 for a
            tensor that is 0 in all of them.
    """

    moved: float | None
    carriers: int

    @property
    def dead(self) -> bool:
        """Whether the tensor is 0 in all samples."""
        return self.carriers == 0

    def hangs_on_few(self, samples: int) -> bool:
        """Whether at most 0.1 % of the samples, or a single one, double the range."""
        return samples >= FEWEST and 0 < self.carriers <= _few(samples)


class Seen:
    """Statistics of one tensor: histograms of both halves of the samples, and the largest extremes."""

    def __init__(self, bins: int) -> None:
        self.halves = (Histogram(bins), Histogram(bins))
        self._furthest = np.full((3, KEPT), -np.inf)  # upwards, downwards, either way; ascending
        self._entries = 0
        self._apart = True

    def add(self, values: Array, samples: int, *, by_sample: bool) -> None:
        """Adds a tensor's values of `samples` samples.

        Args:
            by_sample: whether the first axis is that of the samples; otherwise they are not divided.

        Raises:
            FloatingPointError: one is not finite; the message is "NaN" or "infinity".
        """
        if values.size == 0:
            return
        entries = samples if by_sample and values.ndim and len(values) == samples else 1
        self._apart = self._apart and entries == samples
        rows = values.reshape(entries, -1)
        for half, histogram in enumerate(self.halves):
            lows, highs = histogram.add(rows[(half + self._entries) % 2 :: 2])
            reach = np.stack([highs, -lows, np.maximum(highs, -lows)])
            self._furthest = np.sort(np.concatenate([self._furthest, reach], axis=1), axis=1)[:, -KEPT:]
        self._entries += entries

    def whole(self) -> Histogram:
        """The histogram of all samples."""
        return merged(*self.halves)

    def adequacy(self, whole: Ends, halves: Sequence[Ends] = ()) -> Adequacy:
        """The stability of a range; for a histogram method also from the ranges of both halves."""
        low, high = _with_zero(whole)
        carriers = int((self._furthest[2] > max(-low, high) / 2).sum()) if self._apart else KEPT
        carriers = carriers if high > low else 0
        if self._entries < 2:
            return Adequacy(None, carriers)
        moved = high - low - self._of_half(0, high) - self._of_half(1, -low)
        if halves:
            pairs = [(a, b) for half in halves for a, b in zip(_with_zero(half), (low, high), strict=True)]
            moved = max(moved, sum(abs(a - b) for a, b in pairs) / len(halves))
        return Adequacy(moved / (high - low) if high > low else 0.0, carriers)

    def _of_half(self, way: int, bound: float) -> float:
        """The mean extreme of half of the samples over all halves; from 0 to `bound`."""
        reach = self._furthest[way, ::-1][: self._entries].clip(0.0, bound)
        chance = 0.5 ** np.arange(1, len(reach) + 1)
        return float(np.dot(reach, chance) / chance.sum())


def _few(samples: int) -> int:
    return min(max(1, int(samples * OUTLIERS)), KEPT - 1)


def of_samples(model: OnnxModel, names: Sequence[str]) -> frozenset[str]:
    """The tensors whose first axis may be that of the samples: it is dynamic."""
    first = {name: kind.shape.dim[:1] for name, kind in model.types.items()}
    return frozenset(n for n in names if not (first.get(n) and first[n][0].HasField("dim_value")))


def words(found: Mapping[str, Adequacy], *, samples: int, method: str) -> tuple[str, ...]:
    """Sentences: on tensors that are 0, on whether the samples were enough, and on ranges that depend on a
    few samples."""
    dead = [name for name, one in found.items() if one.dead]
    if not dead:
        return _of_settled(found, samples, method)
    named = ", ".join(dead[:NAMED]) + (f" and {len(dead) - NAMED} more" if len(dead) > NAMED else "")
    share = f"{len(dead)} of {len(found)} rounded tensors"
    sentence = f"{share} are 0 in all of {samples} calibration samples ({named})"
    if len(dead) > len(found) * MANY_DEAD:  # unsuitable samples show nothing
        return (
            f"CHECK THE SAMPLES: {sentence}; that many are rarely dead, so the samples were probably not "
            "prepared as for inference, and the ranges are a guess",
        )
    cure = "their range is set to -1 to 1; prune dead channels, or give samples that activate them"
    return (f"{sentence}: {cure}", *_of_settled(found, samples, method))


def _of_settled(found: Mapping[str, Adequacy], samples: int, method: str) -> tuple[str, ...]:
    moved = {name: one.moved for name, one in found.items() if one.moved is not None}
    unsettled = (
        f"{samples} calibration samples are too few to judge whether they are enough: give some hundreds"
    )
    if not moved:
        return (unsettled,)
    other = ", or use the method percentile" if method == "minmax" else ""
    order = sorted(moved, key=lambda name: -moved[name])
    loose = [name for name in order if moved[name] > MOVES]
    if loose:
        named = ", ".join(f"{name} by {moved[name]:.0%}" for name in loose[:NAMED])
        sentences = [
            f"{samples} calibration samples are not enough: between half of them and all, {len(loose)} of "
            f"{len(moved)} ranges change by more than {MOVES:.0%} of their width, most of all {named}: "
            f"give more samples{other}"
        ]
    elif samples < LEAST:
        sentences = [unsettled]
    elif moved[order[0]] > SETTLED:
        sentences = [
            f"{samples} calibration samples: between half of them and all, ranges change by up to "
            f"{moved[order[0]]:.0%} of their width ({order[0]}), which is common for so many, and more "
            "samples would still widen them"
        ]
    else:
        sentences = [
            f"{samples} calibration samples are enough: between half of them and all no range changes by "
            f"more than {moved[order[0]]:.0%} of its width"
        ]
    few = [name for name, one in found.items() if one.hangs_on_few(samples)]
    if few:
        named = ", ".join(f"{name} ({found[name].carriers})" for name in few[:NAMED])
        more = f" and {len(few) - NAMED} more" if len(few) > NAMED else ""
        sentences.append(
            f"at most {_few(samples)} of {samples} samples make the range at least twice as wide as all "
            f"others: {named}{more}: check the data for outliers{other}"
        )
    return tuple(sentences)


def _with_zero(ends: Ends) -> Ends:
    # A range is extended to 0, so that width counts.
    return min(ends[0], 0.0), max(ends[1], 0.0)
