"""The events of a timing, in a child process and within the time cap of its protocol."""

from __future__ import annotations

import contextlib
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Callable, Generator, Iterable, Optional, Tuple, TypeVar

from ..machine.child import OverdueError, child, patience_s
from .measurement import Protocol

Event = TypeVar("Event")
Plan = TypeVar("Plan")
_GRACE_S = 10.0


def take_events(
    job: Callable[[Optional[Plan], str], Tuple[Event, Plan]],
    *,
    models: Iterable[Path],
    protocol: Protocol,
    seed: str,
    apart: bool = True,
    limited: bool = True,
    kept: bool = True,
    least: int = 1,
) -> Generator[Tuple[Event, Plan], None, None]:
    """Yields what `job(plan, seed)` returns for each event, where the plan is that of the event before.

    No event begins after the cap, except the first `least`. One that is still running some seconds later, or
    as much later as the longest before took, is stopped: the events before it count.

    Args:
        apart: whether they run in a child process; without it they cannot be stopped.
        limited: whether the memory of that process is, see `Child.run`.
        kept: whether that process is used again by the next timing.

    Raises:
        OverdueError: the first event did not end.
        ModelError: as `Child.run`.
    """
    plan: Optional[Plan] = None
    paths, longest, more = list(models), _GRACE_S, max(600, round(10 * protocol.cap_s))
    what, time_s = (
        " and ".join(dict.fromkeys(path.name for path in paths)),
        protocol.cap_s or patience_s(*paths),
    )
    with child(kept=kept) if apart else contextlib.nullcontext() as process:
        started = perf_counter()
        for index in range(protocol.events):
            begun = perf_counter()
            left = time_s - (begun - started if protocol.cap_s else 0)
            take = partial(job, plan, f"{seed} {index}")
            try:
                if process is None:
                    event, plan = take()
                else:
                    event, plan = process.run(
                        take,
                        what=what,
                        within_s=max(left, 0) + longest + 2 * protocol.event_s * len(paths),
                        cure=f"It may never end. If it is only slow, give it more time: --cap-s {more}.",
                        limited=limited,
                    )
            except OverdueError:
                if not index:
                    raise
                return
            yield event, plan
            longest = max(longest, perf_counter() - begun)
            if index + 1 >= least and 0 < protocol.cap_s <= perf_counter() - started:
                return
