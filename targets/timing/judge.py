"""The judgement: is the candidate faster, by an exact interval for the ratio of two paired measurements?

Each event gives one number: the median over its rounds of log(baseline / candidate). Rounds are milliseconds
apart, so drift cancels; their dependence on each other stays inside the event. The interval for the median
of these numbers is a pair of order statistics, with the exact confidence from the binomial distribution
(Hahn and Meeker 1991, section 5.2). It assumes only that events are independent and identically distributed:
no shape, no variance, no symmetry. The signed-rank interval is narrower but needs symmetry, which two models
with different memory layouts need not have.

The interval is valid for the machine as it was during this run. Other processes slow a model that fills the
caches more than a small one, so the true ratio changes with the load.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Dict, Optional, Tuple

import numpy as np

from ..errors import MeasurementError
from ..machine.probe import not_known
from ..plain import plain
from .binomial import binomial_below, solve
from .measurement import CALM, Measurement, marked_words

if TYPE_CHECKING:
    from numpy.typing import NDArray

_POWER = 0.9


@dataclass(frozen=True)
class Judgement:
    """Candidate compared with baseline. Ratios are baseline time over candidate time: above 1 is faster."""

    outcome: str
    """`equal`: the whole interval is within the margin. `faster`, `slower`: it is on that side of 1."""
    ratio: float
    low: float
    high: float
    """Infinite (and `low` 0) where there are too few events for an interval."""
    confidence: float
    """As requested."""
    attained: float
    """Of the interval: order statistics come in steps, so `confidence` or more; 0 without an interval."""
    margin: float
    events: int
    smallest_visible: float
    """The smallest true ratio above 1 that a run like this calls `faster` nine times out of ten; its inverse
    for `slower`. An estimate from this run's scatter. Infinite where no change could be detected."""
    clock: str
    evidence: str
    reason: str
    """Why the outcome is `cannot_tell`; empty otherwise."""
    remarks: Tuple[str, ...] = ()
    """What a reader should know: events during which the machine changed, events that look dependent."""

    def sentence(self) -> str:
        """For people: `1.83x faster (95 % interval 1.79 to 1.88, 24 events)`."""
        interval = (
            f"{_percent(self.confidence)} % interval {self.low:.2f} to {self.high:.2f}, {self.events} events"
        )
        if self.outcome == "faster":
            return f"{_times(self.ratio, self.low)}x faster ({interval})"
        if self.outcome == "slower":
            slower = f"{_percent(self.confidence)} % interval {1 / self.high:.2f} to {1 / self.low:.2f}"
            return f"{_times(1 / self.ratio, 1 / self.high)}x slower ({slower}, {self.events} events)"
        if self.outcome == "equal":
            return f"equal within {_percent(self.margin)} % ({interval})"
        return f"cannot tell: {self.reason}"

    def to_json(self) -> Dict[str, Any]:
        """Plain values for JSON; what is infinite becomes null."""
        return {**plain(self), "sentence": self.sentence()}


def exit_code(outcome: str, *, equal: int = 0) -> int:
    """What a command that ends in this outcome exits with: 0 faster, 1 slower, 3 cannot tell."""
    return {"faster": 0, "equal": equal, "slower": 1}.get(outcome, 3)


def judge(
    baseline: Measurement,
    candidate: Measurement,
    *,
    margin: float = 0.02,
    confidence: float = 0.95,
    clock: Optional[str] = None,
    order: Optional[Tuple[int, float]] = None,
) -> Judgement:
    """Compares two measurements that were timed interleaved in one run.

    `margin` is the change that does not matter: an interval within 1/(1+margin) to 1+margin is *equal*, even
    if it excludes 1. `clock` is `cpu` or `wall`; by default the CPU time of the one thread, which other
    processes disturb ten times less, and the wall clock where there is none. `order` is the order statistic
    and its confidence, where `sequential` has computed them; otherwise that of a single look.

    Raises:
        MeasurementError: they were not timed together: another run, machine, software or protocol.
    """
    if not 0 < confidence < 1 or not margin >= 0:
        raise MeasurementError(
            f"A judgement cannot be made with the confidence {confidence} and the margin {margin}.",
            "The confidence must be between 0 and 1, the margin 0 or more: confidence=0.95, margin=0.02.",
        )
    _check_together(baseline, candidate)
    if clock is None:
        clock = "wall" if baseline.cpu_ns is None or candidate.cpu_ns is None else "cpu"
    ratios = np.sort(log_ratios(baseline, candidate, clock=clock))
    place, attained = order_statistic(ratios.size, confidence) if order is None else order
    ratio = math.exp(float(np.median(ratios)))
    low, high, visible = 0.0, math.inf, math.inf
    if place:
        low, high = math.exp(ratios[place - 1]), math.exp(ratios[-place])
        visible = smallest_visible(ratios, order=place, margin=margin)
    weakest = baseline if baseline.evidence != "measured" else candidate
    reason = unproven(baseline, candidate)
    if reason:
        outcome, visible = "cannot_tell", math.inf  # no change could be detected, however large
    elif not place:
        outcome = "cannot_tell"
        needed = fewest_events(confidence) if order is None else "more"
        reason = (
            f"{ratios.size} events are too few for a {_percent(confidence)} % interval: it needs {needed}"
        )
    elif 1 / (1 + margin) <= low and high <= 1 + margin:
        outcome = "equal"
    elif low > 1:
        outcome = "faster"
    elif high < 1:
        outcome = "slower"
    else:
        outcome = "cannot_tell"
        reason = (
            f"the {_percent(confidence)} % interval is {low:.2f} to {high:.2f} ({ratios.size} events), "
            f"and this run can detect changes of {_percent(visible - 1)} % or more"
        )
    return Judgement(
        outcome=outcome,
        ratio=ratio,
        low=low,
        high=high,
        confidence=confidence,
        attained=attained,
        margin=margin,
        events=ratios.size,
        smallest_visible=visible,
        clock=clock,
        evidence=weakest.evidence,
        reason=reason,
        remarks=_remarks(baseline, candidate, clock=clock),
    )


def unproven(*measurements: Measurement) -> str:
    """Why measurements timed together prove nothing at any times; empty where they may."""
    for one in measurements:
        if one.evidence != "measured":
            return f"the times are {one.evidence}, and only measured times are evidence"
        if one.void:
            return f"the measurement is void: {'; '.join(one.void)}; {CALM}"
    return ""


def log_ratios(baseline: Measurement, candidate: Measurement, *, clock: str) -> NDArray[np.float64]:
    """float64[events]: the median over an event's rounds of log(baseline time / candidate time)."""
    rounds = np.log(baseline.block_s(clock)) - np.log(candidate.block_s(clock))
    return np.asarray(np.median(rounds, axis=1), dtype=np.float64)


def order_statistic(events: int, confidence: float) -> Tuple[int, float]:
    """The k whose k-th smallest and k-th largest of `events` values enclose the median, and the confidence.

    That is 1 - 2 P(Binomial(events, 1/2) < k) for any continuous distribution. k is the largest that attains
    the confidence; 0, with a confidence of 0, if even the extremes do not.
    """
    order, attained = 0, 0.0
    for k in range(1, events // 2 + 1):
        inside = 1 - 2 * binomial_below(k, events, 0.5)
        if inside < confidence:
            break
        order, attained = k, inside
    return order, attained


def fewest_events(confidence: float) -> int:
    """The smallest number of events whose extremes enclose the median with this confidence."""
    return math.ceil(1 - math.log2(1 - confidence))


def smallest_visible(ratios: NDArray[np.float64], *, order: int, margin: float) -> float:
    """The smallest true ratio that is distinguished from 1, and from the margin, nine times out of ten.

    Events with this scatter, shifted to another median: `low` is above 1 in nine of ten runs once the value
    that the k-th smallest event exceeds with that probability is above 0, which is a quantile of the events'
    distribution. The same for `high` and the margin; the worse of both directions counts.
    """
    events = ratios.size
    share_low = _share(order, events)
    share_high = _share(events - order + 1, events)
    needed = 0.0
    for scatter in (ratios - np.median(ratios), np.median(ratios) - ratios):
        below_low = -float(np.quantile(scatter, share_low))
        below_high = math.log1p(margin) - float(np.quantile(scatter, share_high))
        needed = max(needed, below_low, below_high)
    return math.exp(needed)


def _share(order: int, events: int) -> float:
    """The quantile that the order-th smallest of `events` values exceeds with probability `_POWER`."""
    return solve(lambda share: binomial_below(order, events, share) >= _POWER)


def _check_together(baseline: Measurement, candidate: Measurement) -> None:
    cure = "Time both models in one call: deadweight compare BASELINE CANDIDATE."
    for what in ("machine", "software"):
        was, now = baseline.conditions.get(what), candidate.conditions.get(what)
        if was != now:
            raise MeasurementError(f"The two were timed on different {what}: {was} and {now}.", cure)
    if baseline.protocol != candidate.protocol:
        raise MeasurementError(
            f"The two were timed under different protocols: {baseline.protocol} and {candidate.protocol}.",
            cure,
        )
    if baseline.run_id != candidate.run_id or baseline.wall_ns.shape[:2] != candidate.wall_ns.shape[:2]:
        raise MeasurementError(
            f"{baseline.name} and {candidate.name} were not timed together: their events cannot be paired.",
            cure,
        )


def _remarks(baseline: Measurement, candidate: Measurement, *, clock: str) -> Tuple[str, ...]:
    remarks = []
    inputs = baseline.conditions.get("inputs", {})
    was, now = (", ".join(sorted(inputs.get(one.name, ()))) for one in (baseline, candidate))
    if was != now:
        remarks.append(f"the two models have different inputs: {was} and {now}")
    remarks += [str(baseline.conditions["times"])] if "times" in baseline.conditions else []
    remarks += [f"not known: {clause}" for clause in not_known(baseline.conditions)]
    if marked := marked_words(baseline, candidate):
        remarks.append(marked)
    ratios = log_ratios(baseline, candidate, clock=clock)
    if ratios.size >= 12:
        ranks = np.unique(ratios, return_inverse=True)[1].ravel()
        ranks = ranks - ranks.mean()
        # The lag-1 rank correlation of independent events exceeds 3/sqrt(n) in about one of 700 runs.
        if float((ranks[1:] * ranks[:-1]).sum()) > 3 / math.sqrt(ratios.size) * float((ranks**2).sum()):
            remarks.append("successive events are correlated, so the interval may be too narrow")
    return tuple(remarks)


def _times(ratio: float, bound: float) -> str:
    """A ratio with enough digits not to read `1.00x faster`."""
    return f"{ratio:.2f}" if min(ratio, bound) >= 1.005 else f"{ratio:.3f}"


def _percent(share: float) -> str:
    return f"{100 * share:.3g}"
