"""Power sensors, read from folders that look like a machine's /sys."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from support.boards import put, unpack

from deadweight.targets.machine.rails import open_sensor


def script(root: Path, path: str, lines: str) -> None:
    put(root, path, f"#!/bin/sh\ncat <<'END'\n{lines}\nEND\nexec sleep 60\n").chmod(0o755)


def test_a_total_rail_of_a_successor_is_the_boards_power(tmp_path: Path) -> None:
    sensor, _ = open_sensor(unpack("agx_thor_jp70", tmp_path))
    assert sensor is not None
    assert (sensor.name, sensor.read()) == ("VIN, by sysfs", 20.986)
    put(tmp_path, "sys/class/hwmon/hwmon4/power1_input", "21500000")
    assert sensor.read() == 21.5


def test_without_a_total_rail_the_parts_are_added_and_none_is_counted_twice(tmp_path: Path) -> None:
    sensor, _ = open_sensor(unpack("agx_orin_jp72_locked", tmp_path))
    assert sensor is not None
    assert sensor.name == "sum of rails, by sysfs"
    assert sensor.read() == pytest.approx(9.8 + 4.9 + 8.0)


def test_a_rail_that_cannot_be_read_any_more_gives_nothing(tmp_path: Path) -> None:
    sensor, _ = open_sensor(unpack("xavier_nx_jp5", tmp_path))
    assert sensor is not None
    for file in tmp_path.glob("sys/**/curr1_input"):
        file.write_text("")
    assert sensor.read() is None


@pytest.mark.parametrize(
    ("line", "watts"),
    [
        ("RAM 1/2MB CPU [2%@729] cpu@45C/45C VDD_IN 3582mW/3582mW/3582mW VDD_SOC 1127mW/1127mW", 3.582),
        ("RAM 2387/7774MB (lfb 2x4MB) APE 150 AO@31C VDD_IN 3528/3569 VDD_SOC 1107/1115", 3.528),
        ("cpu@50C VDD_GPU_SOC 2000mW/2mW VDD_CPU_CV 400mW/4mW NC 0mW/0mW VDDQ_VDD2_1V8AO 301mW/301mW", 2.4),
    ],
)
def test_tegrastats_is_read_where_there_is_no_rail(tmp_path: Path, line: str, watts: float) -> None:
    put(tmp_path, "etc/nv_tegra_release", "# R36 (release), REVISION: 4.4")
    script(tmp_path, "usr/bin/tegrastats", line)
    sensor, why_not = open_sensor(tmp_path)
    assert sensor is not None, why_not
    assert sensor.name == "tegrastats"
    assert sensor.read() == pytest.approx(watts)
    sensor.close()
    assert sensor.read() is None


def test_a_board_without_rails_says_so(tmp_path: Path) -> None:
    put(tmp_path, "etc/nv_tegra_release", "# R36 (release), REVISION: 4.4")
    script(tmp_path, "usr/bin/tegrastats", "RAM 1/2MB")
    begun = time.monotonic()
    assert open_sensor(tmp_path) == (None, "the board has no power rails that can be read: try it as root")
    assert time.monotonic() - begun < 30


def test_a_card_is_read_by_nvidia_smi(tmp_path: Path) -> None:
    assert open_sensor(tmp_path, processor="gpu")[1] == "nvidia-smi gives no power of this card"
    script(tmp_path, "usr/bin/nvidia-smi", "91.25")
    sensor, _ = open_sensor(tmp_path, processor="gpu")
    assert sensor is not None
    assert sensor.read() == 91.25
    sensor.close()


def test_rapl_counts_joules_of_all_packages_beyond_its_range(tmp_path: Path) -> None:
    for package, energy in ((0, 900_000), (1, 5_000_000)):
        zone = f"sys/class/powercap/intel-rapl:{package}"
        put(tmp_path, f"{zone}/name", f"package-{package}")
        put(tmp_path, f"{zone}/max_energy_range_uj", "1000000")
        put(tmp_path, f"{zone}/energy_uj", str(energy))
    put(tmp_path, "sys/class/powercap/intel-rapl:0:0/name", "core")
    sensor, _ = open_sensor(tmp_path)
    assert sensor is not None
    assert sensor.counts
    before = sensor.read()
    put(tmp_path, "sys/class/powercap/intel-rapl:0/energy_uj", "100000")  # it began again
    put(tmp_path, "sys/class/powercap/intel-rapl:1/energy_uj", "5500000")
    after = sensor.read()
    assert before is not None
    assert after is not None
    assert after - before == pytest.approx(0.2 + 0.5)


def test_rapl_that_cannot_be_read_names_the_cure(tmp_path: Path) -> None:
    put(tmp_path, "sys/class/powercap/intel-rapl:0/name", "package-0")
    sensor, why_not = open_sensor(tmp_path)
    assert sensor is None
    assert (
        why_not == f"RAPL cannot be read: sudo chmod a+r {tmp_path}/sys/class/powercap/intel-rapl:0/energy_uj"
    )
    assert open_sensor(tmp_path / "other") == (None, "this machine has no power sensor (RAPL)")
