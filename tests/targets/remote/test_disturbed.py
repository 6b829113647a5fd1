"""By a real sshd: a link cut between build and timing, and a board that slows down while it is timed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import runs, simulated_board, ssh_board
from support.boards import put, unpack

import deadweight
from deadweight.targets.artifact import read_json, sha256_of
from deadweight.targets.errors import TargetError
from deadweight.targets.runtimes.open import open_session

MakeMlp = Callable[..., Path]
RECIPE = runs.recipe(
    *(("train", {"epochs": 1}), "statistics", ("prune", {"ratio": 0.5}), "export"),
    ("profile", {"events": 4, "event_s": 0.02}),
    workload="mine.py:Mine",
)
QUICK: dict[str, Any] = {"events": 2, "event_s": 0.01, "on": "board"}

pytestmark = pytest.mark.skipif(
    ssh_board.SSHD is None, reason="there is no sshd here: apt install openssh-server"
)

needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can lay a board's files over its own")


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssh_board.Board:
    """A board whose Python has no TensorRT, with the stand-in for trtexec."""
    made = simulated_board.board_with_trtexec(tmp_path)
    monkeypatch.setenv("DEADWEIGHT_SSH_CONFIG", str(made.config))
    monkeypatch.setenv("COLUMNS", "240")
    return made


@pytest.fixture
def models(mlp: MakeMlp) -> list[Path]:
    return [mlp(64, 512, 10, name="large.onnx"), mlp(64, 32, 10, name="small.onnx")]


HOT, GPU = "thermal/cooling_device1/", "devfreq/17000000.gpu/"


def after_two_events(act: Callable[[], None]) -> Callable[[int, int, str], None]:
    """A listener to progress that acts in mid-run."""
    return lambda done, total, what: act() if (what, done) == ("timing", 2) else None


def words_of(capsys: pytest.CaptureFixture[str]) -> str:
    printed = capsys.readouterr()
    return " ".join((printed.out + printed.err).split())


def gate(model: Path, baseline: Path) -> list[object]:
    """The command line of a gate on the board, with the settings beside its baseline, or none."""
    settings = baseline.with_name("gate.toml")
    settings.touch()
    return ["gate", "--model", model, "--baseline", baseline, "--on", "board", "--config", settings]


def plans(board: ssh_board.Board) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in board.home.rglob("engines/*/*.plan")}


def test_a_link_cut_between_build_and_timing_is_named_and_the_engines_are_used_again(
    board: ssh_board.Board, models: list[Path]
) -> None:
    board.cut_before("compare")
    with pytest.raises(TargetError) as caught:
        deadweight.compare(*models, **QUICK)
    assert "The connection to board broke while running compare" in caught.value.what
    assert "Run the same command again" in caught.value.cure
    built = plans(board)
    assert len(built) == 2
    board.reconnect()
    found = deadweight.compare(*models, **QUICK)
    assert found.exit_code == 3
    assert found.remarks == ("built before, and not again: baseline, candidate",)
    assert plans(board) == built


@pytest.mark.slow
def test_a_run_whose_link_is_cut_before_the_timing_goes_on_there(
    board: ssh_board.Board, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project = runs.project_of(tmp_path, 'target = "orin-nano-8gb"\n' + RECIPE)
    line = ["run", project / "recipe.toml", "--out", tmp_path / "run", "--on", "board"]
    board.cut_before("profile")
    assert runs.exit_code(*line) == 2
    assert "The connection to board broke while running profile" in words_of(capsys)
    assert not (tmp_path / "run/report.json").exists()
    assert not list(tmp_path.glob("run/stages/profile-*/done.json"))
    built = plans(board)
    assert len(built) == 2
    board.reconnect()
    assert runs.exit_code(*line) == 3
    assert "built before, and not again: original, pruned" in words_of(capsys)
    assert built.items() <= plans(board).items()  # those for the scores have another batch


@pytest.mark.slow
def test_a_gate_whose_link_is_cut_accepts_and_judges_nothing(
    board: ssh_board.Board, models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    accepted = tmp_path / "accepted.json"
    line = gate(models[0], accepted)
    board.cut_before("profile")
    assert runs.exit_code(*line, "--record") == 2
    assert "broke while running profile" in words_of(capsys)
    assert not accepted.exists()
    board.reconnect()
    assert runs.exit_code(*line, "--record") == 0
    board.cut_before("compare")
    assert runs.exit_code(*line) == 2
    assert "broke while running compare" in words_of(capsys)
    built = plans(board)
    board.reconnect()
    assert runs.exit_code(*line) == 3
    assert plans(board) == built


@pytest.mark.slow
def test_a_gate_scores_engines_of_another_batch_than_those_that_it_times(
    board: ssh_board.Board, models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = gate(models[0], tmp_path / "accepted.json")
    x = np.random.default_rng(0).standard_normal((70, 64)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x, label=open_session(models[0]).run({"x": x})["y"].argmax(1))
    (tmp_path / "gate.toml").write_text('[gate]\ndata = "data.npz"\n[budgets]\nscore_drop = 0.9\n')
    assert runs.exit_code(*line, "--record") == 0
    assert runs.exit_code(*line) == 3
    assert "was 1.0000" in words_of(capsys)
    records = [read_json(Path(f"{plan}.json")) for plan in plans(board)]
    assert sorted(one["profiles"]["x"][2][0] for one in records) == [1, 64]


@pytest.mark.slow
def test_an_engine_whose_fetch_is_cut_is_not_here_without_its_record(
    board: ssh_board.Board, models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = tmp_path / "large.plan"
    line = ["build", models[0], "--out", plan, "--on", "board"]
    board.cut_before("send *.plan.log")
    assert runs.exit_code(*line) == 2
    assert "broke while fetching a file" in words_of(capsys)
    assert not plan.exists()
    board.reconnect()
    assert runs.exit_code(*line) == 0
    assert read_json(Path(f"{plan}.json"))["plan"]["sha256"] == sha256_of(plan)


@pytest.fixture
def jetson(board: ssh_board.Board, tmp_path: Path) -> Callable[[str, object], None]:
    """Makes the board an Orin Nano by its files, and returns a function that changes one below sys/class."""
    root = unpack("orin_nano_super_jp72", tmp_path / "root")

    def change(path: str, value: object) -> None:
        put(root, f"sys/class/{path}", f"{value}\n")

    change(f"{HOT}type", "gpu-throttle-alert")
    change(f"{HOT}cur_state", 0)
    board.lay_over(root)
    return change


@needs_root
def test_a_board_that_throttles_in_mid_run_gets_no_verdict_and_a_cool_one_does(
    jetson: Callable[[str, object], None], models: list[Path]
) -> None:
    asked = {**QUICK, "events": 6, "runtime": "onnxruntime"}
    heat = after_two_events(lambda: jetson(f"{HOT}cur_state", 1))
    found = deadweight.compare(*models, **asked, progress=heat)
    assert (found.outcome, found.exit_code) == ("cannot_tell", 3)
    assert found.verdict.startswith(
        "cannot tell: the measurement is void: the board was throttled (gpu-throttle-alert); "
        "let the board cool down, lock its clocks (deadweight doctor) and measure again"
    )
    jetson(f"{HOT}cur_state", 0)
    found = deadweight.compare(*models, **asked)
    assert (found.outcome, found.exit_code, found.void) == ("faster", 0, ())


@pytest.mark.slow
@needs_root
def test_a_locked_clock_that_falls_while_engines_are_timed_is_named_and_they_are_kept(
    jetson: Callable[[str, object], None], models: list[Path], board: ssh_board.Board
) -> None:
    for name in ("min_freq", "max_freq", "cur_freq"):
        jetson(f"{GPU}{name}", 918_000_000)
    fall = after_two_events(lambda: jetson(f"{GPU}cur_freq", 612_000_000))
    found = deadweight.compare(*models, **{**QUICK, "events": 6}, progress=fall)
    assert found.void == ("the gpu clock ran at 612 MHz though it is locked to 918 MHz",)
    assert "simulated" in found.verdict
    shown = deadweight.profile(models[0], **QUICK)
    assert shown.exit_code == 3
    assert shown.verdict.startswith("cannot tell: the gpu clock ran at 612 MHz")
    built = plans(board)
    jetson(f"{GPU}cur_freq", 918_000_000)
    found = deadweight.compare(*models, **QUICK)
    assert found.void == ()
    assert found.remarks == ("built before, and not again: baseline, candidate",)
    assert plans(board) == built


@pytest.mark.slow
@needs_root
def test_a_hot_board_accepts_no_baseline_and_a_gate_cannot_tell_there(
    jetson: Callable[[str, object], None],
    models: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    accepted = tmp_path / "accepted.json"
    line = gate(models[1], accepted)
    line += ["--runtime", "onnxruntime", "--limit", "3"]
    jetson(f"{HOT}cur_state", 1)
    assert runs.exit_code(*line, "--record") == 2
    said = words_of(capsys)
    assert "small.onnx was not accepted, since its times are invalid: the board was throttled" in said
    assert "Let the board cool down" in said
    assert not accepted.exists()
    jetson(f"{HOT}cur_state", 0)
    assert runs.exit_code(*line, "--record") == 0
    jetson(f"{HOT}cur_state", 1)
    assert runs.exit_code(*line) == 3
    assert "the measurement is void: the board was throttled (gpu-throttle-alert)" in words_of(capsys)
    jetson(f"{HOT}cur_state", 0)
    assert runs.exit_code(*line) == 0


@pytest.mark.slow
@needs_root
def test_a_run_on_a_hot_board_cannot_tell_and_measures_again_when_it_is_cool(
    jetson: Callable[[str, object], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project = runs.project_of(tmp_path, RECIPE + 'runtime = "onnxruntime"\n')
    jetson(f"{HOT}cur_state", 1)
    code, report = runs.run(project, "--on", "board")
    assert (code, report["verdict"]["outcome"]) == (3, "cannot_tell")
    said = words_of(capsys)
    assert "The times are invalid: the board was throttled (gpu-throttle-alert); let the board cool" in said
    assert "The measurement is void" in said
    jetson(f"{HOT}cur_state", 0)
    _, report = runs.run(project, "--on", "board")
    assert "The measurement is void" not in words_of(capsys)
    assert [one["name"] for one in report["stages"] if not one["cached"]] == ["profile", "evaluate"]
    _, report = runs.run(project, "--on", "board")
    assert all(one["cached"] for one in report["stages"])
