"""What a person sees of updates: the file that is sent, what is refused, and the way back."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.releases import make_key, make_release, release_in_use, trust

from deadweight.__main__ import main
from deadweight.export.release.delta import delta

Patcher = pytest.MonkeyPatch
Capture = pytest.CaptureFixture[str]


def called(monkeypatch: Patcher, capsys: Capture, *arguments: object) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["deadweight", *map(str, arguments)])
    monkeypatch.setenv("COLUMNS", "160")
    with pytest.raises(SystemExit) as caught:
        main()
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    return int(caught.value.code or 0), printed.out + printed.err


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return make_key(tmp_path / "keys")


@pytest.fixture
def pair(tmp_path: Path, key: Path) -> tuple[Path, Path]:
    one, two = (make_release(tmp_path / str(number), key, number) for number in (1, 2))
    return one, two


def test_a_patch_is_written_and_held_against_its_budget(
    monkeypatch: Patcher, capsys: Capture, tmp_path: Path, pair: tuple[Path, Path]
) -> None:
    out = tmp_path / "patch"
    code, printed = called(monkeypatch, capsys, "delta", *pair, "-o", out)
    size = out.stat().st_size
    assert code == 0
    assert f"{size:,} bytes for" in printed
    assert called(monkeypatch, capsys, "delta", *pair, "--out", out, "--ota-bytes", size)[0] == 0
    code, printed = called(monkeypatch, capsys, "delta", *pair, "--out", out, "--ota-bytes", size - 1)
    assert code == 1
    assert "Over the budget" in printed
    assert called(monkeypatch, capsys, "delta", pair[1], "-o", tmp_path / "whole")[0] == 0


def test_an_update_file_is_verified(
    monkeypatch: Patcher, capsys: Capture, tmp_path: Path, pair: tuple[Path, Path], key: Path
) -> None:
    signers = trust(key, tmp_path / "root")
    for bundles, words in ((pair, "It starts from"), (pair[1:], "needs no release to start from")):
        out = tmp_path / "update"
        called(monkeypatch, capsys, "delta", *bundles, "-o", out)
        code, printed = called(monkeypatch, capsys, "verify", out, "--signers", signers)
        assert code == 0
        assert "Release 2; 4 files, for x86-cpu" in printed
        assert words in printed
    out.write_bytes(out.read_bytes()[:-1])
    code, printed = called(monkeypatch, capsys, "verify", out, "--signers", signers)
    assert code == 1
    assert "is damaged or truncated" in printed


def test_the_releases_day_is_shown_and_a_past_one_refused(
    monkeypatch: Patcher, capsys: Capture, tmp_path: Path, key: Path
) -> None:
    signers = trust(key, tmp_path / "root")
    for day, code, words in (("2999-01-02", 0, "until 2999-01-02"), ("2026-01-02", 1, "expired at 2026")):
        bundle = make_release(tmp_path / day, key, 1, expires=f"{day}T23:59:59+00:00")
        found, printed = called(monkeypatch, capsys, "verify", bundle, "--signers", signers)
        assert (found, words in printed) == (code, True), printed


def test_wrong_bundles_are_bad_input(
    monkeypatch: Patcher, capsys: Capture, tmp_path: Path, pair: tuple[Path, Path]
) -> None:
    for bundles, words in (
        ((pair[1], pair[0]), "is not newer than"),
        ((*pair, pair[0]), "3 bundles were given"),
        ((tmp_path / "none",), "is not a signed bundle"),
    ):
        code, printed = called(monkeypatch, capsys, "delta", *bundles, "-o", tmp_path / "patch")
        assert code == 2
        assert words in printed
    assert not (tmp_path / "patch").exists()
    for command in ("verify", "install"):
        code, printed = called(monkeypatch, capsys, command, tmp_path / "none")
        assert code == 2
        assert "does not exist" in printed


def test_a_machine_that_trusts_nobody_takes_nothing(
    monkeypatch: Patcher, capsys: Capture, tmp_path: Path, pair: tuple[Path, Path]
) -> None:
    if Path("/etc/deadweight/allowed_signers").exists():
        pytest.skip("this machine trusts somebody")
    place = tmp_path / "place"
    code, printed = called(monkeypatch, capsys, "install", pair[0], "--place", place)
    assert code == 1
    assert "trusts no signer yet" in printed
    code, printed = called(monkeypatch, capsys, "rollback", "small", "--place", place)
    assert code == 2
    assert "No bundle named 'small'" in printed


# The commands ask this machine's own list of signers. In a mount namespace of its own it has another one.
_TRUSTING = """
mount -t tmpfs none "$1" && mkdir "$1/upper" "$1/work" && cp -r "$2/etc/deadweight" "$1/upper/" &&
mount -t overlay -o "lowerdir=/etc,upperdir=$1/upper,workdir=$1/work" none /etc || exit 77
shift 2
for command in "$@"; do echo "--- $command"; $command; echo "exit code $?"; done
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a process another /etc")
def test_releases_are_installed_patched_and_rolled_back_by_command(
    tmp_path: Path, pair: tuple[Path, Path], key: Path
) -> None:
    trust(key, tmp_path / "root")
    (tmp_path / "etc").mkdir()
    patch = delta(pair[0], pair[1], tmp_path / "patch").path
    run, place = f"{sys.executable} -m deadweight", f"--place {tmp_path / 'place'}"
    commands = [
        f"{run} install {pair[0]} {place}",
        f"{run} install {patch} {place}",
        f"{run} rollback small --if-wrong {place}",
        f"{run} rollback small {place}",
        f"{run} install {pair[0]} {place}",
    ]
    shell = ["unshare", "-m", "sh", "-c", _TRUSTING, "sh", str(tmp_path / "etc"), str(tmp_path / "root")]
    environment = {**os.environ, "COLUMNS": "400", "NO_COLOR": "1"}
    done = subprocess.run([*shell, *commands], capture_output=True, text=True, check=False, env=environment)
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip(f"no mount namespace here: {done.stderr.strip()[:200]}")
    first, second, third, fourth, fifth = (done.stdout + done.stderr).split("--- ")[1:6]
    assert "In use: small release 1" in first
    assert "Its outputs are those expected (0 % off, 1 % allowed), by onnxruntime" in first
    assert "In use: small release 2" in second
    assert "(deadweight rollback small)" in second
    assert "Nothing to do" in third
    assert "In use: small release 1" in fourth
    assert [part.split("exit code ")[1][0] for part in (first, second, third, fourth, fifth)] == [*"00001"]
    assert "release 2 was accepted here before" in done.stderr
    assert release_in_use(tmp_path / "place", tmp_path / "root") == 1
