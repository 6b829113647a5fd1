"""What a person sees of the commands about boards and bundles."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper
from support import ssh_board
from support.releases import make_key, trust

from deadweight.__main__ import main


@pytest.fixture
def model(tmp_path: Path) -> Path:
    values = [helper.make_tensor_value_info(end, TensorProto.FLOAT, ["batch", 64]) for end in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "relu", values[:1], values[1:])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(made, str(tmp_path / "relu.onnx"))
    return tmp_path / "relu.onnx"


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssh_board.Board:
    if ssh_board.SSHD is None:
        pytest.skip("there is no sshd here: apt install openssh-server")
    made = ssh_board.make_board(tmp_path / "board", python=str(Path(sys.executable).parent))
    monkeypatch.setenv("DEADWEIGHT_SSH_CONFIG", str(made.config))
    return made


def called(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["deadweight", *arguments])
    monkeypatch.setenv("COLUMNS", "160")
    with pytest.raises(SystemExit) as caught:
        main()
    printed = capsys.readouterr()
    return int(caught.value.code or 0), printed.out + printed.err


def test_a_bundle_is_made_verified_and_refused_when_it_was_changed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, model: Path
) -> None:
    key = make_key(tmp_path / "keys")
    signers = str(trust(key, tmp_path / "root"))
    place = tmp_path / "relu.bundle"
    code, printed = called(monkeypatch, capsys, "bundle", str(model), "--sign", str(key))
    assert (code, place.is_dir()) == (0, True)
    code, printed = called(monkeypatch, capsys, "verify", str(place), "--signers", signers)
    assert code == 0
    assert "signed by release" in printed
    (place / "model.onnx").write_bytes(b"changed")
    code, printed = called(monkeypatch, capsys, "verify", str(place), "--signers", signers)
    assert code == 1
    assert "model.onnx was changed after it was signed" in printed
    assert "What to do:" in printed


def test_a_bundle_without_a_key_says_what_it_is_worth(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], model: Path
) -> None:
    code, printed = called(monkeypatch, capsys, "bundle", str(model))
    assert code == 0
    assert "boards will refuse it: --sign KEY" in printed


def test_an_unsigned_bundle_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, model: Path
) -> None:
    called(monkeypatch, capsys, "bundle", str(model))
    place = str(tmp_path / "relu.bundle")
    code, printed = called(monkeypatch, capsys, "install", place, "--place", str(tmp_path / "in"))
    assert code == 1
    assert "is not signed" in printed
    assert not (tmp_path / "in").exists()


def test_what_is_no_bundle_is_bad_input(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, printed = called(monkeypatch, capsys, "bundle", str(tmp_path / "none"))
    assert code == 2
    assert "report.json does not exist" in printed


def test_doctor_asks_several_boards_and_one_that_is_away_stops_no_other(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], board: ssh_board.Board
) -> None:
    code, printed = called(
        monkeypatch, capsys, "doctor", "--on", "board", "--on", "no-such-board.invalid", "--on", "local"
    )
    assert code == 2
    assert "no machine named no-such-board.invalid" in printed
    assert printed.count("numpy") >= 2


def test_two_models_are_compared_on_a_board(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    board: ssh_board.Board,
    model: Path,
    tmp_path: Path,
) -> None:
    told = tmp_path / "told.json"
    options = ("--events", "6", "--event-s", "0.01", "--margin", "0.5", "--on", "board", "--out", str(told))
    code, printed = called(monkeypatch, capsys, "compare", str(model), str(model), *options)
    assert code in (0, 1, 3), printed
    judgement = json.loads(told.read_text())["judgement"]
    assert judgement["outcome"] in ("equal", "cannot_tell", "faster", "slower")
    assert judgement["events"] == 6
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.slow
def test_layers_are_timed_on_a_board_and_judged_here(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    board: ssh_board.Board,
    model: Path,
    tmp_path: Path,
) -> None:
    told = tmp_path / "told.json"
    options = ("--events", "6", "--event-s", "0.01", "--layers", "--on", "board", "--out", str(told))
    code, printed = called(monkeypatch, capsys, "compare", str(model), str(model), *options)
    assert code in (0, 1, 3), printed
    assert "Intervals hold for all layers together" in printed
    (layer,) = json.loads(told.read_text())["layers"]
    assert layer["kind"] == "Relu"
    assert layer["low"] <= layer["ratio"] <= layer["high"]
    assert list(board.home.rglob("relu.onnx"))  # it was the board's copy that ran
