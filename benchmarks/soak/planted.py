"""How often a soak finds what was planted: energy, the onset of throttling, leaks. On simulated boards.

    python benchmarks/soak/planted.py        # some minutes, one process; nothing is timed

The boards are folders that heat_and_rails.py drives; the code is the product's, but for the processes.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.soak.heat_and_rails import Simulated
from deadweight.targets.timing.loads import Load
from deadweight.targets.timing.soak import soak
from deadweight.targets.timing.soak_record import SoakPlan
from deadweight.targets.timing.soak_summary import Summary, summarized

RUNS = 100


def soaked(board: Simulated, *, minutes: float, period_s: float) -> Summary:
    """The summary of a soak of one load on a simulated board."""
    plan = SoakPlan({"baseline": Load("cpu")}, minutes=minutes, period_s=period_s, seed=board.seed)
    done = soak(
        plan, folder=board.root / "soaks", root=board.root, clocks=board.clocks, processes=board.processes
    )
    return summarized(done)


def each(
    make: Callable[[Path, int], Simulated], *, minutes: float, period_s: float
) -> list[tuple[Simulated, Summary]]:
    """A soak of each of `RUNS` boards."""
    found = []
    for seed in range(RUNS):
        with tempfile.TemporaryDirectory() as folder:
            board = make(Path(folder), seed)
            found.append((board, soaked(board, minutes=minutes, period_s=period_s)))
    return found


def energy(name: str, make: Callable[[Path, int], Simulated]) -> None:
    covered, off, unknown = 0, [], 0
    for board, summary in each(make, minutes=4, period_s=3):
        found = summary.rows[0].energy
        if found is None or found.j is None:
            unknown += 1
            continue
        covered += found.j.low <= board.energy_j <= found.j.high
        off.append(abs(found.j.value / board.energy_j - 1))
    worst = f"{100 * np.median(off):.2f} % | {100 * max(off):.2f} %" if off else "- | -"
    print(f"| {name} | {covered} of {RUNS - unknown} | {worst} | {unknown} |", flush=True)


def main() -> None:
    what = f"{RUNS} boards, 40 rounds of 3 s idle and 3 s busy"
    print(f"| {what} | interval covers | median off | worst off | no answer |")
    print("| --- | --- | --- | --- | --- |")
    energy(
        "a new value every 0.1 s, noise 0.15 W, idle drifts by 0.6 W", lambda at, seed: Simulated(at, seed)
    )
    energy("every 0.3 s, noise 0.5 W", lambda at, seed: Simulated(at, seed, update_s=0.3, noise_w=0.5))
    energy("every 2 s", lambda at, seed: Simulated(at, seed, update_s=2.0))
    energy("a load of 0.02 W", lambda at, seed: Simulated(at, seed, active_w=0.02, noise_w=0.02))
    late = []
    for board, summary in each(
        lambda at, seed: Simulated(at, seed, hot_c=68 + seed / 20, cool_c=67, tick_s=0.25),
        minutes=6,
        period_s=5,
    ):
        assert len(board.slowed_at) > 0
        late.append(summary.slowed[0][0] - board.slowed_at[0] if summary.slowed else np.inf)
    late_by = f"{np.median(late):.2f} s later in the median, {max(late):.2f} s at most"
    print(f"\nThrottling: found in {np.isfinite(late).sum()} of {len(late)}, {late_by}.", flush=True)
    for leak, again in ((0.0, 0.5), (1e6, 0.5), (0.0, 0.9), (1e6, 0.9)):

        def make(at: Path, seed: int, leak: float = leak, again: float = again) -> Simulated:
            return Simulated(at, seed, leak_bytes_per_h=leak, memory_again=again, tick_s=4.0, update_s=4.0)

        found = each(make, minutes=30, period_s=20)
        grows = sum(summary.memory.grows for _, summary in found)
        inside = sum(
            one.memory.slope is not None and one.memory.slope.low <= leak <= one.memory.slope.high
            for _, one in found
        )
        words = f"{leak / 1e6:g} MB an hour, with noise of which {again:g} is left a round later"
        print(f"Leak of {words}: found in {grows} of {RUNS}, interval covers {inside}.", flush=True)


if __name__ == "__main__":
    main()
