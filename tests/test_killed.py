"""kill -9 at ten moments, one in every stage: the same command goes on, and ends with the same bits."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from support.runs import recipe

from deadweight.targets.artifact import sha256_of

RECIPE = recipe(
    *(("train", {"epochs": 6}), "statistics", ("prune", {"ratio": 0.5}), ("finetune", {"epochs": 3})),
    *("controls", "export", "quantize", ("profile", {"events": 6, "event_s": 0.05})),
)
STAGES = ("train", "statistics", "prune", "finetune", "controls", "export", "quantize", "profile", "evaluate")
REPRODUCED = (".safetensors", "plan.json", "model.onnx", "ranges.json")


def started(recipe: Path, out: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "deadweight", "run", str(recipe), "--out", str(out)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(recipe: Path, out: Path) -> None:
    process = started(recipe, out)
    _, errors = process.communicate()
    assert process.returncode in (0, 1, 3), errors.decode()


def kill_when(recipe: Path, out: Path, reached: Any) -> None:
    """Starts the run and kills it as soon as `reached()` says so."""
    process = started(recipe, out)
    while not reached():
        assert process.poll() is None, f"it ended before it could be killed: {process.communicate()[1]!r}"
        time.sleep(0.002)
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
