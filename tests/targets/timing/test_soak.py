"""Soaks of simulated boards, of which the truth is known, and of real processes on this machine."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.boards import put

from benchmarks.soak.heat_and_rails import Simulated
from deadweight.targets.errors import MeasurementError, ModelError
from deadweight.targets.plain import from_plain, plain
from deadweight.targets.timing.loads import Load, Ran
from deadweight.targets.timing.soak import soak
from deadweight.targets.timing.soak_record import Soak, SoakPlan
from deadweight.targets.timing.soak_summary import Summary, drift, energies, summarized

MakeMlp = Callable[..., Path]
ONE = {"baseline": Load("cpu")}


def run(board: Simulated, plan: SoakPlan) -> Soak:
    return soak(
        plan, folder=board.root / "soaks", root=board.root, clocks=board.clocks, processes=board.processes
    )


def soaked(board: Simulated, *, minutes: float = 1.5, period_s: float = 3.0) -> Summary:
    return summarized(run(board, SoakPlan(ONE, minutes=minutes, period_s=period_s, seed=board.seed)))


@pytest.mark.parametrize("seed", range(3))
def test_the_energy_of_an_inference_is_found_beyond_a_drifting_idle_power(tmp_path: Path, seed: int) -> None:
    board = Simulated(tmp_path, seed)
    found = soaked(board).rows[0].energy
    assert found is not None
    assert found.j is not None, found.reason
    assert found.j.low <= board.energy_j <= found.j.high
    assert found.j.value == pytest.approx(board.energy_j, rel=0.02)
    assert "mJ per inference" in found.sentence()


@pytest.mark.parametrize(
    ("update_s", "active_w", "reason"),
    [(2.0, 6.0, "the sensor is too slow: 1 new values"), (0.1, 0.02, "the sensor is too coarse")],
)
def test_a_sensor_that_cannot_tell_says_why(
    tmp_path: Path, update_s: float, active_w: float, reason: str
) -> None:
    found = soaked(Simulated(tmp_path, update_s=update_s, active_w=active_w, noise_w=0.05)).rows[0].energy
    assert found is not None
    assert found.j is None
    assert reason in found.sentence()


def test_a_board_without_rails_is_soaked_without_idle_periods(tmp_path: Path) -> None:
    board = Simulated(tmp_path)
    (tmp_path / "sys/class/hwmon/hwmon1/in1_label").unlink()
    done = run(board, SoakPlan(ONE, minutes=0.5, period_s=1.0))
    assert {one.models for one in done.periods} == {("baseline",)}
    assert "no power rails" in done.no_sensor
    energy = summarized(done).rows[0].energy
    assert energy is not None
    assert "no power rails" in energy.sentence()
    done = run(board, SoakPlan(ONE, energy_only=True))
    assert (done.periods, list(energies(done))) == ((), ["baseline"])


def test_the_onset_of_throttling_is_found_within_one_sample(tmp_path: Path) -> None:
    board = Simulated(tmp_path, hot_c=70.0, cool_c=69.0, tick_s=0.25)
    summary = soaked(board, minutes=5, period_s=5)
    assert board.slowed_at
    at, what = summary.slowed[0]
    assert 0 <= at - board.slowed_at[0] <= 1.0
    assert "devfreq-17000000.gpu" in what or "gpu clock" in what
    assert any("recovered" in what for _, what in summary.notes)
    first, most, _ = summary.temperatures_c["gpu-thermal"]
    assert first < 60 < most


def test_a_board_that_is_too_hot_to_start_is_refused(tmp_path: Path) -> None:
    board = Simulated(tmp_path)
    put(tmp_path, "sys/class/thermal/cooling_device0/cur_state", "1")
    with pytest.raises(MeasurementError, match="throttled before the soak begins"):
        run(board, SoakPlan(ONE))


def test_a_rate_that_a_model_cannot_keep_is_refused_with_one_that_it_can(tmp_path: Path) -> None:
    plan = SoakPlan({"baseline": Load("cpu", rate_hz=500.0)}, minutes=1)
    with pytest.raises(MeasurementError, match="does not keep 500 Hz") as caught:
        run(Simulated(tmp_path), plan)
    assert "a rate below 2" in caught.value.cure  # 250 Hz


def test_missed_frames_are_counted_with_a_bound(tmp_path: Path) -> None:
    plan = SoakPlan({"baseline": Load("cpu", rate_hz=240.0)}, minutes=1)
    row = summarized(run(Simulated(tmp_path), plan)).rows[0]
    assert 0 < row.missed < row.frames
    assert row.missed / row.frames < row.missed_high < 1


def test_a_reboot_is_resumed_and_its_gap_is_shown(tmp_path: Path) -> None:
    board = Simulated(tmp_path, died_after_s=40)
    plan = SoakPlan(ONE, minutes=1.5, period_s=3.0)
    with pytest.raises(OSError, match="power was cut"):
        run(board, plan)
    [log] = (tmp_path / "soaks").glob("*/rounds.jsonl")
    with log.open("a") as file:
        file.write('{"boot": "fir')  # a line that was cut
    board.died_after_s, board.set_by_s, board.time_s = np.inf, board.time_s + 120, 10.0
    put(tmp_path, "proc/sys/kernel/random/boot_id", "second")
    done = run(board, plan)
    assert not (tmp_path / "soaks").exists() or not list((tmp_path / "soaks").iterdir())
    spent = sum(one.seconds for one in done.periods)
    assert 90 <= spent <= 90 + 2 * 3.1
    assert [one.round for one in done.periods] == sorted(one.round for one in done.periods)
    [(at, what)] = summarized(done).notes
    assert "the machine was started again" in what
    gap = int(what.split("gap of ")[1].split(" s")[0])
    assert 130 <= gap <= 137
    assert at == pytest.approx(max(one.at_s for one in done.periods if one.at_s < at) + 3 + gap, abs=3.5)


def test_a_clock_that_is_set_changes_no_time(tmp_path: Path) -> None:
    board = Simulated(tmp_path)

    def set_clock(done: int, total: int) -> None:
        board.set_by_s = 3600.0

    done = soak(
        SoakPlan(ONE, minutes=0.5, period_s=3.0),
        folder=tmp_path / "soaks",
        root=tmp_path,
        clocks=board.clocks,
        processes=board.processes,
        progress=set_clock,
    )
    assert [what for _, what in summarized(done).notes] == ["the calendar's clock was set by +3600 s"]
    assert all(one.seconds == pytest.approx(3.0) for one in done.periods)


def test_power_modes_run_in_turn_and_the_one_of_before_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    board = Simulated(tmp_path)
    status = put(tmp_path, "var/lib/nvpmodel/status", "pmode:0001")
    put(tmp_path, "etc/nvpmodel.conf", "< POWER_MODEL ID=0 NAME=15W >\n< POWER_MODEL ID=1 NAME=25W >\n")
    put(tmp_path, "usr/sbin/nvpmodel", f'#!/bin/sh\nprintf "pmode:%04d" "$2" > {status}\n').chmod(0o755)
    put(tmp_path, "bin/sudo", '#!/bin/sh\nshift\nexec "$@"\n').chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    done = run(board, SoakPlan(ONE, minutes=1, period_s=1.0, power_modes=("15W", "25W")))
    assert list(dict.fromkeys(one.mode for one in done.periods)) == ["15W", "25W"]
    assert status.read_text() == "pmode:0001"
    summary = summarized(done)
    assert [row.mode for row in summary.rows] == ["15W", "25W"]
    assert summary.slowed == ()  # a mode that we set ourselves slows nothing


def leaking(seed: int, bytes_per_h: float, again: float = 0.5) -> tuple[list[float], list[float]]:
    """Memory after each of 90 rounds in half an hour, with noise and a cache that fills."""
    random = np.random.default_rng(seed)
    at_s = np.arange(90) * 20.0
    wander = np.zeros(90)
    for place in range(1, 90):
        wander[place] = again * wander[place - 1] + random.normal(0, 3e4)
    return at_s.tolist(), (2e8 + 2e7 * (1 - np.exp(-at_s / 60)) + bytes_per_h * at_s / 3600 + wander).tolist()


def test_a_leak_of_a_megabyte_an_hour_is_found_in_half_an_hour_and_no_false_one() -> None:
    assert sum(drift(*leaking(seed, 1e6)).grows for seed in range(100)) >= 95
    assert sum(drift(*leaking(seed, 0)).grows for seed in range(100)) == 0
    assert sum(drift(*leaking(seed, 0, 0.9)).grows for seed in range(100)) <= 2
    assert drift([1.0, 2.0], [3.0, 4.0]).sentence() == (
        "memory: cannot tell whether it grows, 2 rounds are too few"
    )


def test_the_steps_in_which_a_process_settles_in_its_first_minutes_are_no_leak() -> None:
    settling = (
        [float(second) for second in range(0, 150, 1)],
        [1e8 + 1e4 * (second // 5) for second in range(150)],
    )
    assert drift(*settling).sentence() == (
        "memory: cannot tell whether it grows, 112 s were watched, and 180 s are needed after the first "
        "quarter (--minutes 4)"
    )
    assert drift([3 * at for at in settling[0]], settling[1]).grows


def test_two_models_and_a_neighbour_run_in_real_processes(mlp: MakeMlp, tmp_path: Path) -> None:
    small, large = mlp(64, 64, 10), mlp(256, 512, 256, name="large.onnx")
    loads = {
        "baseline": Load(str(large)),
        "candidate": Load(str(small)),
        "beside": Load("cpu", rate_hz=5.0),
    }
    done = soak(SoakPlan(loads, minutes=0.02, period_s=0.1), folder=tmp_path / "soaks")
    assert from_plain(Soak, json.loads(json.dumps(plain(done))), "a soak") == done
    assert {one.models for one in done.periods if one.models} == {
        ("baseline",),
        ("candidate",),
        ("beside",),
        ("baseline", "beside"),
        ("candidate", "beside"),
    }
    summary = summarized(done)
    assert summary.judgements[""].ratio > 1
    assert set(summary.costs) == {
        ("", "baseline", "beside"),
        ("", "candidate", "beside"),
        ("", "beside", "baseline"),
        ("", "beside", "candidate"),
    }
    ran = done.periods[0].ran
    assert all(each.memory_bytes for several in ran.values() for each in several)


STEPS = """
import numpy as np
import time

def frame():
    return np.full((1, 64), 128, np.uint8)

def preprocess(frame):
    time.sleep(0.002)
    return {"x": frame.astype(np.float32) / 255}

def postprocess(outputs):
    return outputs["y"].argmax()
"""


def test_a_users_steps_are_timed_and_split(mlp: MakeMlp, tmp_path: Path) -> None:
    steps = tmp_path / "steps.py"
    steps.write_text(STEPS)
    plan = SoakPlan({"baseline": Load(str(mlp(64, 64, 10)), steps=str(steps))}, minutes=0.01, period_s=0.2)
    row = summarized(soak(plan, folder=tmp_path / "soaks")).rows[0]
    assert list(row.parts_s) == ["preprocess", "model", "postprocess"]
    assert row.parts_s["preprocess"] >= 0.002
    assert row.latency.value >= sum(row.parts_s.values()) * 0.5


def test_a_neighbour_that_dies_ends_the_soak_with_its_name(mlp: MakeMlp, tmp_path: Path) -> None:
    steps = tmp_path / "steps.py"
    steps.write_text("import os\ndef frame():\n    return None\ndef preprocess(frame):\n    os._exit(7)\n")
    loads = {
        "baseline": Load(str(mlp(64, 10))),
        "beside": Load(str(mlp(64, 32, 10, name="b.onnx")), steps=str(steps)),
    }
    with pytest.raises(ModelError, match=r"b\.onnx was ended with exit code 7"):
        soak(SoakPlan(loads, minutes=0.1, period_s=0.2), folder=tmp_path / "soaks")


def test_several_streams_are_several_processes(mlp: MakeMlp, tmp_path: Path) -> None:
    plan = SoakPlan({"baseline": Load(str(mlp(64, 64, 10)))}, minutes=0.005, period_s=0.2, streams=2)
    done = soak(plan, folder=tmp_path / "soaks")
    assert all(len(one.ran["baseline"]) == 2 for one in done.periods if one.models)


def test_a_plan_without_sense_is_refused() -> None:
    for wrong in ({"minutes": 0}, {"period_s": 0.01}, {"streams": 0}):
        with pytest.raises(MeasurementError):
            replace(SoakPlan(ONE), **wrong)
    with pytest.raises(MeasurementError, match="not a rate"):
        SoakPlan({"baseline": Load("cpu", rate_hz=-1.0)})


def test_of_short_runs_a_period_keeps_some_and_counts_all(tmp_path: Path) -> None:
    from deadweight.targets.timing.loads import MOST, _timed

    count, runs, frames, missed, seconds = _timed(lambda: None, 0.0, 0.05)
    assert MOST <= count <= 2 * MOST < frames == runs
    assert missed == 0
    assert seconds >= 0.05
    assert Ran((), frames, missed, seconds).memory_bytes is None
