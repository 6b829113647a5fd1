"""The plan of an event: the length of each model's block, and the number of rounds.

A block is so long that the cost of reading the clock, which is measured here, is negligible.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from time import perf_counter_ns, thread_time_ns
from typing import Callable, Dict, Mapping, Tuple

from .measurement import Protocol

_ALIKE = 1.5


@dataclass(frozen=True)
class Block:
    """One model's work in one round: `settling` untimed runs, then `samples` samples of `runs` runs each."""

    settling: int
    runs: int
    samples: int

    @property
    def all_runs(self) -> int:
        return self.settling + self.runs * self.samples


@dataclass(frozen=True)
class Plan:
    """What every event does; made in the first event from a short trial."""

    blocks: Mapping[str, Block]
    rounds: int


def planned(run_ns: Mapping[str, int], protocol: Protocol) -> Plan:
    """Plans a block for each model, in which neither clock exceeds its share, and as many rounds as fit.

    Models of about the same speed get the same block, so that incomplete settling affects them equally.
    """
    wall_cost_ns, cpu_cost_ns = clock_costs_ns()
    blocks: Dict[str, Block] = {}
    group_ns = 0
    for name in sorted(run_ns, key=lambda name: run_ns[name]):
        if not group_ns or run_ns[name] > _ALIKE * group_ns:
            group_ns = run_ns[name]
        runs = math.ceil(wall_cost_ns / (protocol.clock_share * group_ns))
        timed_ns = max(1e9 * protocol.block_s, cpu_cost_ns / protocol.clock_share)
        blocks[name] = Block(
            settling=max(1, round(1e9 * protocol.settle_s / group_ns)),
            runs=runs,
            samples=max(1, round(timed_ns / (group_ns * runs))),
        )
    round_ns = sum(run_ns[name] * block.all_runs for name, block in blocks.items())
    fitting = int(1e9 * protocol.event_s * len(blocks) / round_ns)
    return Plan(blocks, rounds=max(fitting, protocol.min_rounds))


def ns_of(call: Callable[[], object]) -> int:
    """The time of one run."""
    start = perf_counter_ns()
    call()
    return perf_counter_ns() - start


def clock_costs_ns() -> Tuple[float, float]:
    """The cost of one reading on this machine: of the wall clock in a block, and of both clocks around it."""

    def cost(read: Callable[[], int]) -> float:
        best = math.inf
        for _ in range(5):
            start = perf_counter_ns()
            for _ in range(200):
                read()
            best = min(best, (perf_counter_ns() - start) / 200)
        return best

    wall = cost(perf_counter_ns)
    return wall, cost(thread_time_ns) + wall
