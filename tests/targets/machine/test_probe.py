import json
import platform
from dataclasses import replace
from pathlib import Path

import pytest
from support.boards import BOARDS, unpack

from deadweight.targets.machine.probe import (
    Snapshot,
    changes,
    conditions,
    cpu_name,
    evidence,
    memory_bytes,
    not_known,
    snapshot,
    versions,
    voided,
)

QUIET = Snapshot(10.0, 5.0, 100, 7, 3, 1.0, 0, (1_000_000_000, 1_000_000_000))
LATER = replace(QUIET, wall_s=11.0, cpu_s=5.99, minor_faults=120)


def files(root: Path, **contents: str) -> Path:
    for name, content in contents.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


def test_this_machine_tells_its_conditions_as_plain_json() -> None:
    result = conditions()
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["machine"]["cores"] >= 1
    assert result["machine"]["memory_bytes"] > 1e8
    assert result["software"]["python"] == platform.python_version()
    assert {"numpy", "onnxruntime"} <= set(result["software"])


def test_the_machine_stays_the_same_machine() -> None:
    assert conditions()["machine"] == conditions()["machine"]


def test_a_board_is_named_by_its_device_tree(tmp_path: Path) -> None:
    root = files(
        tmp_path,
        proc__cpuinfo="processor : 0\nCPU implementer : 0x41\n",
        **{
            "proc__device-tree__model": "NVIDIA Jetson Orin Nano Developer Kit\0",
            "proc__meminfo": "MemTotal: 7665664 kB\n",
        },
    )
    assert cpu_name(root) == "NVIDIA Jetson Orin Nano Developer Kit"
    assert memory_bytes(root) == 7665664 * 1024


def test_a_machine_that_tells_nothing_is_no_error(tmp_path: Path) -> None:
    result = conditions(tmp_path)
    assert result["machine"]["memory_bytes"] is None
    assert result["state"]["governors"] == []
    assert snapshot(tmp_path).clocks_hz == ()


def test_governors_clocks_and_throttling_are_read_where_they_are(tmp_path: Path) -> None:
    core = "sys__devices__system__cpu__cpu"
    root = files(
        tmp_path,
        **{
            f"{core}0__cpufreq__scaling_governor": "schedutil\n",
            f"{core}1__cpufreq__scaling_governor": "schedutil\n",
            f"{core}0__cpufreq__scaling_cur_freq": "1510400\n",
            f"{core}1__cpufreq__scaling_cur_freq": "1510400\n",
            f"{core}0__thermal_throttle__core_throttle_count": "2\n",
            "sys__class__hwmon__hwmon3__oc1_event_cnt": "5\n",
        },
    )
    state = conditions(root)["state"]
    assert state["governors"] == ["schedutil"]
    assert state["clocks_hz"] == [1_510_400_000, 1_510_400_000]
    assert state["throttled"] == 7


def test_what_the_hardware_runs_at_counts_more_than_what_was_asked_of_it(tmp_path: Path) -> None:
    folder = "sys__devices__system__cpu__cpu0__cpufreq__"
    root = files(tmp_path, **{f"{folder}scaling_cur_freq": "2601000", f"{folder}cpuinfo_cur_freq": "649000"})
    assert snapshot(root).clocks_hz == (649_000_000,)


def test_a_quiet_second_has_no_marks() -> None:
    assert changes(QUIET, LATER, runs=1000) == ()


@pytest.mark.parametrize(
    ("happened", "message"),
    [
        ({"throttled": 2}, "throttled 2 times"),
        ({"clocks_hz": (1_000_000_000, 700_000_000)}, "a core's clock went from 1000 to 700 MHz"),
        ({"swapped_pages": 10}, "7 pages were swapped"),
        ({"major_faults": 9}, "2 pages were read from disk"),
        ({"minor_faults": 100_100}, "100 page faults per run"),
        ({"stolen_s": 1.5}, "the host took 50 % of a core"),
        ({"cpu_s": 5.5}, "other programs left 50 % of a core"),
    ],
)
def test_what_disturbs_a_timing_is_reported(happened: dict[str, object], message: str) -> None:
    assert changes(QUIET, replace(LATER, **happened), runs=1000) == (message,)  # type: ignore[arg-type]


def test_the_share_of_a_core_says_nothing_of_more_threads() -> None:
    assert changes(QUIET, replace(LATER, cpu_s=5.5), runs=1000, threads=2) == ()


def test_reading_a_snapshot_takes_little_time() -> None:
    before = snapshot()
    assert snapshot().wall_s - before.wall_s < 0.05


def test_this_processor_is_not_emulated() -> None:
    assert evidence() == "measured"


def test_a_foreign_processor_is_reported_by_the_handler_that_runs_it(tmp_path: Path) -> None:
    handler = f"proc__sys__fs__binfmt_misc__qemu-{platform.machine()}"
    assert evidence(files(tmp_path, **{handler: "enabled\n"})) == "emulated"


def test_a_processor_made_of_software_is_reported_by_its_name(tmp_path: Path) -> None:
    root = files(tmp_path, proc__cpuinfo="model name : QEMU Virtual CPU version 2.5+\n")
    assert evidence(root) == "emulated"


def test_a_virtual_machine_that_shows_qemus_processor_is_measured_on_where_kvm_runs_it(
    tmp_path: Path,
) -> None:
    files(tmp_path, proc__cpuinfo="vendor_id : GenuineIntel\nmodel name : QEMU Virtual CPU version 2.5+\n")
    clocks = "sys__devices__system__clocksource__clocksource0__available_clocksource"
    files(tmp_path, **{clocks: "tsc hpet acpi_pm"})
    assert evidence(tmp_path) == "emulated"
    files(tmp_path, **{clocks: "kvm-clock tsc hpet acpi_pm"})
    assert evidence(tmp_path) == "measured"
    files(tmp_path, proc__cpuinfo="vendor_id : AuthenticAMD\nmodel name : QEMU TCG CPU version 2.5+\n")
    assert evidence(tmp_path) == "emulated"


def test_versions_are_reported_of_what_is_installed_only() -> None:
    assert set(versions("numpy", "no-such-distribution")) == {"numpy"}


@pytest.mark.parametrize("name", BOARDS)
def test_a_board_tells_its_conditions_as_plain_json(name: str, tmp_path: Path) -> None:
    result = conditions(unpack(name, tmp_path))
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["machine"]["board"]["unified_memory"]
    assert set(result["state"]["board"]) >= {"power_mode", "clocks", "counters", "rails_w", "power"}


def test_the_monitors_line_is_kept_as_it_is_printed(tmp_path: Path) -> None:
    root = unpack("orin_nano_super_jp72", tmp_path)
    monitor = root / "usr/bin/tegrastats"
    monitor.write_text(monitor.read_text().replace("APE 200", "WARP 9.9x"))
    assert "WARP 9.9x" in conditions(root)["state"]["board"]["tegrastats"]


def timed_on(root: Path, **changed: str) -> dict[str, object]:
    """Conditions of a measurement on that board, in the middle of which files changed."""
    result = conditions(root)
    files(root, **changed)
    return {**result, "state_after": conditions(root)["state"]}


def test_a_board_that_stays_as_it_is_voids_nothing(tmp_path: Path) -> None:
    assert voided(timed_on(unpack("orin_nano_super_jp72", tmp_path))) == ()


def test_clocks_that_were_not_read_at_the_end_are_reported_and_void_nothing(tmp_path: Path) -> None:
    root = unpack("orin_nx_jp6", tmp_path)
    result = timed_on(root, usr__bin__jetson_clocks="#!/bin/sh\nexit 1\n")
    assert voided(result) == ()
    assert "the emc clock could not be read at the end" in not_known(result)
    assert not_known(conditions()) == ()


def test_a_power_mode_changed_in_mid_run_voids_it(tmp_path: Path) -> None:
    result = timed_on(unpack("orin_nano_super_jp72", tmp_path), var__lib__nvpmodel__status="pmode:0002")
    assert voided(result) == ("the power mode went from 25W (mode 1) to MAXN_SUPER (mode 2)",)


def test_over_current_and_throttling_void_a_run(tmp_path: Path) -> None:
    result = timed_on(
        unpack("orin_nano_super_jp72", tmp_path),
        sys__class__hwmon__hwmon1__oc3_event_cnt="4",
        sys__class__thermal__cooling_device4__type="cpu-throttle-alert",
        sys__class__thermal__cooling_device4__cur_state="1",
    )
    assert voided(result) == (
        "4 over-current events slowed the board",
        "the board was throttled (cpu-throttle-alert)",
    )


def test_a_mode_that_changed_and_changed_back_is_reported_by_the_marks(tmp_path: Path) -> None:
    root = unpack("orin_nano_super_jp72", tmp_path)
    facts, before = timed_on(root), snapshot(root)
    files(root, var__lib__nvpmodel__status="pmode:0000")
    marks = changes(before, snapshot(root), runs=1000)
    assert "board: the power mode went from 25W (mode 1) to 15W (mode 0)" in marks
    assert voided(facts, marks) == ("the power mode went from 25W (mode 1) to 15W (mode 0)",)


def test_a_machine_that_is_no_board_is_marked_but_never_void() -> None:
    result = conditions()
    assert voided({**result, "state_after": result["state"]}, ("throttled 3 times",)) == ()
