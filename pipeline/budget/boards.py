"""Several boards of one kind make one table: how unlike they are (A/A), and the timings shared out.

Each part of the timings has the whole network beside it, by which a board's times become those of the first.
That holds as far as every layer is slower by the same factor on the other board: the same files on all boards
say so beforehand.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TypeVar

import numpy as np
from scipy import stats

from ...targets.errors import MeasurementError, RecipeError, TargetError
from ...targets.timing.measurement import Measurement
from .table import DENSE, BoardRatio
from .timer import Conditions, Together, check_valid, seconds_of

Measured = Mapping[str, Measurement]
Part = TypeVar("Part")
ROUNDS, FILES = 5, 8
"""Of the A/A: how often each board times the files, in turn; and files of segments beside the network."""
_SURE, _LEAST = 0.99, 0.02
"""Boards are unlike where a file is off with this confidence, of all files together, and by this share."""


def ratios_of(clocks: Mapping[str, Together], timed: Callable[[Together], Measured]) -> list[BoardRatio]:
    """Each board against the first, by the same files on all of them.

    Args:
        timed: times the files of the A/A by a clock, the whole network too.

    Raises:
        RecipeError: two boards are not in the same state: runtime, precision, clocks, power mode.
        MeasurementError: layers are slower by unlike factors, by more than the noise explains.
    """
    rounds = [[timed(clock) for clock in clocks.values()] for _ in range(ROUNDS)]
    for measured in (one for each in rounds for one in each):
        check_valid(measured)
    first, *others = clocks
    states = [Conditions.of(measured[DENSE]) for measured in rounds[0]]
    for name, state in zip(others, states[1:], strict=True):
        if differences := states[0].differences(state, f"on {first}", f"on {name}"):
            raise RecipeError(
                f"{name} is not as {first}: {'; '.join(differences)}.",
                "Set both boards alike (power mode, clocks, JetPack), or make a table on each.",
            )
    keys = [DENSE, *(key for key in rounds[0][0] if key != DENSE)]
    logs = np.log([[[seconds_of(one[key]) for key in keys] for one in each] for each in rounds])
    return [_ratio(name, first, logs[:, at] - logs[:, 0]) for at, name in enumerate(others, start=1)]


def _ratio(name: str, first: str, against: np.ndarray) -> BoardRatio:
    """A board's times against the first's, from float64[rounds, files] of log ratios, the network's first."""
    layers = against[:, 1:] - against[:, :1]
    apart, free = layers.mean(0), layers.size - layers.shape[1]
    deviation = float(np.sqrt(((layers - apart) ** 2).sum() / free))
    noise = stats.t.ppf(1 - (1 - _SURE) / 2 / layers.shape[1], free) * deviation / len(layers) ** 0.5
    found = BoardRatio(name, float(np.exp(against[:, 0].mean())), float(np.abs(apart).max()), float(noise))
    if found.apart > max(found.noise, _LEAST):
        raise MeasurementError(
            f"{name} is not as {first}: the whole network takes {found.ratio:.3f} times as long, and single "
            f"layers are off that by up to {found.apart:.1%}, where the noise explains {found.noise:.1%}.",
            "Look for another load, heat or memory on one of them; or make a table on each.",
        )
    return found


def shared(
    parts: Sequence[Part],
    clocks: dict[str, Together],
    timed: Callable[[Together, Part], Measured],
    lost: Callable[[str], None],
) -> Iterator[tuple[str, Measured]]:
    """Parts timed on all boards at once, each by the board that is free next; with the board's name.

    A board that cannot be reached any more leaves `clocks`, and its part goes to another.

    Raises:
        TargetError: the last board cannot be reached any more.
    """
    left, free, running = deque(parts), [*clocks], dict[Future[Measured], tuple[str, Part]]()
    with ThreadPoolExecutor(len(clocks)) as pool:
        while left or running:
            while left and free:
                name, part = free.pop(0), left.popleft()
                running[pool.submit(timed, clocks[name], part)] = name, part
            for done in wait(running, return_when=FIRST_COMPLETED).done:
                name, part = running.pop(done)
                try:
                    measured = done.result()
                except TargetError as error:
                    if len(clocks) == 1:
                        raise
                    del clocks[name]
                    left.append(part)
                    lost(f"{name} times no more, the others go on: {error.what}")
                    continue
                free.append(name)
                yield name, measured
