"""`deadweight table` and `advise` as a user types them, here and on a board behind ssh."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from support import ssh_board
from support.onnx_files import save_mlp
from support.runs import exit_code

QUICK = ("--networks", "16", "--held-out", "4")


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small MLP, in the folder that the commands run in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    return save_mlp(tmp_path / "m.onnx", 32, 40, 24, 4)


def test_a_file_alone_gets_a_table_a_page_and_advice(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("table", model, *QUICK) == 0
    printed = capsys.readouterr()
    assert "timings are left, of" in printed.err
    for words in (
        "error of 4 networks, median / 90 % / largest",
        "timed again",
        "stated interval",
        "free up to",
    ):
        assert words in printed.out
    page = Path("m.table.html").read_text()
    assert "Time over the width of" in page
    assert json.loads(Path("m.table.json").read_text())["conditions"]["runtime"] == "onnxruntime"
    assert exit_code("advise", model, "--table", "m.table.json") == 0
    assert "ms predicted" in capsys.readouterr().out


def test_advice_by_the_table_of_another_network_is_refused(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code("table", model, *QUICK, "--held-out", "0") == 0
    save_mlp(Path("other.onnx"), 32, 48, 24, 4)
    assert exit_code("advise", "other.onnx", "--table", "m.table.json") == 2
    said = capsys.readouterr().err
    assert "is not the network of the table" in said
    assert "deadweight table other.onnx" in said


@pytest.mark.slow
@pytest.mark.skipif(ssh_board.SSHD is None, reason="there is no sshd here: apt install openssh-server")
def test_a_table_on_a_board_is_refused_where_the_machine_is_another(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    board = ssh_board.make_board(tmp_path / "board", python=str(Path(sys.executable).parent))
    monkeypatch.setenv("DEADWEIGHT_SSH_CONFIG", str(board.config))
    assert exit_code("table", model, *QUICK, "--on", "board") == 0
    assert exit_code("advise", model, "--table", "m.table.json", "--on", "board") == 0
    changed = json.loads(Path("m.table.json").read_text())
    changed["conditions"]["processor"] = "another CPU"
    Path("m.table.json").write_text(json.dumps(changed))
    assert exit_code("advise", model, "--table", "m.table.json", "--on", "board") == 2
    assert "the processor is another CPU there and" in capsys.readouterr().err


def test_a_board_that_is_named_twice_is_refused(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("table", model, *QUICK, "--on", "one", "--on", "two", "--on", "one") == 2
    assert "The board one is named twice" in capsys.readouterr().err
