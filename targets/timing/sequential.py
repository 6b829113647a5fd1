"""Draw events until the answer is known or the time is up, with the error of looking often paid for.

Who looks at a growing sample and stops at the first clear answer is wrong more often than each look says.
Here every look has its own interval, and the chance that any of them misses the true ratio, counted over all
looks, is at most the stated error (a group-sequential design with repeated confidence intervals: Jennison
and Turnbull 1989). Each interval is a pair of order statistics of the events' ratios, so the number of
events on one side of the true median is a walk of fair coin tosses, whatever their distribution, and the
chance is counted exactly. How much of the error may be spent after n of at most N events is error * n / N
(Lan and DeMets 1983), all of it at the last look; where the time cap makes another look the last, what is
left is spent there, which is allowed because the clock on the wall knows nothing of the ratio.

Chosen by drawing 20,000 runs from 160 recorded events each of nine pairs of networks (three sizes; equal, 5
and 10 % slower): benchmarks/gate/spending_rules.py, with the table in docs/judgement.md. Spending in
proportion to n decided as soon as any rule and is the plainest of those. O'Brien and Fleming's took twice the
events, since it waits for a gap that is there at once; n squared took a third more; one look at a fixed
number is either wasteful where the gap is wide, or leaves the noisiest pair open.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Callable, Dict, List, Mapping, Optional, Tuple

from ..progress import Counted
from .clock import time_together
from .judge import Judgement, judge, unproven
from .measurement import Measurement, Protocol

if TYPE_CHECKING:
    from ..runtimes.session import Arrays

LOOKS = (8, 12, 16, 20, 24, 32, 40, 48, 64, 80, 96)
"""Events after which the answer is looked at."""
CONFIDENCE = 0.99
"""The error is 1 % in both directions together, over all looks: a false `slower` has half of it."""


@dataclass(frozen=True)
class Compared:
    """What came of it: both measurements, by `baseline` and `candidate`, and the last look's judgement."""

    measured: Mapping[str, Measurement]
    judgement: Judgement
    looks: int
    """How often the answer was looked at."""


def sequential_protocol(*, cap_s: float = 60.0, threads: int = 1, batch: int = 1) -> Protocol:
    """The protocol of a sequential run: as many events as the last look has, or as fit into `cap_s`."""
    return Protocol(events=LOOKS[-1], cap_s=cap_s, event_s=0.05, threads=threads, batch=batch)


def compare_until_decided(
    baseline: Path,
    candidate: Path,
    *,
    protocol: Protocol,
    margin: float = 0.02,
    confidence: float = CONFIDENCE,
    decided: Optional[Callable[[Judgement, Mapping[str, Measurement]], bool]] = None,
    inputs: Optional[Arrays] = None,
    progress: Optional[Counted] = None,
) -> Compared:
    """Times two models by turns until `decided` says so of a look's judgement and samples.

    By default that is when the answer can be told. Where the times prove nothing however many there are
    (emulated ones, a board that did not keep still), the first look is the last, and a remark says so.

    `inputs` are fed to both.

    Raises:
        ModelError, MeasurementError: as `time_together`.
    """
    enough = decided or (lambda judgement, measured: judgement.outcome != "cannot_tell")
    scheduled = tuple(look for look in LOOKS if look <= protocol.events)
    if not scheduled or scheduled[-1] != protocol.events:
        scheduled = (*scheduled, protocol.events)
    looked: List[int] = []
    in_vain = False

    def judged(measured: Mapping[str, Measurement]) -> Judgement:
        return judge(
            measured["baseline"],
            measured["candidate"],
            margin=margin,
            confidence=confidence,
            order=order_at(measured["baseline"].events, scheduled=scheduled, confidence=confidence),
        )

    def look(measured: Mapping[str, Measurement]) -> bool:
        nonlocal in_vain
        looked.append(measured["baseline"].events)
        in_vain = bool(unproven(*measured.values()))
        return in_vain or enough(judged(measured), measured)

    measured = time_together(
        {"baseline": Path(baseline), "candidate": Path(candidate)},
        protocol=protocol,
        inputs=inputs,
        progress=progress,
        looks=scheduled,
        decided=look,
    )
    # Judged once more: the cap may have made another look the last, and only now is it known whether the
    # machine is still in the state that it was in at the start.
    last_too = looked[-1:] != [measured["baseline"].events]
    judgement = judged(measured)
    if in_vain:
        told = f"it stopped after {judgement.events} events, since more of them would prove no more"
        judgement = replace(judgement, remarks=(*judgement.remarks, told))
    return Compared(measured, judgement, len(looked) + last_too)


def order_at(events: int, *, scheduled: Tuple[int, ...], confidence: float) -> Tuple[int, float]:
    """The order statistic of the look after `events`, and the confidence that all looks up to it have.

    Where `events` is no scheduled look it is the last one, and what is left of the error is spent on it.
    The order is 0 where so few events allow no interval.
    """
    looks = (*tuple(look for look in scheduled if look < events), events)
    most = scheduled[-1]
    final = events == most or events not in scheduled
    orders, spent = _orders(looks, most, 1 - confidence, final)
    return (orders[-1], 1 - spent) if orders[-1] else (0, 0.0)


@lru_cache(maxsize=256)
def _orders(looks: Tuple[int, ...], most: int, error: float, final: bool) -> Tuple[Tuple[int, ...], float]:
    """The order at each look, and the error that is spent by then, both sides together."""
    alive: Dict[int, float] = {0: 1.0}  # chance of each count on one side, no look having missed
    done, missed = 0, 0.0
    orders = []
    for look in looks:
        for _ in range(look - done):
            alive = _toss(alive)
        done = look
        allowed = error / 2 * (1.0 if final and look == looks[-1] else look / most)
        order = 0
        while order < look // 2 and missed + alive.get(order, 0.0) <= allowed * (1 + 1e-12):
            missed += alive.pop(order, 0.0)
            order += 1
        orders.append(order)
    return tuple(orders), 2 * missed


def _toss(alive: Mapping[int, float]) -> Dict[int, float]:
    after: Dict[int, float] = {}
    for count, chance in alive.items():
        after[count] = after.get(count, 0.0) + chance / 2
        after[count + 1] = after.get(count + 1, 0.0) + chance / 2
    return after


def slowdown(judgement: Judgement) -> Tuple[float, float, float]:
    """How much longer the candidate takes, as a share: value, low, high; high may be infinite."""
    high = math.inf if judgement.low == 0 else 1 / judgement.low - 1
    return 1 / judgement.ratio - 1, 1 / judgement.high - 1, high
