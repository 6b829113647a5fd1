"""The binomial distribution, exactly: for intervals of order statistics and rates of false alarms.

The standard library has none, and a board has no scipy. Sums of a few hundred terms are quick and exact
enough (tests compare them with scipy); larger ones use logarithms.
"""

from __future__ import annotations

import math
from typing import Callable, Tuple


def binomial_below(successes: int, trials: int, chance: float) -> float:
    """P(Binomial(trials, chance) < successes)."""
    if chance <= 0.0 or successes > trials:
        return 1.0 if successes > 0 else 0.0
    if chance >= 1.0 or successes <= 0:
        return 0.0
    if 2 * successes > trials + 1 and trials > 2000:  # the shorter sum of the two
        return 1.0 - binomial_below(trials - successes + 1, trials, 1 - chance)
    log_chance, log_rest = math.log(chance), math.log1p(-chance)
    whole = math.lgamma(trials + 1)

    def exactly(n: int) -> float:
        ways = whole - math.lgamma(n + 1) - math.lgamma(trials - n + 1)
        return math.exp(ways + n * log_chance + (trials - n) * log_rest)

    return min(1.0, math.fsum(map(exactly, range(successes))))


def clopper_pearson(successes: int, trials: int) -> Tuple[float, float]:
    """The exact 95 % interval for a rate observed `successes` times in `trials` (Clopper and Pearson 1934).

    Without trials it is 0 to 1.
    """
    tail, low, high = 0.025, 0.0, 1.0
    if successes > 0:
        low = solve(lambda chance: binomial_below(successes, trials, chance) > 1 - tail)
    if successes < trials:
        high = solve(lambda chance: binomial_below(successes + 1, trials, chance) > tail)
    return low, high


def solve(too_small: Callable[[float], bool]) -> float:
    """The chance, by bisection, at which `too_small` becomes false."""
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if too_small(middle) else (low, middle)
    return (low + high) / 2
