"""Which rule for looking often? Simulated from recorded events, as `targets/timing/sequential.py` says.

    python benchmarks/gate/spending_rules.py record [--busy]     # 160 events of nine pairs: some minutes
    python benchmarks/gate/spending_rules.py simulate            # the table, from what was recorded

A simulated run draws events with replacement from one pair's record, so it has the record's own scatter and
tails, and no dependence between events. Rules: how much of the error may be spent after a share t of the
events. "fixed 24" is a single look after 24 events at 98 %; "always valid" is the union bound over all n with
error / (n (n + 1)), an anytime interval of the same order statistics.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.gate.planted_networks import SIZES, base, plant
from deadweight.targets.timing.clock import time_together
from deadweight.targets.timing.judge import log_ratios, order_statistic
from deadweight.targets.timing.measurement import Protocol
from deadweight.targets.timing.sequential import CONFIDENCE, LOOKS

EVENTS, RUNS, LIMIT = 160, 20_000, 0.02
FOLDER = Path("runs/gate")
Rule = Callable[[float], float]
RULES: dict[str, Rule] = {
    "in proportion to n": lambda t: t,
    "n squared": lambda t: t**2,
    "square root of n": lambda t: t**0.5,
    "Pocock": lambda t: math.log(1 + (math.e - 1) * t),
    "O'Brien-Fleming": lambda t: math.erfc(2.807 / math.sqrt(2 * t)) / math.erfc(2.807 / math.sqrt(2)),
}


def record(*, busy: bool) -> None:
    """Stores the events' log ratios of every size and slow-down in runs/gate."""
    burning = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * busy)]
    kept: dict[str, NDArray[np.float64]] = {}
    try:
        for size in SIZES:
            planted = plant(FOLDER / "networks", size, (0.05, 0.10))
            paths = {"0": base(FOLDER / "networks", size)}
            paths |= {share: Path(one["path"]) for share, one in planted.items()}
            for share, path in paths.items():
                models = {"baseline": base(FOLDER / "networks", size), "candidate": path}
                timed = time_together(models, protocol=Protocol(events=EVENTS))
                kept[f"{size} {share}"] = log_ratios(timed["baseline"], timed["candidate"], clock="cpu")
                print(size, share, f"{np.median(kept[f'{size} {share}']):.4f}", flush=True)
    finally:
        for process in burning:
            process.kill()
            process.wait()
    np.savez(str(FOLDER / f"events-{'busy' if busy else 'quiet'}.npz"), **kept)  # type: ignore[arg-type]


def orders_by(rule: Rule, error: float) -> list[int]:
    """The order statistic of each look under any spending rule; see `targets/timing/sequential.py`."""
    alive, missed, done, orders = np.ones(1), 0.0, 0, []
    for look in LOOKS:
        for _ in range(look - done):
            alive = np.convolve(alive, [0.5, 0.5])
        done, order = look, 0
        while order < look // 2 and missed + alive[order] <= error / 2 * rule(look / LOOKS[-1]) + 1e-15:
            missed += alive[order]
            alive[order] = 0.0
            order += 1
        orders.append(order)
    return orders


def anytime_orders(error: float) -> list[int]:
    """Orders that hold at every n at once, by a union bound."""
    return [order_statistic(look, 1 - error / math.log2(LOOKS[-1]) / 1.2)[0] for look in LOOKS]


def simulated(
    events: NDArray[np.float64], orders: list[int], looks: tuple[int, ...], *, generator: np.random.Generator
) -> tuple[float, float, float]:
    """Shares of runs that fail and that pass the limit, and the median number of events they took."""
    drawn = generator.choice(events, size=(RUNS, looks[-1]))
    verdict, taken = np.zeros(RUNS, np.int8), np.full(RUNS, looks[-1])
    limit = -math.log1p(LIMIT)
    for look, order in zip(looks, orders, strict=True):
        if not order:
            continue
        ranked = np.sort(drawn[:, :look], axis=1)
        low, high = ranked[:, order - 1], ranked[:, look - order]
        open_ = verdict == 0
        found = np.where(high < limit, 1, np.where(low > limit, 2, 0)).astype(np.int8)
        taken[open_ & (found > 0)] = look
        verdict[open_] = found[open_]
    return float((verdict == 1).mean()), float((verdict == 2).mean()), float(np.median(taken))


def simulate() -> None:
    """Prints a table for each record."""
    error = 1 - CONFIDENCE
    rules: dict[str, tuple[list[int], tuple[int, ...]]] = {
        name: (orders_by(rule, error), LOOKS) for name, rule in RULES.items()
    }
    rules["always valid"] = (anytime_orders(error), LOOKS)
    rules["fixed 24"] = ([order_statistic(24, 0.98)[0]], (24,))
    for path in sorted(FOLDER.glob("events-*.npz")):
        kept = np.load(path)
        print(f"\n{path.stem}: fail % / pass % / median events, limit {100 * LIMIT:.0f} %")
        for name, (orders, looks) in rules.items():
            cells = []
            for key in kept.files:
                failed, passed, taken = simulated(
                    kept[key], orders, looks, generator=np.random.default_rng(0)
                )
                cells.append(f"{key}: {100 * failed:.1f} / {100 * passed:.1f} / {taken:.0f}")
            print(f"{name:20s} " + "   ".join(cells))


def main() -> None:
    """Records or simulates."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("record", "simulate"))
    parser.add_argument("--busy", action="store_true")
    arguments = parser.parse_args()
    if arguments.what == "record":
        FOLDER.mkdir(parents=True, exist_ok=True)
        record(busy=arguments.busy)
    else:
        simulate()


if __name__ == "__main__":
    main()
