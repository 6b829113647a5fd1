"""What happened to a board between two moments, and what is not known of it.

Times that were taken in between are void where something did. A tool that gives no answer in time is no such
thing: `jetson_clocks --show` takes seconds on a busy board, and void would be a run that nothing disturbed.
"""

from __future__ import annotations

from typing import List, Optional, Tuple

from .jetson import BoardState
from .nvidia_tools import Clock, PowerMode


def disturbances(before: BoardState, after: BoardState) -> Tuple[str, ...]:
    """What happened to the board in between that makes times taken meanwhile void, each a clause.

    A clock that floats is no disturbance, its limits are part of the power mode; one that was locked and
    runs at something else is. Of all clocks only a CPU's goes away, with the core that is switched off, and
    the other cores tell theirs then: what else is gone could not be read, see `unread`.
    """
    found: List[str] = []
    if _differ(before.power_mode, after.power_mode):
        found.append(f"the power mode went from {before.power_mode} to {after.power_mode}")
    for name in sorted(set(before.clocks) & set(after.clocks)):
        was, now = before.clocks[name], after.clocks[name]
        if (was.min_hz, was.max_hz) != (now.min_hz, now.max_hz):
            found.append(f"the limits of the {name} clock went from {_range(was)} to {_range(now)}")
        elif now.locked and now.now_hz and abs(now.now_hz - now.max_hz) > 0.01 * now.max_hz:
            found.append(
                f"the {name} clock ran at {now.now_hz / 1e6:.0f} MHz though it is locked to "
                f"{now.max_hz / 1e6:.0f} MHz"
            )
    if any(name.startswith("cpu") for name in after.clocks):
        gone = sorted(set(before.clocks) - set(after.clocks))
        found += [f"{name} was switched off" for name in gone if name.startswith("cpu")]
    for name, count in after.counters.items():
        if count > before.counters.get(name, count):
            found.append(f"{count - before.counters[name]} {name} events slowed the board")
    for name in sorted(set(before.throttling) | set(after.throttling)):
        found.append(f"the board was throttled ({name})")
    return tuple(found)


def unread(before: BoardState, after: BoardState) -> Tuple[str, ...]:
    """What could be read before and not after, so that a change of it would not be seen; each a clause."""
    gone = set(before.clocks) - set(after.clocks)
    if any(name.startswith("cpu") for name in after.clocks):
        gone = {name for name in gone if not name.startswith("cpu")}
    found = [f"the {name} clock could not be read at the end" for name in sorted(gone)]
    if before.power_mode is not None and after.power_mode is None:
        found.append("the power mode could not be read at the end")
    return tuple(found)


def _differ(one: Optional[PowerMode], other: Optional[PowerMode]) -> bool:
    if one is None or other is None:
        return False
    pairs = ((one.name, other.name), (one.id, other.id))
    return any(was is not None and now is not None and was != now for was, now in pairs)


def _range(clock: Clock) -> str:
    return f"{clock.min_hz / 1e6:.0f}-{clock.max_hz / 1e6:.0f} MHz"
