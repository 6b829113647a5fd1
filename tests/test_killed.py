"""A killed run goes on by the same command and ends with the same bits; signals leave nothing behind."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from support import ssh_board
from support.runs import recipe
from support.simulated_board import simulated_board

from deadweight.pipeline.runs.cache import locked
from deadweight.targets.artifact import sha256_of

RECIPE = recipe(
    *(("train", {"epochs": 6}), "statistics", ("prune", {"ratio": 0.5}), ("finetune", {"epochs": 3})),
    *("controls", "export", "quantize", ("profile", {"events": 6, "event_s": 0.05})),
)
STAGES = ("train", "statistics", "prune", "finetune", "controls", "export", "quantize", "profile", "evaluate")
REPRODUCED = (".safetensors", "plan.json", "model.onnx", "ranges.json")
SWEPT = recipe(
    *(("train", {"epochs": 3}), "statistics", ("prune", {"ratio": 0.5}), ("finetune", {"epochs": 1})),
    *("export", "quantize", ("profile", {"events": 6, "event_s": 0.01, "on": "board"})),
    head='target = "orin-nano-8gb"\n[sweep]\nprocesses = 2\nscore_drop = 0.5\n'
    'over."prune.ratio" = [0.25, 0.5]\nover."finetune.epochs" = [1, 2]\n',
)
KILLS, SECONDS = int(os.environ.get("DEADWEIGHT_KILLS", "8")), 12.0


def started(recipe: Path, out: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "deadweight", "run", str(recipe), "--out", str(out)]
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    )


def wait_for(reached: Any, process: subprocess.Popen[bytes]) -> None:
    while not reached():
        assert process.poll() is None, f"it ended before it could be killed: {process.communicate()[1]!r}"
        time.sleep(0.002)


def opened(process: int) -> set[Path]:
    """The files that a process has open."""
    with contextlib.suppress(OSError):
        return {one.readlink() for one in Path(f"/proc/{process}/fd").iterdir()}
    return set()


def alive(session: int) -> list[int]:
    """The processes of a session."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, own = (place / "stat").read_text().rpartition(")")[2].split()[:4]
        except (OSError, ValueError):
            continue
        if int(own) == session and state != "Z":
            found.append(int(place.name))
    return found


def ended_with_all(session: int, seconds: float = 30.0) -> bool:
    """Whether a session has no process any more, within some seconds."""
    until = time.monotonic() + seconds
    while alive(session) and time.monotonic() < until:
        time.sleep(0.1)
    return not alive(session)


def finish(recipe: Path, out: Path) -> None:
    process = started(recipe, out)
    _, errors = process.communicate()
    assert process.returncode in (0, 1, 3), errors.decode()


def kill_when(recipe: Path, out: Path, reached: Any) -> None:
    """Starts the run and kills it as soon as `reached()` says so."""
    process = started(recipe, out)
    wait_for(reached, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()


def finished(out: Path) -> dict[str, int]:
    """When each finished stage was finished, in ns."""
    records = [path for path in out.glob("stages/*/done.json") if path.parent.suffix != ".part"]
    return {path.parent.name: path.stat().st_mtime_ns for path in records}


def reproduced(out: Path) -> dict[str, str]:
    """The hashes of what must be the same in every run."""
    paths = [path for path in out.glob("stages/**/*") if path.name.endswith(REPRODUCED)]
    return {str(path.relative_to(out)): sha256_of(path) for path in paths if ".part" not in str(path)}


@pytest.mark.slow
def test_a_run_killed_in_every_stage_ends_as_one_that_was_left_alone(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE)
    finish(recipe, tmp_path / "alone")

    out = tmp_path / "killed"
    before: dict[str, int] = {}
    for stage in STAGES:
        kill_when(recipe, out, lambda stage=stage: list(out.glob(f"stages/{stage}-*.part")))
        now = finished(out)
        assert {name: now[name] for name in before} == before, "a finished stage ran again"
        assert stage not in {name.rpartition("-")[0] for name in now}
        before = now
    kill_when(recipe, out, lambda: len(finished(out)) == len(STAGES))
    before = finished(out)
    finish(recipe, out)

    assert finished(out) == before
    assert reproduced(out) == reproduced(tmp_path / "alone")
    one, other = (json.loads((place / "report.json").read_text()) for place in (tmp_path / "alone", out))
    assert [row["name"] for row in one["rows"]] == [row["name"] for row in other["rows"]]
    assert [row["score"] for row in one["rows"]] == [row["score"] for row in other["rows"]]
    assert one.keys() == other.keys()
    assert [stage["cached"] for stage in other["stages"]] == [True] * len(STAGES)


@pytest.mark.slow
@pytest.mark.skipif(ssh_board.SSHD is None, reason="there is no sshd here: apt install openssh-server")
def test_a_run_with_sweep_int8_and_board_killed_at_any_moments_ends_as_one_that_was_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEADWEIGHT_SSH_CONFIG", str(simulated_board(tmp_path, "10.3.0").config))
    recipe, drawn = tmp_path / "recipe.toml", random.Random(5)
    recipe.write_text(SWEPT)
    finish(recipe, tmp_path / "alone")
    assert len(list((tmp_path / "alone").glob("stages/train-*"))) == 1  # the sweep's stages are the run's
    kept = json.loads((tmp_path / "alone" / "report.json").read_text())
    killed: list[str] = []
    runs = 0
    while len(killed) < KILLS:
        runs += 1
        out = tmp_path / f"killed-{runs}"
        while len(killed) < KILLS:
            process = started(recipe, out)
            wait_for(lambda process=process, out=out: out / ".lock" in opened(process.pid), process)
            try:
                process.communicate(timeout=drawn.uniform(0, SECONDS))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.communicate()
                ahead = time.time() + 3600  # as if the clock had been set back by an hour
                for path in out.rglob("*"):
                    os.utime(path, times=(ahead, ahead), follow_symlinks=False)
                parts = sorted(path.name.rpartition("-")[0] for path in out.glob("stages/*.part"))
                killed.append("+".join(parts) or "between stages")
            else:
                assert process.returncode in (0, 1, 3)
                break
        finish(recipe, out)
        assert reproduced(out) == reproduced(tmp_path / "alone")
        report = json.loads((out / "report.json").read_text())
        for name in ("sweep", "budgets"):
            assert report.get(name) == kept.get(name)
        for one, other in zip(report["rows"], kept["rows"], strict=True):
            assert (one["name"], one["score"], one["engine_score"]) == (
                other["name"],
                other["score"],
                other["engine_score"],
            )
        assert not list(out.rglob(".writing-*"))
    print(f"{KILLS} kills in {runs} runs: {', '.join(killed)}")


FULL = """
mount -t tmpfs -o size=64m none {out} && cp -a {kept}/. {out}/ || exit 99
dd if=/dev/zero of={out}/filler bs=4096 2>/dev/null; truncate -s -{left} {out}/filler
{python} -m deadweight run {recipe} --out {out} >/dev/null; code=$?
rm {out}/filler; cp -a {out}/. {back}/; exit $code
"""


@pytest.mark.slow
def test_a_disk_that_is_full_in_any_stage_is_said_and_the_same_command_goes_on(tmp_path: Path) -> None:
    if subprocess.run(["unshare", "--map-root-user", "--mount", "true"], check=False).returncode:
        pytest.skip("this machine allows no mount namespaces")
    recipe, alone = tmp_path / "recipe.toml", tmp_path / "run"
    recipe.write_text(RECIPE)
    finish(recipe, alone)
    whole = reproduced(alone)
    order = finished(alone)
    shutil.copytree(alone, tmp_path / "whole")
    made = sorted((tmp_path / "whole").glob("stages/*"), key=lambda path: order[path.name])
    assert len(made) == len(STAGES)
    for count in range(len(made) + 1):
        for left in (0, 8192):
            kept, back = (tmp_path / f"{name}-{count}-{left}" for name in ("kept", "back"))
            for stage in made[:count]:
                shutil.copytree(stage, kept / "stages" / stage.name)
            kept.mkdir(exist_ok=True)
            back.mkdir()
            shutil.rmtree(alone)
            alone.mkdir()
            values = {"out": alone, "kept": kept, "back": back, "left": left, "recipe": recipe}
            script = FULL.format(**values, python=sys.executable)
            wrapped = ["unshare", "--map-root-user", "--mount", "bash", "-c", script]
            done = subprocess.run(wrapped, capture_output=True, text=True, check=False)
            which = f"with {count} stages finished and {left} bytes free: {done.stderr}"
            assert done.returncode == 2, which
            assert "pace left on" in done.stderr, which
            assert "What to do" in done.stderr, which
            assert "Traceback" not in done.stderr, which
            alone.rmdir()
            back.rename(alone)
            assert {stage.name for stage in made[:count]} <= set(finished(alone))
    finish(recipe, alone)
    assert reproduced(alone) == whole


@pytest.mark.slow
def test_of_two_runs_at_once_in_one_folder_one_ends_and_the_other_is_as_if_alone(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE)
    finish(recipe, tmp_path / "alone")
    both = [started(recipe, tmp_path / "both") for _ in range(2)]
    said = [process.communicate()[1].decode() for process in both]
    (loser,) = [at for at, process in enumerate(both) if process.returncode == 2]
    assert "Another run is active in" in said[loser]
    assert both[1 - loser].returncode in (0, 1, 3)
    assert reproduced(tmp_path / "both") == reproduced(tmp_path / "alone")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGKILL])
def test_a_signal_ends_a_sweep_and_leaves_no_process_no_half_written_file_and_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    recipe, out = tmp_path / "recipe.toml", tmp_path / "run"
    recipe.write_text(SWEPT.replace('on = "board"', "memory = false").replace("[1, 2]", "[300, 301]"))
    process = started(recipe, out)
    while not list(out.glob("stages/finetune-*.part/*")):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    assert len(alive(process.pid)) > 2
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert ended_with_all(process.pid)
    if number == signal.SIGKILL:  # the next run deletes what it has half written
        return
    assert process.returncode == 128 + number
    assert b"Traceback" not in errors
    assert not list(out.rglob(".writing-*"))
    left = [path.name for path in (tmp_path / "temporary").iterdir()]
    assert not [name for name in left if not name.startswith("torchinductor_")]
    with locked(out):
        pass
