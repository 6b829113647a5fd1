"""The functions of `deadweight.api`: every docstring example is run; the commands give the same answers."""

from __future__ import annotations

import dataclasses
import doctest
import io
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from rich.text import Text
from support.onnx_files import save_mlp

import deadweight
from deadweight.api import advising, files, latency, recipes, results
from deadweight.targets.errors import RecipeError
from deadweight.terminal.show import lines

WORKLOAD = """
from deadweight.testing import TinyWorkload as Small
"""
RECIPE = """
workload = "workload.py:Small"
[[stages]]
stage = "train"
epochs = 1
[[stages]]
stage = "prune"
ratio = 0.5
criterion = "weight_l2"
[[stages]]
stage = "finetune"
epochs = 1
"""
NET = """
from torch import nn

def build():
    return nn.Linear(4, 2)

def loaders():
    return {}
"""
SWEEP = """
[sweep]
over = { "prune.ratio" = [0.3, 0.6] }
score_drop = 1.0
seconds = 0.5
"""


def text_of(result: results.Result) -> str:
    """What the command prints, 100 columns wide."""
    file = io.StringIO()
    console = Console(file=file, width=100, highlight=False, color_system=None)
    for line in lines(result):
        console.print(line, soft_wrap=isinstance(line, str | Text))
    return file.getvalue().rstrip("\n")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the examples name: two models, samples, a workload, a recipe and a baseline."""
    place = tmp_path_factory.mktemp("api")
    save_mlp(place / "original.onnx", 512, 512, 512, 10)
    save_mlp(place / "pruned.onnx", 512, 64, 64, 10)
    np.savez(place / "samples.npz", x=np.random.default_rng(0).standard_normal((64, 512), dtype=np.float32))
    (place / "workload.py").write_text(WORKLOAD)
    (place / "recipe.toml").write_text(RECIPE)
    (place / "own").mkdir()
    (place / "own" / "net.py").write_text(NET)
    (place / "swept.toml").write_text(RECIPE + SWEEP)
    accept = ["gate", "--record", "--model", "original.onnx", "--baseline", "baseline.json"]
    subprocess.run([sys.executable, "-m", "deadweight", *accept], cwd=place, check=True, capture_output=True)
    return place


@pytest.mark.parametrize(
    "module", [files, recipes, latency, advising], ids=["files", "recipes", "latency", "advising"]
)
def test_every_example_in_a_docstring_does_what_it_says(
    folder: Path, monkeypatch: pytest.MonkeyPatch, module: ModuleType
) -> None:
    monkeypatch.chdir(folder)
    failed, tried = doctest.testmod(module)
    assert failed == 0
    assert tried >= 6


def test_every_public_function_has_an_example() -> None:
    for name in deadweight.api.__all__:
        assert ">>> import deadweight" in (getattr(deadweight, name).__doc__ or ""), name


def test_the_shell_and_python_give_the_same_verdict_events_and_exit_code(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    found = deadweight.compare("original.onnx", "pruned.onnx", events=12, event_s=0.01)
    command = ["compare", "original.onnx", "pruned.onnx", "--events", "12", "--event-s", "0.01", "--out"]
    done = subprocess.run(
        [sys.executable, "-m", "deadweight", *command, "shell.json"],
        capture_output=True,
        text=True,
        check=False,
    )
    shell: dict[str, Any] = json.loads(Path("shell.json").read_text())
    ours = found.to_json()
    assert set(shell) == set(ours)
    for name in ("outcome", "events", "confidence", "margin", "clock", "evidence"):
        assert shell["judgement"][name] == ours["judgement"][name], name
    assert shell["baseline"]["protocol"] == ours["baseline"]["protocol"]
    assert done.returncode == found.exit_code == 0
    assert found.meaning == "good"
    assert str(found) == found.verdict
    assert text_of(found).splitlines()[0] in done.stdout


def test_a_result_prints_what_the_command_prints(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "100")
    for command, result in (
        (
            ["memory", "original.onnx", "--target", "x86-cpu"],
            deadweight.memory("original.onnx", target="x86-cpu"),
        ),
        (["lint", "original.onnx", "--tensorrt", "10.3"], deadweight.lint("original.onnx", tensorrt="10.3")),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "deadweight", *command], capture_output=True, text=True, check=False
        )
        assert done.returncode == result.exit_code
        assert done.stdout.strip() == text_of(result)


def test_results_are_frozen_and_say_what_their_exit_code_means() -> None:
    for kind in (
        one for one in vars(results).values() if isinstance(one, type) and one.__module__ == results.__name__
    ):
        assert dataclasses.is_dataclass(kind)
        assert kind.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert results.Result("", 3).meaning.startswith("cannot tell")


def test_bad_input_raises_with_a_cure(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(RecipeError, match="no baseline"):
        deadweight.gate("pruned.onnx")
    with pytest.raises(RecipeError, match="calibration method"):
        deadweight.quantize("original.onnx", "samples.npz", method="guess")
