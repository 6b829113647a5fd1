"""A table and the stage budget on boards behind ssh: links that are cut, and times that prove nothing."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support import simulated_board, ssh_board
from support.digits import Digits
from support.onnx_files import save_mlp
from support.runs import exit_code, project_of, recipe
from support.workloads import trained
from torch import nn

import deadweight
from deadweight.pipeline.budget.table import load_table
from deadweight.pipeline.stages.budget import Budget
from deadweight.pipeline.training.networks import NetworkFiles
from deadweight.pipeline.work import Work
from deadweight.targets.errors import TargetError
from deadweight.targets.target import load_target

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(ssh_board.SSHD is None, reason="there is no sshd here: apt install openssh-server"),
]


class Wide(Digits):
    """Wide enough that its layers, not the call, take its time."""

    def build_model(self) -> nn.Module:
        return nn.Sequential(
            nn.Linear(64, 768), nn.ReLU(), nn.Linear(768, 512), nn.ReLU(), nn.Linear(512, 10)
        )


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssh_board.Board:
    """A board that is this machine, with ONNX Runtime."""
    made = ssh_board.make_board(tmp_path / "board", python=str(Path(sys.executable).parent))
    monkeypatch.setenv("DEADWEIGHT_SSH_CONFIG", str(made.config))
    monkeypatch.chdir(tmp_path)
    return made


def cutting(board: ssh_board.Board, what: str) -> Callable[[int, int, str], None]:
    """A listener to progress that has the next timing cut once something was measured."""

    def heard(done: int, total: int, said: str) -> None:
        if done and said.startswith(what):
            board.cut_before("profile")
            board.cut_now()  # the open connection, which knows of no door

    return heard


def test_a_table_whose_cable_is_cut_goes_on_and_keeps_what_was_measured(
    board: ssh_board.Board, tmp_path: Path
) -> None:
    model, path = save_mlp(tmp_path / "m.onnx", 32, 40, 24, 4), tmp_path / "m.table.json"
    with pytest.raises(TargetError, match="board"):
        deadweight.table(model, networks=16, held_out=4, on="board", progress=cutting(board, "table: sec"))
    before = load_table(path)
    assert before.seconds
    assert not before.networks
    board.reconnect()
    whole = deadweight.table(model, networks=16, held_out=4, on="board")
    assert (whole.exit_code, whole.table.conditions.evidence) == (0, "measured")
    assert {key: whole.table.seconds[key] for key in before.seconds} == before.seconds
    assert len(whole.table.again) == 4


def test_two_boards_share_a_table_and_when_one_is_cut_off_the_other_finishes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are this machine: unlike boards have planted clocks, in test_boards."""
    _, two, config = ssh_board.make_two(tmp_path, python=str(Path(sys.executable).parent))
    monkeypatch.setenv("DEADWEIGHT_SSH_CONFIG", str(config))
    model, said = save_mlp(tmp_path / "m.onnx", 256, 320, 192, 4), list[str]()
    made = deadweight.table(
        model,
        networks=16,
        held_out=4,
        on=("one", "two"),
        out=tmp_path / "t.json",
        begun=said.append,
        progress=cutting(two, "table: networks"),
    )
    assert any(line.startswith("two times no more, the others go on: ") for line in said)
    by = made.table.timed_on
    assert {*by["seconds"].values()} == {"one", "two"}
    assert {*by["again"].values()} == {"one"}
    (board,) = made.table.boards
    assert 0.9 < board.ratio < 1.1
    assert f"{board.ratio:.3f} of its time" in made.figures["board two against the first (A/A)"]


def test_the_stage_goes_on_after_a_cut_and_finds_a_network_that_keeps_its_budget(
    board: ssh_board.Board, tmp_path: Path
) -> None:
    work = Work(Wide(), load_target("x86-cpu"), tmp_path / "stage", networks=NetworkFiles())
    work = work.with_model("original", trained(Wide()))
    asked = Budget(speedup=1.5, criterion="weight_l2", networks=16, finalists=2, events=12, on="board")
    with pytest.raises(TargetError):
        asked(dataclasses.replace(work, progress=cutting(board, "table: networks")))
    before = load_table(tmp_path / "stage/table.json")
    assert before.networks
    board.reconnect()
    done = asked(work)
    found = json.loads(done.artifacts["search"].checked().read_text())
    assert [one["kept"] for one in found["tried"] if one["chosen"]] == [True]
    after = load_table(done.artifacts["table"].checked())
    assert {key: after.seconds[key] for key in before.seconds if key != "dense"} == {
        key: seconds for key, seconds in before.seconds.items() if key != "dense"
    }


@pytest.fixture
def simulated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssh_board.Board:
    """A board with the stand-in for trtexec, which says that it simulates."""
    made = simulated_board.board_with_trtexec(tmp_path)
    monkeypatch.setenv("DEADWEIGHT_SSH_CONFIG", str(made.config))
    monkeypatch.setenv("COLUMNS", "240")
    monkeypatch.chdir(tmp_path)
    return made


def test_a_table_of_simulated_times_says_so_and_its_advice_proves_nothing(
    simulated: ssh_board.Board, tmp_path: Path
) -> None:
    model = save_mlp(tmp_path / "m.onnx", 16, 24, 4)
    made = deadweight.table(model, networks=16, held_out=0, on="board")
    assert made.exit_code == 3
    assert made.table.conditions.evidence == "simulated"
    assert made.table.conditions.runtime.startswith("trtexec")
    assert deadweight.advise(model, table=made.path, on="board").exit_code == 3


def test_no_budget_is_proven_by_simulated_times_and_the_table_is_kept(
    simulated: ssh_board.Board, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = {"speedup": 1.5, "criterion": "weight_l2", "networks": 16, "finalists": 2, "events": 12}
    text = recipe(
        *(("train", {"epochs": 1}), ("budget", {**asked, "norms": 0, "on": "board"}), "export"),
        workload="mine.py:Mine",
        head='target = "orin-nano-8gb"\n',
    )
    project = project_of(tmp_path, text)
    for _ in range(2):
        assert exit_code("run", project / "recipe.toml", "--out", project / "run") == 2
        said = " ".join(capsys.readouterr().err.split())
        assert "No budget can be proven: the times are simulated" in said
        assert not (project / "run/report.json").exists()
    (kept,) = (project / "run").rglob("table.json")
    table = load_table(kept)
    assert table.conditions.evidence == "simulated"
    assert len(table.networks) > 16
    assert not list((project / "run").rglob("search.json"))
