"""Does the bound for p99 and p99.9 hold as often as it says? Simulated, since only there the truth is known.

    python benchmarks/gate/tail_bounds.py      # half a minute

A thousand draws each from a lognormal, from two modes (2 ms, and one run in fifty at 70 ms), and from a tail
so heavy that it has no variance (Pareto 1.5); the true percentiles are known in closed form. The last rows
draw slow runs in bursts, event by event, which is how they come; the truth there is from millions of draws.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.gate.gate import share_text
from deadweight.targets.timing.tail import needed_samples, tail_bound

DRAWS = 1000
Draw = Callable[[np.random.Generator, int], NDArray[np.float64]]


def lognormal(generator: np.random.Generator, n: int) -> NDArray[np.float64]:
    return np.asarray(1e-3 * np.exp(0.3 * generator.standard_normal(n)))


def two_modes(generator: np.random.Generator, n: int) -> NDArray[np.float64]:
    slow = generator.random(n) < 0.02
    return np.asarray(np.where(slow, 70e-3, 2e-3) * (1 + 0.01 * generator.standard_normal(n)))


def heavy(generator: np.random.Generator, n: int) -> NDArray[np.float64]:
    return np.asarray(1e-3 * (1 + generator.pareto(1.5, n)))


def bursts(generator: np.random.Generator, n: int) -> NDArray[np.float64]:
    """float64[events, 50]: in one event of ten a third of the runs is slow, else hardly any."""
    events = max(2, n // 50)
    chance = np.where(generator.random((events, 1)) < 0.1, 0.33, 0.001)
    slow = generator.random((events, 50)) < chance
    return np.asarray(1e-3 * np.where(slow, 3, 1) * (1 + 0.05 * generator.random((events, 50))))


def quantile(draw: Draw, share: float) -> float:
    """The true percentile."""
    if draw is lognormal:
        return 1e-3 * math.exp(0.3 * NormalDist().inv_cdf(share))
    if draw is heavy:
        return float(1e-3 * (1 - share) ** (-1 / 1.5))
    if draw is two_modes:  # the upper mode has the last 2 %
        return 70e-3 * (1 + 0.01 * NormalDist().inv_cdf(1 - (1 - share) / 0.02))
    return float(np.quantile(draw(np.random.default_rng(9), 4_000_000), share))


def main() -> None:
    """Prints the table as Markdown."""
    print("| distribution | percentile | samples | bound holds | bound over truth, median | refused |")
    print("| --- | --- | --- | --- | --- | --- |")
    for draw in (lognormal, two_modes, heavy, bursts):
        for percent, sizes in ((99.0, (299, 1000, 3000)), (99.9, (2994, 2995, 10_000))):
            truth = quantile(draw, percent / 100)
            for size in sizes:
                generator = np.random.default_rng(size)
                bounds = [tail_bound(draw(generator, size), percent).bound_s for _ in range(DRAWS)]
                given = [bound for bound in bounds if math.isfinite(bound)]
                held = share_text(sum(bound >= truth for bound in given), len(given)) if given else "none"
                over = f"{np.median(given) / truth:.2f}" if given else ""
                name = draw.__name__.replace("_", " ")
                print(f"| {name} | p{percent:g} | {size:,} | {held} | {over} | {DRAWS - len(given)} |")
    print(f"\nNeeded: {needed_samples(99)} for p99, {needed_samples(99.9)} for p99.9, at 95 %.")


if __name__ == "__main__":
    main()
