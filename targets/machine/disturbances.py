"""Disturbances of a board between two states, and what could not be read of them.

A disturbance voids the times measured in between. A tool that does not answer in time is not a disturbance:
`jetson_clocks --show` takes seconds on a busy board.
"""

from __future__ import annotations

from typing import List, Optional, Tuple

from .jetson import BoardState
from .nvidia_tools import Clock, PowerMode


def disturbances(before: BoardState, after: BoardState) -> Tuple[str, ...]:
    """Changes of the board that void the times measured meanwhile, each a clause.

    A floating clock is not a disturbance, its limits are part of the power mode; a locked clock with another
    frequency is. Only a CPU's clock can disappear, with a core that is switched off, while those of the other
    cores remain: any other missing clock could not be read, see `unread`.
    """
    clauses: List[str] = []
    if _differ(before.power_mode, after.power_mode):
        clauses.append(f"the power mode went from {before.power_mode} to {after.power_mode}")
    for name in sorted(set(before.clocks) & set(after.clocks)):
        was, now = before.clocks[name], after.clocks[name]
        if (was.min_hz, was.max_hz) != (now.min_hz, now.max_hz):
            clauses.append(f"the limits of the {name} clock went from {_range(was)} to {_range(now)}")
        elif now.locked and now.now_hz and abs(now.now_hz - now.max_hz) > 0.01 * now.max_hz:
            clauses.append(
                f"the {name} clock ran at {now.now_hz / 1e6:.0f} MHz though it is locked to "
                f"{now.max_hz / 1e6:.0f} MHz"
            )
    if any(name.startswith("cpu") for name in after.clocks):
        gone = sorted(set(before.clocks) - set(after.clocks))
        clauses += [f"{name} was switched off" for name in gone if name.startswith("cpu")]
    for name, count in after.counters.items():
        if count > before.counters.get(name, count):
            clauses.append(f"{count - before.counters[name]} {name} events slowed the board")
    for name in sorted(set(before.throttling) | set(after.throttling)):
        clauses.append(f"the board was throttled ({name})")
    return tuple(clauses)


def unread(before: BoardState, after: BoardState) -> Tuple[str, ...]:
    """What could be read before but not after, so that a change of it is not detected; each a clause."""
    gone = set(before.clocks) - set(after.clocks)
    if any(name.startswith("cpu") for name in after.clocks):
        gone = {name for name in gone if not name.startswith("cpu")}
    clauses = [f"the {name} clock could not be read at the end" for name in sorted(gone)]
    if before.power_mode is not None and after.power_mode is None:
        clauses.append("the power mode could not be read at the end")
    return tuple(clauses)


def _differ(one: Optional[PowerMode], other: Optional[PowerMode]) -> bool:
    if one is None or other is None:
        return False
    pairs = ((one.name, other.name), (one.id, other.id))
    return any(was is not None and now is not None and was != now for was, now in pairs)


def _range(clock: Clock) -> str:
    return f"{clock.min_hz / 1e6:.0f}-{clock.max_hz / 1e6:.0f} MHz"
