"""Power modes of a fake board, whose nvpmodel stores the mode as NVIDIA's does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.boards import put

from deadweight.targets.errors import TargetError
from deadweight.targets.machine.power_modes import power_mode_ids, power_mode_kept

MODES = "< POWER_MODEL ID=0 NAME=15W >\n< POWER_MODEL ID=1 NAME=25W >\n< POWER_MODEL ID=2 NAME=MAXN >\n"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    put(tmp_path, "etc/nvpmodel.conf", MODES)
    put(tmp_path, "var/lib/nvpmodel/status", "pmode:0001")
    status = tmp_path / "var/lib/nvpmodel/status"
    put(tmp_path, "usr/sbin/nvpmodel", f'#!/bin/sh\nprintf "pmode:%04d" "$2" > {status}\n').chmod(0o755)
    put(tmp_path, "bin/sudo", '#!/bin/sh\nshift\nexec "$@"\n').chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    return tmp_path


def mode(root: Path) -> str:
    return (root / "var/lib/nvpmodel/status").read_text()


def test_a_mode_is_set_and_the_one_of_before_is_set_back(root: Path) -> None:
    assert power_mode_ids(root, ["MAXN", "15W"]) == {"MAXN": 2, "15W": 0}
    with power_mode_kept(root) as set_mode:
        set_mode(2)
        assert mode(root) == "pmode:0002"
    assert mode(root) == "pmode:0001"


def test_after_a_reboot_the_mode_of_the_first_start_is_set_back(root: Path) -> None:
    with power_mode_kept(root, 0):
        assert mode(root) == "pmode:0001"
    assert mode(root) == "pmode:0000"


def test_an_error_sets_it_back_too(root: Path) -> None:
    with pytest.raises(ZeroDivisionError), power_mode_kept(root) as set_mode:
        set_mode(2 // int(mode(root) == "pmode:0000"))
    assert mode(root) == "pmode:0001"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_process_leaves_the_mode_of_before(root: Path, number: signal.Signals) -> None:
    code = (
        "import sys, time; from pathlib import Path\n"
        "from deadweight.targets.machine.power_modes import power_mode_kept\n"
        "with power_mode_kept(Path(sys.argv[1])) as set_mode:\n"
        "    set_mode(2); print('set', flush=True); time.sleep(60)\n"
    )
    command = [sys.executable, "-c", code, str(root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"set\n"
        assert mode(root) == "pmode:0002"
        process.send_signal(number)
        process.wait()
    until = time.monotonic() + 10
    while mode(root) != "pmode:0001" and time.monotonic() < until:
        time.sleep(0.01)
    assert mode(root) == "pmode:0001"


def test_an_unknown_mode_is_refused_with_those_that_there_are(root: Path) -> None:
    with pytest.raises(TargetError, match="no power mode '30W'") as caught:
        power_mode_ids(root, ["30W"])
    assert "15W" in caught.value.cure


def test_without_permission_the_reason_and_a_cure_are_given(root: Path) -> None:
    put(root, "usr/sbin/nvpmodel", "#!/bin/sh\necho NVPM ERROR: Permission denied >&2\nexit 1\n")
    with pytest.raises(TargetError, match="Permission denied") as caught, power_mode_kept(root) as set_mode:
        set_mode(2)
    assert "as root" in caught.value.cure
    assert mode(root) == "pmode:0001"


def test_a_mode_that_is_not_known_is_not_changed(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="could not be set back"), power_mode_kept(tmp_path):
        pass
