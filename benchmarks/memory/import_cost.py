"""What `import deadweight.targets` costs beside `import numpy`, side by side.

    python benchmarks/memory/import_cost.py [--pairs 30] [--module deadweight.targets]

Fresh processes by turns, in random order; CPU time of the import statement alone, each pair giving one ratio.
The median of the ratios is printed with its 95 % interval by order statistics. A second line imports every
module of the floor that a board runs.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from deadweight.targets.timing.judge import order_statistic

GOAL = 1.5
HERE = Path(__file__).parents[2]
WHOLE = (
    "timing.judge",
    "timing.measurement",
    "timing.clock",
    "timing.memory",
    "memory_fit",
    "target",
    "runtimes.session",
    "runtimes.ort",
    "runtimes.trt",
    "engines.build",
)


def cost_s(modules: Sequence[str]) -> float:
    """CPU seconds of importing modules in a fresh process."""
    code = (
        "import importlib, sys, time\n"
        "before = time.process_time()\n"
        "for name in sys.argv[1:]: importlib.import_module(name)\n"
        "print(time.process_time() - before)"
    )
    command = [sys.executable, "-c", code, *modules]
    return float(subprocess.run(command, capture_output=True, text=True, check=True, cwd=HERE).stdout)


def ratios(modules: Sequence[str], pairs: int) -> list[float]:
    """The modules' cost over numpy's, of each pair; numpy is among what is imported."""
    draw = random.Random(0)
    found = []
    for at in range(pairs + 2):
        sides = [("numpy",), tuple(modules)]
        draw.shuffle(sides)
        cost = {side: cost_s(side) for side in sides}
        if at >= 2:  # the first pairs read files from the disk
            found.append(cost[tuple(modules)] / cost["numpy",])
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--module", default="deadweight.targets")
    asked = parser.parse_args()
    goal: float | None = GOAL
    kept = True
    for name, modules in (
        (asked.module, [asked.module]),
        (f"{asked.module} with {len(WHOLE)} modules of it", [f"deadweight.targets.{one}" for one in WHOLE]),
    ):
        found = np.sort(ratios(modules, asked.pairs))
        order, attained = order_statistic(found.size, 0.95)
        low, high = found[order - 1], found[-order]
        told = f"{np.median(found):.3f} ({100 * attained:.1f} % interval {low:.3f} to {high:.3f})"
        print(f"{name}: {told} of `import numpy`, {found.size} pairs" + (f"; goal {goal}" if goal else ""))
        kept = kept and bool(goal is None or high <= goal)
        goal = None  # the floor's modules are imported where they are needed; their sum is only told
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
