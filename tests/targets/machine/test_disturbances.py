"""What voids times that were taken on a board, and what is only not known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from support.boards import unpack

from deadweight.targets.machine.jetson import BoardState, read_state
from deadweight.targets.machine.nvidia_tools import Clock, PowerMode
from deadweight.targets.machine.probe import disturbances, unread

FLOATING = BoardState(PowerMode("25W", 1), {"gpu": Clock(306_000_000, 918_000_000, 306_000_000)})
LOCKED = BoardState(PowerMode("MAXN", 0), {"gpu": Clock(918_000_000, 918_000_000, 918_000_000)})

CORES = {f"cpu{at}": Clock(729_600_000, 1_344_000_000, 960_000_000) for at in range(2)}


def slower(state: BoardState) -> BoardState:
    return replace(state, clocks={"gpu": replace(state.clocks["gpu"], now_hz=612_000_000)})


CASES: list[tuple[BoardState, Callable[[BoardState], BoardState], str]] = [
    (
        FLOATING,
        lambda state: replace(state, power_mode=PowerMode("15W", 0)),
        "the power mode went from 25W (mode 1) to 15W (mode 0)",
    ),
    (
        FLOATING,
        lambda state: replace(state, clocks={"gpu": Clock(306_000_000, 612_000_000, 306_000_000)}),
        "the limits of the gpu clock went from 306-918 MHz to 306-612 MHz",
    ),
    (LOCKED, slower, "the gpu clock ran at 612 MHz though it is locked to 918 MHz"),
    (
        replace(LOCKED, clocks=CORES),
        lambda state: replace(state, clocks={"cpu0": CORES["cpu0"]}),
        "cpu1 was switched off",
    ),
    (
        replace(LOCKED, counters={"over-current": 2}),
        lambda state: replace(state, counters={"over-current": 5}),
        "3 over-current events slowed the board",
    ),
    (
        LOCKED,
        lambda state: replace(state, throttling=("gpu-throttle-alert",)),
        "the board was throttled (gpu-throttle-alert)",
    ),
]


@pytest.mark.parametrize(("before", "change", "message"), CASES)
def test_what_disturbs_a_board_is_reported(
    before: BoardState, change: Callable[[BoardState], BoardState], message: str
) -> None:
    assert disturbances(before, change(before)) == (message,)


def test_a_clock_that_floats_within_its_limits_is_no_disturbance() -> None:
    assert disturbances(FLOATING, slower(FLOATING)) == ()


def test_a_mode_told_without_its_number_is_the_same_mode() -> None:
    assert disturbances(LOCKED, replace(LOCKED, power_mode=PowerMode("MAXN", None))) == ()


def test_a_clock_that_no_one_tells_at_the_end_is_not_known_and_voids_nothing() -> None:
    gone = replace(LOCKED, clocks={}, power_mode=None)
    assert disturbances(LOCKED, gone) == ()
    assert unread(LOCKED, gone) == (
        "the gpu clock could not be read at the end",
        "the power mode could not be read at the end",
    )
    assert unread(LOCKED, LOCKED) == ()


def test_a_core_that_is_switched_off_is_known_where_the_others_are_read() -> None:
    both, one = replace(LOCKED, clocks=CORES), replace(LOCKED, clocks={"cpu0": CORES["cpu0"]})
    assert unread(both, one) == ()
    none = replace(LOCKED, clocks={})
    assert disturbances(both, none) == ()
    assert unread(both, none) == tuple(f"the cpu{at} clock could not be read at the end" for at in range(2))


@pytest.mark.parametrize("name", ["orin_nx_jp6", "agx_orin_jp72_locked"])
def test_a_tool_that_gives_no_answer_at_the_end_does_not_void_a_run(name: str, tmp_path: Path) -> None:
    # Only jetson_clocks prints the memory clock of both boards.
    root = unpack(name, tmp_path)
    before = read_state(root, tools=True)
    (root / "usr/bin/jetson_clocks").write_text("#!/bin/sh\nexit 1\n")
    after = read_state(root, tools=True)
    assert "emc" in before.clocks
    assert disturbances(before, after) == ()
    assert "the emc clock could not be read at the end" in unread(before, after)
