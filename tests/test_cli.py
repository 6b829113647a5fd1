"""What a person sees of the command line that whole runs do not show."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import digits

import deadweight
from deadweight.__main__ import main

COMMANDS = (
    "run",
    "sweep",
    "prune",
    "quantize",
    "profile",
    "compare",
    "gate",
    "lint",
    "targets",
    "doctor",
    "report",
)


def called(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["deadweight", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    printed = capsys.readouterr()
    return int(caught.value.code or 0), printed.out + printed.err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    code, printed = called(monkeypatch, capsys, command, "--help")
    assert code == 0
    assert "Usage: deadweight" in re.sub(r"\x1b\[[0-9;]*m", "", printed)


def test_the_version_is_the_packages(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert called(monkeypatch, capsys, "--version") == (0, f"{deadweight.__version__}\n")


def test_an_unknown_command_is_bad_input(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert called(monkeypatch, capsys, "rnu")[0] == 2


def test_all_boards_are_listed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code, printed = called(monkeypatch, capsys, "targets")
    assert code == 0
    for board in ("x86-cpu", "orin-nano-8gb", "orin-nx-16gb", "agx-orin-64gb", "thor-t5000"):
        assert board in printed


def test_every_fact_of_a_board_has_a_source_and_a_certainty(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, printed = called(monkeypatch, capsys, "targets", "orin-nano-8gb")
    assert code == 0
    for heading in ("fact", "value", "certainty", "source"):
        assert heading in printed


def test_doctor_says_what_works(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code, printed = called(monkeypatch, capsys, "doctor")
    assert code in (0, 1)
    assert "onnxruntime" in printed


def test_a_report_of_nothing_is_bad_input(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, printed = called(monkeypatch, capsys, "report", str(tmp_path))
    assert code == 2
    assert "report.json does not exist" in printed


@pytest.mark.slow
def test_ctrl_c_stops_after_two_seconds_of_work_at_most_and_the_run_goes_on_later(tmp_path: Path) -> None:
    shutil.copy(digits.__file__, tmp_path / "small.py")
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        'workload = "small.py:Digits"\n[[stages]]\nstage = "train"\nepochs = 200\n'
        '[[stages]]\nstage = "export"\n[[stages]]\nstage = "profile"\nevents = 6\nevent_s = 0.02\n'
    )
    command = [sys.executable, "-m", "deadweight", "run", str(recipe), "--out", str(tmp_path / "run")]
    errors = tmp_path / "errors.txt"
    with errors.open("w") as file:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=file)
    while not list(tmp_path.glob("run/stages/train-*.part/checkpoint.safetensors")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    ticks = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    before = sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 130
    # Of its processors' time: other programs do not count.
    assert used.ru_utime + used.ru_stime - before < 2
    assert "a run resumes" in errors.read_text()
    assert subprocess.run(command, capture_output=True, check=False).returncode in (0, 1, 3)


@pytest.mark.parametrize("module", ["resource", "fcntl"])
@pytest.mark.parametrize("command", ["profile", "compare", "gate", "doctor"])
def test_where_there_is_no_unix_the_systems_that_it_needs_are_named(module: str, command: str) -> None:
    program = (
        f"import sys; sys.modules[{module!r}] = None; sys.argv = ['deadweight', {command!r}]\n"
        "from deadweight.__main__ import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"needs Linux or macOS, and this system's Python has no {module}" in done.stderr
    assert "WSL" in done.stderr
    assert "pip install" not in done.stderr
    assert "Traceback" not in done.stderr
