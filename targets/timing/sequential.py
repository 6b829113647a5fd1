"""Sequential comparison: events are timed until the outcome is clear or the time is up.

Stopping at the first clear look at a growing sample is wrong more often than each look states. Here every
look has its own interval, and the probability that any of them misses the true ratio is at most the stated
error (a group-sequential design with repeated confidence intervals: Jennison and Turnbull 1989). Each
interval is a pair of order statistics of the events' ratios, so the number of events on one side of the true
median is a random walk of fair coin tosses, for any distribution, and the probability is exact. The
error that may be spent after n of at most N events is error * n / N (Lan and DeMets 1983), all of it at the
last look; where the time cap makes another look the last, the rest is spent there, which is valid because
the cap does not depend on the ratio.

Chosen by drawing 20,000 runs from 160 recorded events each of nine pairs of networks (three sizes; equal, 5
and 10 % slower): benchmarks/gate/spending_rules.py, with the table in docs/judgement.md. Spending in
proportion to n decided as early as any rule and is the simplest of those. O'Brien and Fleming's rule took
twice the events, since it spends little error early; n squared took a third more; one look at a fixed number
is either wasteful where the difference is large, or cannot decide the noisiest pair.
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
"""Numbers of events after which the pair is judged."""
CONFIDENCE = 0.99
"""The error is 1 % in both directions together, over all looks: a false `slower` has half of it."""


@dataclass(frozen=True)
class Compared:
    """The measurements of `baseline` and `candidate`, and the judgement of the last look."""

    measured: Mapping[str, Measurement]
    judgement: Judgement
    looks: int
    """Number of looks."""


def sequential_protocol(*, cap_s: float = 60.0, threads: int = 1, batch: int = 1) -> Protocol:
    """The protocol of a sequential run: events up to the last look, or as many as fit into `cap_s`."""
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
    """Times two models interleaved until `decided` accepts a look's judgement and samples.

    By default it accepts any outcome but `cannot_tell`. Where more events would not help (emulated times, a
    board that changed state), the first look is the last, and a remark says so. Both models get `inputs`.
    """
    enough = decided or (lambda judgement, measured: judgement.outcome != "cannot_tell")
    scheduled = tuple(look for look in LOOKS if look <= protocol.events)
    if not scheduled or scheduled[-1] != protocol.events:
        scheduled = (*scheduled, protocol.events)
    looks: List[int] = []
    futile = False

    def judgement_of(measured: Mapping[str, Measurement]) -> Judgement:
        return judge(
            measured["baseline"],
            measured["candidate"],
            margin=margin,
            confidence=confidence,
            order=order_at(measured["baseline"].events, scheduled=scheduled, confidence=confidence),
        )

    def look(measured: Mapping[str, Measurement]) -> bool:
        nonlocal futile
        looks.append(measured["baseline"].events)
        futile = bool(unproven(*measured.values()))
        return futile or enough(judgement_of(measured), measured)

    measured = time_together(
        {"baseline": Path(baseline), "candidate": Path(candidate)},
        protocol=protocol,
        inputs=inputs,
        progress=progress,
        looks=scheduled,
        decided=look,
    )
    # Judged again: the cap may have made another look the last, and only now is it known whether the machine
    # is in the same state as at the start.
    last_too = looks[-1:] != [measured["baseline"].events]
    judgement = judgement_of(measured)
    if futile:
        remark = f"the timing stopped after {judgement.events} events, since more events would not help"
        judgement = replace(judgement, remarks=(*judgement.remarks, remark))
    return Compared(measured, judgement, len(looks) + last_too)


def order_at(events: int, *, scheduled: Tuple[int, ...], confidence: float) -> Tuple[int, float]:
    """The order statistic of the look after `events`, and the joint confidence of all looks up to it.

    Where `events` is not a scheduled look, it is the last one and spends the rest of the error. The order is
    0 where there are too few events for an interval.
    """
    looks = (*tuple(look for look in scheduled if look < events), events)
    most = scheduled[-1]
    final = events == most or events not in scheduled
    orders, spent = _orders(looks, most, 1 - confidence, final)
    return (orders[-1], 1 - spent) if orders[-1] else (0, 0.0)


@lru_cache(maxsize=256)
def _orders(looks: Tuple[int, ...], most: int, error: float, final: bool) -> Tuple[Tuple[int, ...], float]:
    """The order at each look, and the error spent by then on both sides together."""
    alive: Dict[int, float] = {0: 1.0}  # chance of each count on one side, if no look has missed
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
    """The candidate's additional time as a share: value, low, high; high may be infinite."""
    high = math.inf if judgement.low == 0 else 1 / judgement.low - 1
    return 1 / judgement.ratio - 1, 1 / judgement.high - 1, high
