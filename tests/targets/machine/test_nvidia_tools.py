"""What NVIDIA's files and tools print, read."""

from __future__ import annotations

import pytest

from deadweight.targets.machine.nvidia_tools import (
    GPUS,
    JETPACKS,
    Clock,
    PowerMode,
    jetpack_of,
    l4t_package,
    l4t_release,
    mode_names,
    power_mode,
    shown_clocks,
    soc_of,
    stored_mode,
)


@pytest.mark.parametrize(
    ("line", "l4t", "jetpack"),
    [
        ("# R32 (release), REVISION: 7.2, GCID: 30192233, BOARD: t186ref, EABI: aarch64", "32.7.2", "4.6.2"),
        ("# R35 (release), REVISION: 4.1, GCID: 33958178, BOARD: t186ref", "35.4.1", "5.1.2"),
        ("# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic", "36.4.3", "6.2"),
        ("# R36 (release), REVISION: 4.4, GCID: 41062509, BOARD: generic", "36.4.4", "6.2.1"),
        ("# R38 (release), REVISION: 2.0, GCID: 41844464", "38.2.0", "7.0"),
        ("# R38 (release), REVISION: 4.0, GCID: 43443517", "38.4.0", "7.1"),
        ("# R39 (release), REVISION: 2.0, DATE: Mon Jun  1 09:28:48 PM UTC 2026", "39.2.0", "7.2"),
        ("# R39 (release), REVISION: 2.1, DATE: Fri Aug  7 05:54:22 AM UTC 2026", "39.2.1", "7.2.1"),
    ],
)
def test_a_release_has_its_jetpack(line: str, l4t: str, jetpack: str) -> None:
    assert l4t_release(line) == l4t
    assert jetpack_of(l4t) == (jetpack, "")


def test_an_unknown_release_of_a_known_family_is_assigned_to_it_with_a_warning() -> None:
    jetpack, warning = jetpack_of("36.9.9")
    assert jetpack == "6.x"
    assert "does not know L4T 36.9.9" in warning


def test_a_release_of_no_known_family_is_a_warning_too() -> None:
    assert jetpack_of("77.1.0")[0] is None
    assert "77.1.0" in jetpack_of("77.1.0")[1]
    assert jetpack_of(None)[0] is None


def test_every_release_in_the_table_belongs_to_its_family() -> None:
    for l4t, jetpack in JETPACKS.items():
        assert (jetpack_of(l4t[:3] + "99.0")[0] or "").split(".")[0] == jetpack.split(".")[0]


def test_the_release_is_also_told_by_the_package() -> None:
    status = "Package: a\nVersion: 1\n\nPackage: nvidia-l4t-core\nStatus: ok\nVersion: 36.4.7-20250918\n\n"
    assert l4t_package(status) == "36.4.7"
    assert l4t_package("Package: a\nVersion: 36.4.7\n") is None


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("NV Power Mode: 25W\n1\n", PowerMode("25W", 1)),
        ("NV Power Mode: MAXN_SUPER\n2", PowerMode("MAXN_SUPER", 2)),
        ("NVPM WARN: fan mode is not set!\nNV Power Mode: 120W\n1\n", PowerMode("120W", 1)),
        ("NV Power Mode: MODE_50W", PowerMode("MODE_50W", None)),
        ("NV Fan Mode:quiet\n", None),
        ("", None),
    ],
)
def test_a_power_mode_has_a_name_and_a_number(text: str, mode: PowerMode | None) -> None:
    assert power_mode(text) == mode


def test_the_stored_mode_has_its_name_in_the_configuration() -> None:
    conf = "# comment\n< POWER_MODEL ID=0 NAME=15W >\nCORE_0 1\n< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n"
    assert mode_names(conf) == {0: "15W", 2: "MAXN_SUPER"}
    assert stored_mode("pmode:0002 fmode:quiet") == 2
    assert stored_mode("") is None


def test_clocks_are_reported_in_hertz_and_locked_where_the_limits_meet() -> None:
    shown = shown_clocks(
        "SOC family:tegra234  Machine:NVIDIA Jetson AGX Orin Developer Kit\n"
        "cpu0:  Online=1 Governor=schedutil MinFreq=729600 MaxFreq=1510400 CurrentFreq=883200\n"
        "GPU MinFreq=1300500000 MaxFreq=1300500000 CurrentFreq=1300500000\n"
        "EMC MinFreq=204000000 MaxFreq=2133000000 CurrentFreq=2133000000 FreqOverride=0\n"
        "FAN Dynamic Speed Control=nvfancontrol hwmon0_pwm1=65\n"
    )
    assert shown["cpu0"] == Clock(729_600_000, 1_510_400_000, 883_200_000)
    assert not shown["cpu0"].locked
    assert shown["gpu"].locked
    assert shown["emc"].now_hz == 2_133_000_000
    assert set(shown) == {"cpu0", "gpu", "emc"}


def test_a_refusal_tells_no_clocks() -> None:
    assert shown_clocks("Error: Run this script(/usr/bin/jetson_clocks) as a root user") == {}


@pytest.mark.parametrize(
    ("compatible", "name", "capability"),
    [
        ("nvidia,p3737-0000+p3701-0005\0nvidia,tegra234\0", "tegra234", "8.7"),
        ("nvidia,p4071-0000+p3834-0008\0nvidia,p3834-0008\0nvidia,tegra264\0", "tegra264", "11.0"),
        ("nvidia,quill\0nvidia,tegra186", "tegra186", "6.2"),
    ],
)
def test_a_chip_is_known_by_the_device_tree(compatible: str, name: str, capability: str) -> None:
    soc = soc_of(compatible)
    assert soc == name
    assert GPUS[name] == capability


def test_a_chip_of_another_maker_is_none() -> None:
    assert soc_of("raspberrypi,4-model-b\0brcm,bcm2711\0") is None
