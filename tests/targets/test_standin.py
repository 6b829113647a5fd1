"""The whole way to a board, on an arm64 system under emulation: run, cut, resume, sign, install.

`make test-board` installs what it needs. Nothing here is a latency: times are reported as emulated.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import arm64_board, digits, runs, ssh_board, trtexec
from support.boards import unpack
from support.onnx_files import weights_model
from support.releases import make_key, make_release, network, trust

import deadweight
import deadweight.targets
from deadweight.export.coding.container import pack
from deadweight.export.release.delta import delta
from deadweight.pipeline.budget.table import load_table
from deadweight.targets.errors import RefusedError, TargetError
from deadweight.targets.remote.board import doctor_on, install_on, rollback_on, time_on
from deadweight.targets.remote.on_board import ready_on
from deadweight.targets.remote.ssh import connected
from deadweight.targets.timing.measurement import Protocol

MakeMlp = Callable[..., Path]

pytestmark = [
    pytest.mark.board,
    pytest.mark.skipif(bool(arm64_board.missing()), reason=f"no stand-in: {arm64_board.missing()}"),
]


@pytest.fixture
def board(tmp_path: Path) -> ssh_board.Board:
    return arm64_board.make_board(tmp_path / "board")


def test_the_agent_answers_on_arm64_and_says_that_it_is_emulated(
    board: ssh_board.Board, mlp: MakeMlp
) -> None:
    with connected("board", config=board.config) as there:
        checks, _ = doctor_on(there)
        found = {check.name: check for check in checks}
        assert found["processor"].found == "aarch64, emulated"
        assert found["numpy"].works
        timed = time_on(there, ready_on(there, {"a": mlp(8, 8)}), protocol=Protocol(events=6, event_s=0.01))
    assert timed.measurements["a"].evidence == "emulated"
    assert timed.measurements["a"].conditions["machine"]["architecture"] == "aarch64"


def test_a_boards_files_are_read_on_arm64_too(board: ssh_board.Board) -> None:
    unpack("orin_nano_super_jp72", board.place / "upper/board-root")
    with connected("board", config=board.config) as there:
        _, result = there.run(["--root", "/board-root", "doctor"])
    found = {check["name"]: check["found"] for check in result["checks"]}
    assert "JetPack 7.2.1 (L4T 39.2.1)" in found["board"]
    assert found["power mode"] == "25W (mode 1)"


def test_a_thousand_random_tensors_are_unpacked_on_arm64_bit_for_bit(board: ssh_board.Board) -> None:
    generator = np.random.default_rng(0)
    home = board.place / "upper/opt/codec"
    home.mkdir(parents=True)
    shutil.copytree(Path(deadweight.targets.__file__).parent, home / "targets")
    expected = {}
    for number in range(20):
        weights = {f"t{one}": random_tensor(generator) for one in range(50)}
        data = weights_model(weights, raw=bool(number % 3)).SerializeToString()
        (home / f"{number}.dwz").write_bytes(pack(data, Path(f"{number}.onnx")))
        expected[f"{number}.dwz"] = hashlib.sha256(data).hexdigest()
    code = (
        "import hashlib, json, pathlib, platform, sys; sys.path.insert(0, '/opt/codec')\n"
        "from targets.coded.container import unpack\n"
        "sums = {one.name: hashlib.sha256(unpack(one.read_bytes())).hexdigest()"
        " for one in pathlib.Path('/opt/codec').glob('*.dwz')}\n"
        "print(json.dumps([platform.machine(), sums]))"
    )
    command = [sys.executable, arm64_board.__file__, str(board.place), "/usr/bin/python3", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == ["aarch64", expected]


def random_tensor(generator: np.random.Generator) -> Any:
    """Of any type and shape: few values or many, with zeros among them or without."""
    kind = generator.choice(["float32", "float16", "float64", "int8", "uint8", "int32", "int64"])
    shape = generator.integers(1, 12, generator.integers(0, 5))
    values = generator.integers(-120, 120, generator.integers(1, 200)) * generator.choice([1, 0.37])
    drawn = generator.choice(values, shape) * (generator.random(shape) < generator.choice([0.05, 0.5, 1]))
    return np.asarray(drawn).astype(kind)


def test_a_bundle_is_verified_by_the_boards_own_list_and_installed(
    board: ssh_board.Board, tmp_path: Path
) -> None:
    key = make_key(tmp_path / "keys")
    trust(key, board.place / "upper")
    with connected("board", config=board.config) as there:
        first, second = (make_release(tmp_path / str(number), key, number) for number in (1, 2))
        for source in (first, delta(first, second, tmp_path / "1to2").path):
            result = install_on(there, source)
            assert result["golden"]["holds"]
        current = board.place / "upper" / result["path"].lstrip("/")
        assert (current / "model.onnx").read_bytes() == network(2)
        assert result["signer"] == "release"
        bad = make_release(tmp_path / "bad", key, 3)
        (bad / "model.onnx").write_bytes(b"changed")
        with pytest.raises(RefusedError, match="was changed after it was signed"):
            install_on(there, bad)
        other = make_release(tmp_path / "other", make_key(tmp_path / "keys", "mallory"), 3)
        with pytest.raises(RefusedError, match="not trusted here"):
            install_on(there, other)
        with pytest.raises(RefusedError, match="release 2 was accepted here before"):
            install_on(there, first)
        assert (current / "model.onnx").read_bytes() == network(2)
        rollback_on(there, "small")
        assert (current / "model.onnx").read_bytes() == network(1)


def test_a_run_whose_cable_is_cut_at_five_points_is_finished_by_the_same_command(
    board: ssh_board.Board, tmp_path: Path
) -> None:
    shutil.copy(digits.__file__, tmp_path / "small.py")
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        'workload = "small.py:Digits"\n[[stages]]\nstage = "train"\nepochs = 2\n'
        '[[stages]]\nstage = "statistics"\n[[stages]]\nstage = "prune"\nratio = 0.5\n'
        '[[stages]]\nstage = "export"\n'
        '[[stages]]\nstage = "profile"\nevents = 6\nevent_s = 0.05\nmemory = false\n'
    )
    command = [sys.executable, "-m", "deadweight", "run", str(recipe), "--out", str(tmp_path / "run")]
    environment = {**os.environ, "DEADWEIGHT_SSH_CONFIG": str(board.config)}

    def run() -> tuple[int, str]:
        done = subprocess.run(
            [*command, "--on", "board"], env=environment, capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout + done.stderr

    def cut_while_timing() -> None:
        lock = board.place / "upper/home/board/.cache/deadweight/measuring.lock"
        while not lock.exists():
            time.sleep(0.05)
        board.cut_now()

    cuts: list[tuple[str, Callable[[], object]]] = [
        ("broke while connecting", lambda: board.cut_after(40)),
        ("broke while sending the agent", lambda: board.cut_after(60_000)),
        ("broke while", lambda: board.cut_after(12_000)),  # the files are small: their names, or they
        ("broke while running profile", threading.Thread(target=cut_while_timing).start),
        ("broke while running profile", lambda: board.cut_after(received=10_000)),
    ]
    for words, cut in cuts:
        board.reconnect()
        cut()
        code, printed = run()
        assert code == 2, f"{words}: {printed}"
        assert words in printed, printed
        assert "Traceback" not in printed
    board.reconnect()
    code, printed = run()
    assert code == 3, printed
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert report["verdict"]["outcome"] == "cannot_tell"
    assert report["conditions"]["machine"]["architecture"] == "aarch64"
    assert (tmp_path / "run/report.html").exists()


def test_a_table_is_cut_and_goes_on_and_its_emulated_times_prove_nothing(
    board: ssh_board.Board, mlp: MakeMlp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEADWEIGHT_SSH_CONFIG", str(board.config))
    model, path = mlp(16, 24, 4), tmp_path / "t.json"

    def cut(done: int, total: int, what: str) -> None:
        if done and what == "table: seconds":
            board.cut_after(received=3000)
            board.cut_now()

    with pytest.raises(TargetError):
        deadweight.table(model, networks=16, held_out=0, on="board", out=path, progress=cut)
    before = load_table(path)
    assert before.seconds
    assert not before.networks
    board.reconnect()
    made = deadweight.table(model, networks=16, held_out=0, on="board", out=path)
    assert made.exit_code == 3
    assert made.table.conditions.evidence == "emulated"
    assert {key: made.table.seconds[key] for key in before.seconds} == before.seconds
    assert deadweight.advise(model, table=path).exit_code == 3


def with_trtexec(board: ssh_board.Board) -> None:
    """Gives the board the stand-in for trtexec: no TensorRT in its Python, but a program that builds engines,
    times them and computes outputs."""
    programs = board.place / "upper/usr/src/tensorrt/bin"
    shutil.copytree(Path(trtexec.__file__).parent, programs / "support", ignore=shutil.ignore_patterns("__*"))
    (programs / "support/__init__.py").touch()
    program = trtexec.stand_in(programs)
    program.write_text(
        program.read_text()
        .replace(f"#!{sys.executable}", "#!/usr/bin/python3")
        .replace(repr(str(Path(trtexec.__file__).parents[1])), repr("/usr/src/tensorrt/bin"))
    )


def test_two_files_become_engines_there_and_a_verdict_that_is_none(
    board: ssh_board.Board, mlp: MakeMlp, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with_trtexec(board)
    monkeypatch.setenv("DEADWEIGHT_SSH_CONFIG", str(board.config))
    monkeypatch.setenv("COLUMNS", "200")
    original, small = mlp(64, 256, 10, name="original.onnx"), mlp(64, 32, 10, name="small.onnx")
    said = []
    for _ in range(2):
        assert runs.exit_code("compare", original, small, "--on", "board") == 3
        said.append(" ".join(capsys.readouterr().out.split()))
    for each in said:
        assert "simulated on the GPU by trtexec 10.3.0, FP16, batch 1" in each
        assert "cannot tell: the times are simulated" in each
    assert "built before, and not again: baseline, candidate" in said[1]
    assert runs.exit_code("profile", small, "--on", "board", "--events", 2) == 0
    assert (
        runs.exit_code(
            "gate", "--record", "--model", small, "--baseline", small.with_suffix(".json"), "--on", "board"
        )
        == 0
    )
    assert (
        runs.exit_code("gate", "--model", small, "--baseline", small.with_suffix(".json"), "--on", "board")
        == 3
    )
    assert runs.exit_code("memory", small, "--on", "board") in (0, 3)


def test_a_run_scores_and_times_engines_that_are_built_once(
    board: ssh_board.Board,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with_trtexec(board)
    monkeypatch.setenv("DEADWEIGHT_SSH_CONFIG", str(board.config))
    monkeypatch.setenv("COLUMNS", "160")
    text = runs.recipe(
        *(("train", {"epochs": 2}), "statistics", ("prune", {"ratio": 0.5}), "export", "quantize"),
        ("profile", {"events": 2, "event_s": 0.01, "memory": False}),
        workload="mine.py:Mine",
        head='target = "orin-nano-8gb"\n',
    )
    project = runs.project_of(tmp_path, text)
    with (project / "small.py").open("a") as workload:  # one process of trtexec a network, not six
        workload.write('PARTS["test"] = slice(1400, 1464)\n')
    code, report = runs.run(project, "--on", "board")
    said = " ".join(capsys.readouterr().out.split())
    assert code == 3, said
    assert report["conditions"]["machine"]["architecture"] == "aarch64"
    assert "Simulated on the GPU by trtexec 10.3.0" in said
    assert re.search("on the .*board", said)  # the title of the engine's score, in two lines
    rows = {row["name"]: row for row in report["rows"]}
    assert set(rows) == {"original", "pruned", "int8"}
    for row in rows.values():  # the stand-in computes with ONNX Runtime: an engine scores as its file does
        assert row["engine_score"] == pytest.approx(row["score"], abs=0.02)
    plans = {path: path.stat().st_mtime_ns for path in board.home.rglob("engines/*/*.plan")}
    assert len(plans) == 2 * len(rows)  # those for the scores have another batch
    code, report = runs.run(project, "--on", "board", "--set", "profile.events=3")
    assert code == 3
    assert report["verdict"]["outcome"] == "cannot_tell"
    assert {path: path.stat().st_mtime_ns for path in board.home.rglob("engines/*/*.plan")} == plans
    assert "built before, and not again" in " ".join(capsys.readouterr().err.split())
