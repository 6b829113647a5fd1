"""docs/first_minutes.md: every command in its order, on a simulated board, or a real one with --on USER@HOST.

On a real board it prints a table, and the board's own facts, to send to us.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from support import ssh_board
from support.simulated_board import simulated_board
from test_readme import ROOT, checkout

PAGE = (ROOT / "docs" / "first_minutes.md").read_text("utf-8")
LINES = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
GOOD = {"run": (0, 1, 3), "compare": (0, 1, 3), "memory": (0, 1, 3), "gate": (0, 1, 3), "doctor": (0, 1)}
"""The exit codes that are an answer, by command; 0 alone for all others."""


@dataclass(frozen=True)
class Ran:
    command: str
    code: int
    seconds: float
    said: str
    """All that it printed, in one line."""

    @property
    def good(self) -> bool:
        return self.code in GOOD.get(shlex.split(self.command)[1], (0,)) and "Traceback" not in self.said


def ran(line: str, folder: Path, environment: Mapping[str, str]) -> Ran:
    words = shlex.split(line)
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", *words],
        cwd=folder,
        env={**os.environ, "COLUMNS": "160", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    said = " ".join(re.sub("[\u2500-\u257f]", " ", done.stdout + done.stderr).split())  # no frames of tables
    return Ran(line, done.returncode, time.monotonic() - started, said)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "checkout"
    place.mkdir()
    return checkout(place)


@pytest.mark.slow
@pytest.mark.skipif(ssh_board.SSHD is None, reason="there is no sshd here: apt install openssh-server")
def test_every_command_of_the_page_works_on_a_simulated_board(tmp_path: Path, folder: Path) -> None:
    config = simulated_board(tmp_path, "10.3.0").config
    found = {}
    for line in LINES:
        one = ran(line.replace("user@board", "board"), folder, {"DEADWEIGHT_SSH_CONFIG": str(config)})
        assert one.good, f"{line} ended with {one.code}:\n{one.said[-3000:]}"
        found[" ".join(shlex.split(line)[1:3])] = one
    judged = [one for name, one in found.items() if name.split()[0] in ("run", "compare", "gate")]
    assert [one.code for one in judged] == [3, 3, 0, 3]  # simulated times give no verdict; recording is none
    for one in (found["run examples/fashion_mnist/digits.toml"], judged[1], judged[-1]):
        assert "imulated on the GPU" in one.said
        assert "by TensorRT 10.3.0" in one.said
        assert "INT8 and FP16" in one.said
    assert "on the board" in judged[0].said  # the engine's own score
    assert "built before, and not again: baseline, candidate" in judged[1].said
    assert (folder / "int8.plan.json").is_file()
    assert (folder / "my_board.toml").is_file()


@pytest.mark.jetson
def test_every_command_of_the_page_works_on_the_board(
    board: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    every = [ran(line.replace("user@board", shlex.quote(board)), folder, {}) for line in LINES]
    with capsys.disabled():
        print(f"\n\nPlease send us this table. deadweight on {board}:\n")
        print("| command | exit | seconds | the end of what it said |\n| --- | --- | --- | --- |")
        for one in every:
            end = one.said[-240:].replace("|", "/")
            print(
                f"| {one.command} | {one.code}{'' if one.good else ' (wrong)'} | {one.seconds:.0f} | {end} |"
            )
        facts = folder / "my_board.toml"
        print(f"\n{facts.read_text() if facts.is_file() else 'The board gave no facts.'}")
    assert [one.command for one in every if not one.good] == []
