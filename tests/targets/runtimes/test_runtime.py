"""A runtime is one value: ours are found in their folder, a user's own only where the user names it."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from deadweight.targets.errors import ModelError, TargetError
from deadweight.targets.runtimes import runtime as runtimes
from deadweight.targets.runtimes.open import open_session, runtime_of
from deadweight.targets.runtimes.runtime import (
    Runtime,
    built_in_runtimes,
    is_engine,
    known_runtimes,
    own_runtime,
    runtime_named,
)
from deadweight.targets.target import Target, load_target, target_names
from deadweight.targets.timing.clock import time_together
from deadweight.targets.timing.measurement import Protocol
from deadweight.targets.timing.memory import measure_memory

MakeMlp = Callable[..., Path]
OWN = Path(__file__).parents[2] / "support" / "own_runtime.py"
BOARD = 'name = "mine"\ntitle = "Mine"\nruntime = "{}"\nprecisions = ["fp32"]\n'
QUICK = Protocol(events=2, event_s=0.002, block_s=0.0005, settle_s=0.0002)


@pytest.fixture
def board(tmp_path: Path) -> Path:
    """A board's TOML, with the file of its runtime beside it."""
    shutil.copy(OWN, tmp_path / "mine.py")
    path = tmp_path / "mine.toml"
    path.write_text(BOARD.format("mine.py:RUNTIME"))
    return path


def test_each_file_of_the_folder_that_ends_in_runtime_holds_one() -> None:
    folder = Path(runtimes.__file__).parent
    assert len(built_in_runtimes()) == len(list(folder.glob("*_runtime.py")))
    assert [one.name for one in built_in_runtimes()] == ["onnxruntime", "tensorrt", "trtexec"]


@pytest.mark.parametrize("one", known_runtimes(variants=True), ids=str)
def test_what_a_runtime_says_of_itself_holds_together(one: Runtime) -> None:
    assert str(one) == one.name
    assert one.builds is all(is_engine(f"model{suffix}") for suffix in one.suffixes)
    assert runtime_named(one.name) is one
    assert one.code == ()
    assert pickle.loads(pickle.dumps(one)) is one  # what another process gets is the value it has there


@pytest.mark.parametrize("name", target_names())
def test_what_runs_files_here_opens_onnx_files_for_every_board(name: str) -> None:
    target = load_target(name)
    assert not target.here.builds
    assert target.runtime.builds or target.here is target.runtime


def test_a_runtime_of_ones_own_opens_times_and_measures_like_ours(board: Path, mlp: MakeMlp) -> None:
    target, model = load_target(board), mlp(8, 4)
    assert target.runtime.name == "onnx-reference"
    assert target.runtime.code == (board.parent / "mine.py",)
    x = {"x": np.ones((3, 8), np.float32)}
    own = open_session(model, runtime=target.runtime)
    ours = open_session(model)
    assert own.runtime.startswith("onnx reference")
    np.testing.assert_allclose(own.run(x)["y"], ours.run(x)["y"], rtol=1e-5)
    assert runtime_of(model, target.runtime) is target.runtime
    assert runtime_of(model).name == "onnxruntime"
    timed = time_together({"a": model}, protocol=replace(QUICK, runtime=target.runtime.name))["a"]
    assert timed.protocol.runtime == "onnx-reference"
    assert timed.cpu_ns is not None  # one thread, the calling one
    assert measure_memory(model, runtime=target.runtime).file_bytes == model.stat().st_size


def test_a_board_goes_through_json_and_other_processes_with_a_runtime_of_ones_own(board: Path) -> None:
    target = load_target(board)
    assert Target.from_json(json.loads(json.dumps(target.to_json()))) == target
    assert copy.deepcopy(target) == target
    code = "import pickle, sys; print(pickle.load(sys.stdin.buffer).runtime.title)"
    done = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(target), capture_output=True)
    assert done.stdout.decode().strip() == "ONNX's reference evaluator", done.stderr.decode()


def test_a_runtime_in_a_package_is_named_by_its_dotted_path(
    board: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(board.parent))
    board.write_text(BOARD.format("mine:RUNTIME"))
    assert load_target(board).runtime.source == "mine:RUNTIME"
    assert load_target(board).runtime.code == (board.parent / "mine.py",)


def test_data_name_no_code(board: Path) -> None:
    """A bundle, a baseline or an agent's message holds a name; where it names code, nothing is imported."""
    mark = board.parent / "imported"
    (board.parent / "mine.py").write_text(f"open({str(mark)!r}, 'w')")
    named = {"name": "a", "title": "A", "precisions": ["fp32"]}
    for reference in (f"{board.parent / 'mine.py'}:RUNTIME", "mine:RUNTIME"):
        with pytest.raises(TargetError, match="which is code"):
            Target.from_json({**named, "runtime": reference})
        with pytest.raises(TargetError, match="is unknown here"):
            open_session("m.onnx", runtime=Protocol.from_json({"runtime": reference}).runtime)
        with pytest.raises(TargetError, match="is unknown here"):
            measure_memory("m.onnx", runtime=reference)
    assert not mark.exists()


def test_a_choice_that_a_runtime_does_not_have_is_refused_by_its_option() -> None:
    with pytest.raises(TargetError, match="ONNX Runtime does not run with graph") as caught:
        runtime_named("onnxruntime+graph")
    assert "--cuda-graph" in caught.value.cure


def test_a_runtime_that_is_not_installed_is_refused_with_its_cure(board: Path, mlp: MakeMlp) -> None:
    board.write_text(BOARD.format("mine.py:NOT_INSTALLED"))
    target = load_target(board)  # what a board is can be asked without its runtime
    assert not target.runtime.installed
    with pytest.raises(TargetError, match="needs Absent, which is not installed") as caught:
        open_session(mlp(2, 2), runtime=target.runtime)
    assert caught.value.cure == "Install it: pip install no-such-runtime"


@pytest.mark.parametrize(
    ("reference", "text", "said"),
    [
        ("mine.py:RUNTIME", "raise ValueError('broken')", "ValueError: broken"),
        ("mine.py:RUNTIME", "import no_such_library", "No module named 'no_such_library'"),
        ("mine.py:RUNTIME", "", "RUNTIME does not exist"),
        ("mine.py:RUNTIME", "RUNTIME = 3", "RUNTIME is a int"),
        ("other.py:RUNTIME", "", r"other\.py does not exist"),
        ("no.such.module:RUNTIME", "", "No module named 'no'"),
        ("mine.py:not a name", "", "neither built in"),
    ],
)
def test_what_is_no_runtime_is_refused_with_the_reason(
    board: Path, reference: str, text: str, said: str
) -> None:
    (board.parent / "mine.py").write_text(text)
    board.write_text(BOARD.format(reference))
    with pytest.raises(TargetError, match=said):
        load_target(board)


def test_no_runtime_takes_the_name_of_a_built_in_one(board: Path) -> None:
    (board.parent / "ours.py").write_text(OWN.read_text().replace("onnx-reference", "tensorrt+graph"))
    with pytest.raises(TargetError, match=r"has the name of a built-in one, tensorrt\+graph"):
        own_runtime("ours.py:RUNTIME", board.parent)


def test_a_field_that_no_runtime_can_have_is_refused() -> None:
    ours = runtime_named("onnxruntime")
    for wrong in (
        {"name": "a b"},
        {"suffixes": ("onnx",)},
        {"suffixes": ()},
        {"processor": "npu"},
        {"fp16": ("always",)},
        {"dialect": "own"},
    ):
        with pytest.raises(TargetError, match=next(iter(wrong))):
            replace(ours, **wrong)
    with pytest.raises(ModelError, match="no model at"):
        open_session("nowhere.onnx", runtime=ours)
