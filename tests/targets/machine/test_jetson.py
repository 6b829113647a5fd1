"""Whole fake boards, JetPack 4 to 7: what they are and how they are doing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.boards import BOARDS, put, unpack

from deadweight.targets.errors import TargetError
from deadweight.targets.machine.jetson import (
    BoardState,
    cooling,
    is_jetson,
    read_board,
    read_state,
    tegrastats_line,
    total_power_w,
)
from deadweight.targets.machine.nvidia_tools import PowerMode
from deadweight.targets.machine.probe import disturbances
from deadweight.targets.plain import from_plain, plain

# L4T, JetPack, chip, compute capability, TensorRT, CUDA
FACTS = {
    "tx2_jp4": ("32.7.2", "4.6.2", "tegra186", "6.2", "8.2.1", "10.2.300"),
    "xavier_nx_jp5": ("35.4.1", "5.1.2", "tegra194", "7.2", "8.5.2", "11.4.19"),
    "agx_orin_jp5": ("35.4.1", "5.1.2", "tegra234", "8.7", "8.5.2", "11.4.315"),
    "orin_nx_jp6": ("36.4.4", "6.2.1", "tegra234", "8.7", "10.3.0", "12.6.11"),
    "orin_nano_jp6_new": ("36.9.9", "6.x", "tegra234", "8.7", None, None),
    "orin_nano_super_jp72": ("39.2.1", "7.2.1", "tegra234", "8.7", "10.16.2", "13.2.1"),
    "agx_orin_jp72_locked": ("39.2.0", "7.2", "tegra234", "8.7", "10.16.2", "13.2.1"),
    "agx_thor_jp70": ("38.2.0", "7.0", "tegra264", "11.0", "10.13.3", "13.0.0"),
    "agx_thor_jp71": ("38.4.0", "7.1", "tegra264", "11.0", "10.13.3", "13.0.0"),
    "drive_orin_6010": (None, "DriveOS 6.0.10.0", "tegra234", "8.7", "8.6.13", "11.4.25"),
    "drive_thor_703": (None, "DriveOS 7.0.3.0", "tegra264", "10.1", "10.10.10", "12.8.11"),
}
# Power mode, GPU clock now in MHz, EMC clock now in MHz, rails and their power in watts
STATES: dict[str, tuple[PowerMode | None, int | None, int | None, dict[str, float]]] = {
    "tx2_jp4": (PowerMode("MAXN", 0), 115, None, {"VDD_SYS_GPU": 0.229, "VDD_IN": 3.024}),
    "xavier_nx_jp5": (PowerMode("MODE_15W_6CORE", 2), 510, None, {"VDD_IN": 5.07904}),
    "agx_orin_jp5": (PowerMode("MODE_50W", None), None, None, {}),
    "orin_nx_jp6": (PowerMode("MAXN_SUPER", 2), 306, 2133, {}),
    "orin_nano_jp6_new": (PowerMode("25W", 1), None, None, {}),
    "orin_nano_super_jp72": (PowerMode("25W", 1), 306, 666, {}),
    "agx_orin_jp72_locked": (
        PowerMode("MAXN", 0),
        1300,
        3199,
        {"VDD_GPU_SOC": 9.8, "VDD_CPU_CV": 4.9, "VIN_SYS_5V0": 8.0, "VDDQ_VDD2_1V8AO": 0.9},
    ),
    "agx_thor_jp70": (
        PowerMode("120W", 1),
        0,
        665,
        {"VDD_GPU": 0.39728, "VDD_CPU_SOC_MSS": 5.9568, "VIN": 20.986},
    ),
    "agx_thor_jp71": (
        PowerMode("120W", 1),
        0,
        None,
        {"VDD_GPU": 0.39728, "VDD_CPU_SOC_MSS": 5.9568, "VIN": 20.986},
    ),
    "drive_orin_6010": (None, None, None, {}),
    "drive_thor_703": (None, None, None, {}),
}


def test_all_boards_have_their_facts() -> None:
    assert sorted(FACTS) == sorted(STATES) == sorted(BOARDS)


@pytest.mark.parametrize("name", BOARDS)
def test_a_board_is_known_for_what_it_is(name: str, tmp_path: Path) -> None:
    root = unpack(name, tmp_path)
    assert is_jetson(root)
    board = read_board(root)
    result = (board.l4t, board.jetpack, board.soc, board.compute_capability, board.tensorrt, board.cuda)
    assert result == FACTS[name]
    assert board.unified_memory
    assert bool(board.warnings) == (name == "orin_nano_jp6_new")


@pytest.mark.parametrize("name", BOARDS)
def test_a_board_tells_how_it_is_doing(name: str, tmp_path: Path) -> None:
    state = read_state(unpack(name, tmp_path), tools=True)
    mode, gpu, emc, rails = STATES[name]
    assert state.power_mode == mode
    for clock, mhz in (("gpu", gpu), ("emc", emc)):
        result = state.clocks.get(clock)
        assert (None if result is None else round(result.now_hz / 1e6)) == mhz
    assert state.rails_w == pytest.approx(rails)


@pytest.mark.parametrize("name", BOARDS)
def test_a_state_survives_json_and_is_undisturbed_by_itself(name: str, tmp_path: Path) -> None:
    state = read_state(unpack(name, tmp_path), tools=True)
    read = json.loads(json.dumps(plain(state)))
    assert from_plain(BoardState, read, "state", error=TargetError, cure="") == state
    if not state.throttling:
        assert disturbances(state, state) == ()


def test_this_machine_is_no_jetson() -> None:
    assert not is_jetson(Path("/"))


def test_a_sensor_of_a_unit_that_is_off_is_left_out(tmp_path: Path) -> None:
    assert "gpu-thermal" not in read_state(unpack("orin_nx_jp6", tmp_path)).temperatures_c
    assert read_state(tmp_path).temperatures_c["tj-thermal"] == 52.343


def test_events_are_counted_by_what_they_mean_and_a_fan_is_no_throttle(tmp_path: Path) -> None:
    state = read_state(unpack("xavier_nx_jp5", tmp_path))
    assert state.counters == {"under-voltage": 3, "average over-current": 0, "over-current": 1}
    assert state.throttling == ("gpu-throttle-alert",)


def test_a_hot_surface_a_fan_and_a_user_s_device_lower_no_clock(tmp_path: Path) -> None:
    root = unpack("orin_nx_jp6", tmp_path)
    assert cooling(root) == ("pwm-fan", "hot-surface-alert", "user-cdev")
    assert read_state(root).throttling == ()
    assert disturbances(read_state(root), read_state(root)) == ()


@pytest.mark.parametrize(
    "device", ["cpufreq-cpu4", "devfreq-17000000.gpu", "cv0-throttle-alert", "thermal-cpufreq-0"]
)
def test_every_device_that_lowers_a_clock_voids(device: str, tmp_path: Path) -> None:
    root = unpack("orin_nx_jp6", tmp_path)
    put(root, "sys/class/thermal/cooling_device20/type", device + "\n")
    put(root, "sys/class/thermal/cooling_device20/cur_state", "1\n")
    assert disturbances(read_state(root), read_state(root)) == (f"the board was throttled ({device})",)


def test_the_clock_limit_of_a_warm_thor_is_a_throttle(tmp_path: Path) -> None:
    assert read_state(unpack("agx_thor_jp71", tmp_path)).throttling == ("devfreq-gpu-gpc-0",)


def test_a_locked_board_is_reported_from_a_floating_one(tmp_path: Path) -> None:
    locked = read_state(unpack("agx_orin_jp72_locked", tmp_path / "a"), tools=True)
    assert all(clock.locked for name, clock in locked.clocks.items() if name[:3] in ("cpu", "gpu", "emc"))
    floating = read_state(unpack("orin_nano_super_jp72", tmp_path / "b"), tools=True)
    assert not any(clock.locked for clock in floating.clocks.values())


def test_power_is_that_of_the_rail_that_supplies_the_board_else_a_sum_that_says_so() -> None:
    assert total_power_w({"VIN": 16.802, "VDD_GPU": 3.0}) == (16.802, "VIN")
    assert total_power_w({"VDD_GPU": 3.0, "VDDQ_VDD2_1V8AO": 1.0}) == (3.0, "sum of rails")
    assert total_power_w({}) is None


def test_the_monitor_is_asked_for_one_line(tmp_path: Path) -> None:
    result = tegrastats_line(unpack("orin_nano_super_jp72", tmp_path))
    assert "RAM 2850/7486MB" in result
    assert "\n" not in result
    assert tegrastats_line(unpack("orin_nano_jp6_new", tmp_path / "b")) == ""


def test_a_monitor_that_prints_for_ever_is_ended(tmp_path: Path) -> None:
    program = put(tmp_path, "usr/bin/tegrastats", "#!/bin/sh\nwhile :; do echo RAM 1/2MB; sleep 0.05; done\n")
    program.chmod(0o755)
    assert tegrastats_line(tmp_path) == "RAM 1/2MB"


def test_a_monitor_that_says_nothing_is_given_up(tmp_path: Path) -> None:
    put(tmp_path, "usr/bin/tegrastats", "#!/bin/sh\nexec sleep 60\n").chmod(0o755)
    assert tegrastats_line(tmp_path, timeout_s=0.3) == ""
