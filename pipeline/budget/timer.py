"""What times files together, interleaved: this machine or a board; and what a time holds for.

The budget's stages and the table share it, so that what is chosen by a table is timed as the table was.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

from ...targets.errors import MeasurementError, RecipeError, TargetError
from ...targets.remote.board import Timed, time_on
from ...targets.remote.on_board import HowThere, ready_on
from ...targets.remote.ssh import connected
from ...targets.runtimes.runtime import runtime_named
from ...targets.target import Target
from ...targets.timing.clock import time_together
from ...targets.timing.measurement import CALM, Measurement, Protocol
from ...targets.timing.memory import measure_memory

Together = Callable[[Mapping[str, Path], Protocol], Mapping[str, Measurement]]
QUICK = Protocol(events=3, event_s=0.01, block_s=0.001, settle_s=0.001)


@dataclass(frozen=True)
class Conditions:
    """What times hold for; those of other conditions are not comparable."""

    runtime: str
    version: str
    precision: str
    threads: int
    processor: str
    power_mode: str
    clocks: tuple[str, ...]
    evidence: str

    @classmethod
    def of(cls, one: Measurement) -> Conditions:
        """The conditions of a measurement; a board's clocks by their limits, a machine's by its governor."""
        machine, state = one.conditions["machine"], one.conditions["state"]
        software, board = one.conditions["software"], state.get("board") or {}
        name = one.protocol.runtime.partition("+")[0]
        mode = board.get("power_mode") or {}
        limits = [f"{key} {at['min_hz']} to {at['max_hz']}" for key, at in board.get("clocks", {}).items()]
        return cls(
            one.protocol.runtime,
            str(one.conditions.get("engine", {}).get("version") or software.get(_library(name), "")),
            one.protocol.precision,
            one.protocol.threads,
            str(machine.get("board", {}).get("model") or machine["cpu"]),
            " ".join(str(value) for value in mode.values() if value is not None),
            tuple(limits) if limits else tuple(map(str, state.get("governors", ()))),
            one.evidence,
        )

    def differences(self, other: Conditions, mine: str = "there", its: str = "here") -> list[str]:
        """Each difference, as "the power mode is A there and B here"."""
        pairs = [(one.name, getattr(self, one.name), getattr(other, one.name)) for one in fields(self)]
        return [
            f"the {name.replace('_', ' ')} is {one or 'unknown'} {mine} and {another or 'unknown'} {its}"
            for name, one, another in pairs
            if one != another
        ]


@dataclass(frozen=True)
class Timer:
    """What times files together, and the resident memory of one; None where that is not measured."""

    together: Together
    memory_bytes: Callable[[Path], int | None]


@contextlib.contextmanager
def timer(on: str, how: HowThere, target: Target) -> Iterator[Timer]:
    """The clock of the board `on`, or without one of the target's runtime here.

    Raises:
        RecipeError: no board is named, and this machine does not run what the target runs.
    """
    if on:
        with connected(on) as board:

            def timed(files: Mapping[str, Path], protocol: Protocol, *, memory: bool = False) -> Timed:
                ready = ready_on(board, files, how)
                return time_on(board, ready, protocol=protocol, memory=memory and not ready.runtime.builds)

            def memory_bytes(path: Path) -> int | None:
                found = timed({"one": path}, replace(QUICK, events=1), memory=True).memory
                return found["one"].resident_bytes if found else None

            yield Timer(lambda files, protocol: timed(files, protocol).measurements, memory_bytes)
    else:
        check_clock(on, target, "A time")
        yield Timer(
            lambda files, protocol: time_together(files, protocol=protocol),
            lambda path: measure_memory(path, runtime=target.here).resident_bytes,
        )


def check_clock(on: str, target: Target, asked: str) -> None:
    """Refuses a goal in time where no board is named and this machine does not run what the target runs."""
    if target.runtime.builds and not on:
        raise RecipeError(
            f"{asked} is asked for on the {target.title}, and this machine is not one.",
            'Name the board: on = "USER@HOST" in the stage, or --on USER@HOST.',
        )


def check_valid(measured: Mapping[str, Measurement]) -> None:
    """Refuses times that the board's state voids; a MeasurementError says what happened."""
    if void := next(iter(measured.values())).void:
        raise MeasurementError(
            f"The times are invalid: {'; '.join(void)}.",
            f"What was measured before is kept: {CALM}, by the same command.",
        )


def seconds_of(one: Measurement) -> float:
    """Seconds of one run by the clock that other processes disturb least: the fastest block of each event."""
    return float(np.median(one.block_s("wall" if one.cpu_ns is None else "cpu").min(axis=1)))


def _library(runtime: str) -> str:
    with contextlib.suppress(TargetError):  # a user's own, of another process
        return runtime_named(runtime).library
    return runtime
