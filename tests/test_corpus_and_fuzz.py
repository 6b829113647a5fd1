"""The two scripts that try strangers' files: what they count is what happened."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import onnx
import pytest
from support.releases import network, packed

from benchmarks.common.worker import Outcome, Worker
from benchmarks.corpus.corpus import broken_bound, joined, measure
from benchmarks.corpus.models import Model
from benchmarks.fuzz.fuzz import kinds, one_try
from benchmarks.fuzz.kind import Kind
from benchmarks.fuzz.mutations import changed
from deadweight.targets.errors import ModelError

FUZZ = Path(__file__).parent.parent / "benchmarks" / "fuzz" / "fuzz.py"


def job(what: str) -> str:
    """A job that ends as its argument says."""
    if what == "refused":
        raise ModelError("It is wrong.", "Make it right.")
    if what == "traceback":
        raise KeyError("a bug")
    if what == "obeyed":
        os.write(1, b"a line\n::error::planted\n")
    while what == "hung":
        pass
    if what == "killed":
        os.abort()
    return what


def test_a_worker_tells_how_each_job_ended_and_goes_on_after_a_hang_and_a_crash() -> None:
    worker = Worker(__name__, "job", limit_s=1)
    wanted = ("done", "refused", "traceback", "obeyed", "hung", "killed", "done")
    try:
        assert tuple(worker.ask(what).kind for what in wanted) == wanted
    finally:
        worker.stop()


@pytest.mark.parametrize("name", ["a.onnx", "a.json", "a.toml", "a.npz", "a.bin"])
def test_a_change_is_the_same_for_the_same_seed_and_most_often_changes_something(name: str) -> None:
    data = {"a.onnx": network(1), "a.npz": packed(x=np.zeros((2, 3), np.float32))}.get(
        name, b'{"a": [1, 2], "b": "c"}'
    )
    made = [changed(name, data, Random(seed)) for seed in range(40)]
    assert made == [changed(name, data, Random(seed)) for seed in range(40)]
    assert sum(one != data for one in made) > 30


def test_every_kind_that_the_fuzz_reads_has_tries_that_end_well() -> None:
    command = [sys.executable, str(FUZZ), "--seed", "0", "--tries", "3", "--kind", "nvpmodel, jetson_clocks"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "| nvpmodel, jetson_clocks | 3 |" in done.stdout
    assert len(kinds()) > 20


def test_a_try_that_reads_outside_of_its_folder_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(folder: Path, random: Random) -> None:
        (folder / "../outside/secret").read_bytes()

    where = Path.cwd()
    monkeypatch.setitem(kinds(), "reaching out", Kind(1, lambda place: [{"a.txt": b"x"}], read))
    with pytest.raises(AssertionError, match="outside"):
        one_try((0, 0, "reaching out"))
    os.chdir(where)


@pytest.mark.slow
def test_a_model_goes_through_the_commands_and_its_noise_is_computed_apart(tmp_path: Path) -> None:
    path = tmp_path / "float.onnx"
    random = np.random.default_rng(0)
    weights = onnx.numpy_helper.from_array(random.normal(size=(32, 16)).astype(np.float32), "w")
    ends = [onnx.helper.make_tensor_value_info(name, 1, ["n", size]) for name, size in (("x", 32), ("y", 16))]
    node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = onnx.helper.make_graph([node], "g", ends[:1], ends[1:], [weights])
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), path
    )
    worker = Worker("benchmarks.corpus.steps", "step", limit_s=120)
    try:
        model = Model("float", path, "a wheel")
        (row,) = joined([measure(model, part, worker) for part in ("quick", "slow")])
    finally:
        worker.stop()
    assert {name: one["kind"] for name, one in row["steps"].items()} == dict.fromkeys(
        ("lint", "memory", "pack", "profile", "quantize", "compare"), "done"
    ), json.dumps(row, indent=1)
    gave = row["steps"]["quantize"]["gave"]
    assert gave["layers"] == (1, 0)
    assert gave["true"]["y"] == pytest.approx(gave["told"]["y"], rel=0.1)
    assert 0 < gave["true"]["y"] < 0.05


@pytest.mark.parametrize(
    ("band", "broken"),
    [((1_000_000, 3_000_000), ""), ((3_000_000, None), "lower"), ((0, 1_000_000), "upper"), ((0, None), "")],
)
def test_a_measurement_outside_of_the_band_breaks_a_bound(band: tuple[int, Any], broken: str) -> None:
    gave = {"resident": 2_000_000, "low": band[0], "high": band[1]}
    assert broken_bound({"steps": {"profile": {"gave": gave}}}) == broken
    assert Outcome("done").gave is None
