import json
import platform
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from deadweight.targets.probe import (
    Snapshot,
    changes,
    conditions,
    cpu_name,
    doctor,
    evidence,
    memory_bytes,
    snapshot,
    versions,
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
    told = conditions()
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    assert told["machine"]["cores"] >= 1
    assert told["machine"]["memory_bytes"] > 1e8
    assert told["software"]["python"] == platform.python_version()
    assert {"numpy", "onnxruntime"} <= set(told["software"])


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
    told = conditions(tmp_path)
    assert told["machine"]["memory_bytes"] is None
    assert told["state"]["governors"] == []
    assert snapshot(tmp_path).clocks_hz == ()
    assert len(doctor(tmp_path)) > 5


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
    ("happened", "told"),
    [
        ({"throttled": 2}, "throttled 2 times"),
        ({"clocks_hz": (1_000_000_000, 700_000_000)}, "a core's clock went from 1000 to 700 MHz"),
        ({"swapped_pages": 10}, "7 pages were swapped"),
        ({"major_faults": 9}, "2 pages were read from disk"),
        ({"minor_faults": 100_100}, "100 page faults a run"),
        ({"stolen_s": 1.5}, "the host took 50 % of a core"),
        ({"cpu_s": 5.5}, "other work left 50 % of a core"),
    ],
)
def test_what_disturbs_a_timing_is_told(happened: dict[str, object], told: str) -> None:
    assert changes(QUIET, replace(LATER, **happened), runs=1000) == (told,)  # type: ignore[arg-type]


def test_the_share_of_a_core_says_nothing_of_more_threads() -> None:
    assert changes(QUIET, replace(LATER, cpu_s=5.5), runs=1000, threads=2) == ()


def test_reading_a_snapshot_takes_little_time() -> None:
    before = snapshot()
    assert snapshot().wall_s - before.wall_s < 0.05


def test_this_processor_is_not_emulated() -> None:
    assert evidence() == "measured"


def test_a_foreign_processor_is_told_by_the_handler_that_runs_it(tmp_path: Path) -> None:
    handler = f"proc__sys__fs__binfmt_misc__qemu-{platform.machine()}"
    assert evidence(files(tmp_path, **{handler: "enabled\n"})) == "emulated"


def test_a_processor_made_of_software_is_told_by_its_name(tmp_path: Path) -> None:
    root = files(tmp_path, proc__cpuinfo="model name : QEMU Virtual CPU version 2.5+\n")
    assert evidence(root) == "emulated"
    assert any(check.name == "processor" and not check.works for check in doctor(root))


def test_versions_are_told_of_what_is_installed_only() -> None:
    assert set(versions("numpy", "no-such-distribution")) == {"numpy"}


def test_whatever_does_not_work_comes_with_its_cure() -> None:
    for check in doctor():
        assert check.found
        assert check.works or check.cure


def test_a_jetson_is_asked_for_tensorrt_and_no_other_machine(tmp_path: Path) -> None:
    assert "tensorrt" not in {check.name for check in doctor(tmp_path)}
    root = files(tmp_path, etc__nv_tegra_release="# R36 (release), REVISION: 4.4\n")
    found = {check.name: check for check in doctor(root)}
    assert found["tensorrt"].works or found["tensorrt"].cure == "sudo apt install python3-libnvinfer"


def test_the_doctor_works_in_a_python_with_nothing_installed() -> None:
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from deadweight.targets.probe import doctor\n"
        "for check in doctor(): print(check.name, check.works, check.cure)\n"
    )
    house = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-S", "-c", program, house], capture_output=True, text=True, check=True, cwd="/"
    )
    assert "numpy False pip install numpy" in done.stdout
    assert "onnxruntime False pip install 'deadweight[ort]'" in done.stdout


def test_a_library_that_is_there_but_broken_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "onnxruntime").mkdir()
    (tmp_path / "onnxruntime" / "__init__.py").write_text("raise ImportError('libgomp is missing')\n")
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from deadweight.targets.probe import doctor\n"
        "print([check.found for check in doctor() if check.name == 'onnxruntime'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert "does not import: libgomp is missing" in done.stdout
