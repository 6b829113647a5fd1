"""What a soak shows: latency and its tail over time, energy of an inference, drift of memory, verdicts.

Energy is (busy power - idle power) * time / inferences, once a round from periods seconds apart, so that a
slow drift of the idle power cancels. Its interval is that of the median of the rounds by order statistics
(Hahn and Meeker 1991), which assumes independent rounds and no shape. The accuracy of the sensor itself is
not in it. A leak is the slope of the memory over time: the median of the slopes of all pairs of points, with
the interval of Kendall's test (Sen 1968). Memory wanders: the variance of that test is multiplied by what a
first-order autocorrelation of the rest adds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from .binomial import clopper_pearson
from .judge import Judgement, fewest_events, judge, order_statistic, unproven
from .measurement import Interval, Measurement, Protocol
from .sequential import CONFIDENCE
from .soak_record import NEIGHBOUR, Period, Soak
from .tail import TailBound, tail_bound, tail_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

FEWEST_READINGS = 8
"""New values of the sensor in a period, for a mean of it."""
_WINDOWS = 8
_LEAK_Z = 3.2905
"""99.9 % of a normal distribution, two-sided."""
_POINTS = 96
_SHORTEST_S = 180.0
"""Of a slope of memory. In its first minutes a process still settles, by steps that look like a slope."""


@dataclass(frozen=True)
class Energy:
    """Energy of one inference beyond idle, in joules; None, with the reason, where it cannot be known."""

    j: Optional[Interval]
    reason: str
    rounds: int = 0

    def sentence(self) -> str:
        """For people: `3.21 mJ per inference (99 % interval 3.18 to 3.25, 24 rounds)`."""
        if self.j is None:
            return f"energy: cannot tell, {self.reason}"
        value, low, high = (f"{1e3 * one:.4g}" for one in (self.j.value, self.j.low, self.j.high))
        return f"{value} mJ per inference (99 % interval {low} to {high}, {self.rounds} rounds)"


@dataclass(frozen=True)
class Window:
    """The tail in one stretch of the soak."""

    at_s: float
    p50_s: float
    p99: TailBound
    p999: TailBound


@dataclass(frozen=True)
class Row:
    """One load, in one power mode, alone or `beside` another."""

    mode: str
    name: str
    beside: str
    latency: Interval
    p99: TailBound
    p999: TailBound
    frames: int
    per_s: float
    missed: int
    missed_high: float
    """The share of missed frames is at most this (97.5 %)."""
    energy: Optional[Energy]
    parts_s: Mapping[str, float] = field(default_factory=dict)
    windows: Tuple[Window, ...] = ()


@dataclass(frozen=True)
class Drift:
    """The slope of memory in bytes per hour, with a 99.9 % interval; None with the reason."""

    slope: Optional[Interval]
    reason: str = ""

    @property
    def grows(self) -> bool:
        """Whether the whole interval is above 0."""
        return self.slope is not None and self.slope.low > 0

    def sentence(self) -> str:
        """For people: `memory grows by 1.02 MB an hour (99.9 % interval 0.9 to 1.1)`."""
        if self.slope is None:
            return f"memory: cannot tell whether it grows, {self.reason}"
        value, low, high = (
            f"{one / 1e6:+.2f}" for one in (self.slope.value, self.slope.low, self.slope.high)
        )
        what = f"grows by {value} MB an hour" if self.grows else f"does not grow: {value} MB an hour"
        return f"memory {what} (99.9 % interval {low} to {high})"


@dataclass(frozen=True)
class Summary:
    """All rows, the verdicts, and what happened to the machine."""

    rows: Tuple[Row, ...]
    judgements: Mapping[str, Judgement]
    """Candidate against baseline, by power mode."""
    costs: Mapping[Tuple[str, str, str], Judgement]
    """A load beside another against alone, by power mode and the names of both."""
    memory: Drift
    slowed: Tuple[Tuple[float, str], ...]
    notes: Tuple[Tuple[float, str], ...]
    temperatures_c: Mapping[str, Tuple[float, float, float]]
    """By zone: in the first round, the highest, in the last."""


def summarized(soak: Soak) -> Summary:
    """The summary of a soak's periods."""
    periods, rows = soak.periods, []
    judgements: Dict[str, Judgement] = {}
    costs: Dict[Tuple[str, str, str], Judgement] = {}
    inputs = {name: list(ran[0].inputs) for one in periods for name, ran in one.ran.items()}
    facts = {**{key: soak.conditions[key] for key in ("machine", "software") if periods}, "inputs": inputs}
    for mode in dict.fromkeys(one.mode for one in periods):
        own = [one for one in periods if one.mode == mode]
        measured: Dict[Tuple[str, str], Measurement] = {}
        for kind in sorted({one.models for one in own if one.models}, key=lambda kind: (len(kind), kind)):
            for name in kind:
                beside = "".join(other for other in kind if other != name)
                timed = [one for one in own if one.models == kind]
                measured[name, beside] = one = _measured(soak, facts, timed, name)
                idle = [one for one in own if not one.models]
                rows.append(_row(soak, mode, timed, idle, name, beside, one))
        if ("baseline", "") in measured and ("candidate", "") in measured:
            pair = measured["baseline", ""], measured["candidate", ""]
            judgements[mode] = judge(*pair, confidence=CONFIDENCE)
        for (name, beside), one in measured.items():
            if beside and (name, "") in measured:
                pair = measured[name, ""], one
                costs[mode, name, beside] = judge(*pair, confidence=CONFIDENCE, clock="wall")
    zones = {zone for one in periods for zone in one.temperatures_c}
    seen = {
        zone: [one.temperatures_c[zone] for one in periods if zone in one.temperatures_c] for zone in zones
    }
    return Summary(
        tuple(rows),
        judgements,
        costs,
        drift(*_memory(periods)),
        tuple(event for one in periods for event in one.slowed),
        tuple(event for one in periods for event in one.notes),
        {zone: (values[0], max(values), values[-1]) for zone, values in sorted(seen.items())},
    )


def _measured(soak: Soak, facts: Mapping[str, Any], timed: Sequence[Period], name: str) -> Measurement:
    """A period is an event of one round; periods have as many samples as the shortest, evenly chosen."""
    samples = [np.concatenate([ran.wall_ns for ran in one.ran[name]]) for one in timed]
    count = min(map(len, samples))
    chosen = [each[np.linspace(0, len(each) - 1, count).astype(int)] for each in samples]
    load = soak.plan.loads[name]
    cpu_s = np.array([[np.mean([each.cpu_s for each in one.ran[name]])] for one in timed])
    cpu_ns = np.array(1e9 * count * cpu_s, np.int64)
    return Measurement(
        name=name,
        model_sha256="",
        file_bytes=0,
        run_id=soak.started,
        wall_ns=np.array(chosen, np.int64)[:, None, :],
        cpu_ns=cpu_ns if cpu_ns.all() else None,
        runs=1,
        protocol=Protocol(events=len(timed), threads=load.threads, batch=load.batch, runtime=load.runtime),
        conditions=facts,
        evidence=timed[0].ran[name][0].evidence,
    )


def _row(
    soak: Soak,
    mode: str,
    timed: Sequence[Period],
    idle: Sequence[Period],
    name: str,
    beside: str,
    measured: Measurement,
) -> Row:
    ran = [each for one in timed for each in one.ran[name]]
    frames, missed = sum(each.frames for each in ran), sum(each.missed for each in ran)
    seconds = sum(max(each.seconds for each in one.ran[name]) for one in timed)
    parts = {key: float(np.median([each.parts_s[key] for each in ran])) for key in ran[0].parts_s}
    times = measured.wall_s[:, 0]
    windows = []
    for place in np.array_split(np.arange(len(timed)), min(_WINDOWS, len(timed))):
        stretch = times[place]
        tails = tail_bound(stretch, 99), tail_bound(stretch, 99.9)
        windows.append(Window(timed[place[0]].at_s, float(np.median(stretch)), *tails))
    return Row(
        mode,
        name,
        beside,
        measured.latency_s(50),
        tail_of(measured, 99),
        tail_of(measured, 99.9),
        frames,
        frames / seconds,
        missed,
        clopper_pearson(missed, frames)[1] if soak.plan.loads[name].rate_hz else 0.0,
        None if beside else energy(idle, timed, name, soak.no_sensor or unproven(measured)),
        parts,
        tuple(windows),
    )


def energy(idle: Sequence[Period], busy: Sequence[Period], name: str, unknown: str = "") -> Energy:
    """The energy of an inference of a load that ran alone, from idle and busy periods of the same rounds."""
    if unknown:
        return Energy(None, unknown)
    still = {one.round: one for one in idle if one.power_w is not None}
    pairs = [(still[one.round], one) for one in busy if one.power_w is not None and one.round in still]
    needed = fewest_events(CONFIDENCE)
    if len(pairs) < needed:
        return Energy(None, f"power was read in {len(pairs)} rounds, and {needed} are needed", len(pairs))
    fresh = int(np.median([one.readings for _, one in pairs]))
    if fresh < FEWEST_READINGS:
        seconds = float(np.median([one.seconds for _, one in pairs]))
        longer = math.ceil(seconds * FEWEST_READINGS / max(fresh, 1))
        return Energy(
            None,
            f"the sensor is too slow: {fresh} new values in a period of {seconds:.3g} s, and "
            f"{FEWEST_READINGS} are needed (--period {longer})",
            len(pairs),
        )
    added = np.array([float(one.power_w or 0) - float(rest.power_w or 0) for rest, one in pairs])
    steps = [one.step_w for _, one in pairs if one.step_w is not None]
    step = min(steps, default=0.0)
    if np.median(added) <= step:
        return Energy(
            None,
            f"the sensor is too coarse: the load adds {np.median(added):.3g} W, its steps are {step:.3g} W",
            len(pairs),
        )
    rates = [sum(ran.frames / ran.seconds for ran in one.ran[name]) for _, one in pairs]
    return Energy(_median(added / np.array(rates)), "", len(pairs))


def _median(values: NDArray[np.float64]) -> Interval:
    ordered = np.sort(values)
    place, _ = order_statistic(ordered.size, CONFIDENCE)
    return Interval(float(np.median(ordered)), float(ordered[place - 1]), float(ordered[-place]))


def _memory(periods: Sequence[Period]) -> Tuple[List[float], List[float]]:
    """The models' memory after each round: when, in seconds, and bytes in all their processes."""
    last: Dict[int, Tuple[float, float]] = {}
    for one in periods:
        for name in one.models:
            sizes = [ran.memory_bytes for ran in one.ran[name]]
            if name != NEIGHBOUR and None not in sizes:
                last[one.round] = one.at_s + one.seconds, float(sum(size or 0 for size in sizes))
    return [at for at, _ in last.values()], [size for _, size in last.values()]


def drift(at_s: Sequence[float], sizes: Sequence[float]) -> Drift:
    """The slope of memory, without the first quarter, in which caches fill; medians of some rounds each."""
    begin = len(at_s) // 4
    count = min(_POINTS, len(at_s) - begin)
    if count < 2 * FEWEST_READINGS:
        return Drift(None, f"{len(at_s)} rounds are too few")
    if at_s[-1] - at_s[begin] < _SHORTEST_S:
        seconds = f"{at_s[-1] - at_s[begin]:.0f} s were watched, and {_SHORTEST_S:.0f} s are needed"
        return Drift(None, f"{seconds} after the first quarter (--minutes {math.ceil(_SHORTEST_S / 45)})")
    stretches = np.array_split(np.arange(begin, len(at_s)), count)
    when = np.array([np.median(np.take(at_s, each)) for each in stretches]) / 3600
    size = np.array([np.median(np.take(sizes, each)) for each in stretches])
    first, second = np.triu_indices(count, 1)
    slopes = np.sort((size[second] - size[first]) / (when[second] - when[first]))
    slope = float(np.median(slopes))
    rest = size - slope * when
    rest = rest - np.median(rest)
    repeated = float((rest[1:] * rest[:-1]).sum() / max(float((rest**2).sum()), 1e-9))
    repeated = min(max(repeated, 0.0), 0.97)
    burst = (1 + repeated) / (1 - repeated)
    reach = _LEAK_Z * math.sqrt(burst * count * (count - 1) * (2 * count + 5) / 18)
    low = max(int((slopes.size - reach) / 2), 0)
    high = min(int((slopes.size + reach) / 2) + 1, slopes.size - 1)
    return Drift(Interval(slope, float(slopes[low]), float(slopes[high])))


def energies(soak: Soak) -> Dict[str, Energy]:
    """The energy of each load that ran alone."""
    if not soak.periods:
        return {name: Energy(None, soak.no_sensor) for name in soak.plan.loads}
    return {row.name: row.energy for row in summarized(soak).rows if row.energy is not None}
