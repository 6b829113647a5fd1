"""Helpers to test your own stage, criterion or runtime: a workload that trains in a second, a fake session,
and `check_stage`, which tests a stage in a run, with cache, kill, resume and controls.

    from deadweight.testing import check_stage

    def test_my_stage_survives_a_run():
        print(check_stage(Mine(strength=2.0)))
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .pipeline.recipe import Recipe, check_order, parse_recipe
from .pipeline.runs.cache import Watcher, prepared
from .pipeline.stage import Stage, settings_of
from .pipeline.work import Facts
from .targets.errors import DeadweightError, ModelError
from .targets.runtimes.session import TensorSpec

_SPLITS = {"validation": (512, 768), "calibration": (0, 128), "test": (768, 1024)}  # "train" is shuffled
_TRAIN = {"stage": "train", "epochs": 2}
_CUT = {"stage": "prune", "ratio": 0.5, "criterion": "weight_l2"}
_TUNE = {"stage": "finetune", "epochs": 1}


class TinyWorkload:
    """Four classes of 16 numbers and a perceptron of 3 layers, which trains in a second on one core."""

    score_name = "accuracy"
    higher_is_better = True

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.label = torch.arange(1024) % 4
        centres = torch.randn(4, 16, generator=generator)
        self.values = centres[self.label] + 1.2 * torch.randn(1024, 16, generator=generator)

    def build_model(self) -> nn.Module:
        """Linear layers of 32 and 24 units with ReLU, then the 4 classes."""
        return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 4))

    def example_inputs(self) -> dict[str, Tensor]:
        """Two rows of 16 numbers."""
        return {"values": self.values[:2]}

    def batches(self, split: str, *, seed: int = 0) -> Iterator[dict[str, Tensor]]:
        """Batches of 64 rows; "train" is shuffled by the seed."""
        order = torch.randperm(512, generator=torch.Generator().manual_seed(seed))
        if split in _SPLITS:
            order = torch.arange(*_SPLITS[split])
        for index in torch.split(order, 64):
            yield {"values": self.values[index], "label": self.label[index]}

    def loss(self, outputs: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """The cross entropy."""
        return F.cross_entropy(outputs, batch["label"])

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """Adam at a rate of 0.003."""
        return torch.optim.Adam(model.parameters(), lr=3e-3)

    def score(self, predict: Any, batches: Iterable[Mapping[str, Tensor]]) -> float:
        """The share of rows whose largest output is their class."""
        right: list[bool] = []
        for batch in batches:
            (found,) = predict({"values": batch["values"].numpy()}).values()
            right += (found.argmax(1) == batch["label"].numpy()).tolist()
        return float(np.mean(right))

    def fingerprint(self) -> str:
        """The data never change."""
        return "deadweight.testing.TinyWorkload 1"


@dataclass(frozen=True)
class FakeSession:
    """A session that answers by a function of named arrays; its times are `simulated` and prove nothing.

    Attributes:
        answer: from inputs to outputs, both by name.
        inputs, outputs: the specifications of its tensors.
    """

    answer: Callable[[Mapping[str, np.ndarray[Any, Any]]], dict[str, np.ndarray[Any, Any]]]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    runtime: str = "fake 1.0"
    evidence: str = "simulated"

    def run(self, inputs: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
        """The outputs by name.

        Raises:
            ModelError: an input is missing.
        """
        missing = [spec.name for spec in self.inputs if spec.name not in inputs]
        if missing:
            raise ModelError(f"The inputs {missing} are missing.", "Give an array for each input.")
        return self.answer(inputs)

    def prepare(self, inputs: Mapping[str, np.ndarray[Any, Any]]) -> Callable[[], object]:
        """A function that runs once on these inputs."""
        return lambda: self.run(inputs)

    def close(self) -> None:
        """There is nothing to free."""


@dataclass(frozen=True)
class StageCheck:
    """The result of `check_stage`: the stage's facts, the checks made, and those that could not be made."""

    facts: Facts
    checked: tuple[str, ...]
    left: tuple[str, ...] = ()

    def __str__(self) -> str:
        left = (f"not checked: {each}" for each in self.left)
        return "\n".join((*(f"ok: {each}" for each in self.checked), *left))


def check_stage(
    stage: Stage,
    *,
    before: Iterable[Mapping[str, Any]] = (_TRAIN,),
    workload: str = "deadweight.testing:TinyWorkload",
) -> StageCheck:
    """Tests a stage in a run, from the cache, after a kill -9 and a resume, and with controls.

    Args:
        stage: an instance, of a class that can be imported by its dotted path.
        before: the recipe's stages before it, as tables; one that recovers also gets a cut before it.
        workload: another workload than the tiny one, as a recipe names it.

    Raises:
        DeadweightError: the failure, with the cure.
    """
    name, facts = f"{type(stage).__module__}.{type(stage).__qualname__}", Facts.of(stage)
    own = {"stage": name, **settings_of(stage)}
    earlier = [dict(table) for table in before]
    if facts.recovers and not facts.shrinks:
        earlier.append(_CUT)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        recipe = _recipe(workload, [*earlier, own], place)
        first, cached, seconds = _ran(recipe, place / "first")
        checked = [f"ran in {seconds:.1f} s"]
        again, cached, _ = _ran(recipe, place / "first")
        _require(cached, f"The stage {name} ran again though nothing had changed.", _CACHE)
        _require(again == first, f"The cache gave another work than the stage {name} made.", _CACHE)
        checked.append("the second time it came from the cache")
        anew, _, _ = _ran(recipe, place / "anew")
        _require(anew == first, f"The stage {name} made other files when it was run again.", _RANDOM)
        checked.append("run again it makes the same files")
        killed = _killed(recipe, place / "killed", seconds)
        resumed, _, _ = _ran(recipe, place / "killed")
        _require(resumed == first, f"After a kill -9 the stage {name} made other files.", _RESUME)
        checked.append(f"killed {killed}, the same command ends with the same files")
        if facts.shrinks is None and facts.recovers is None:
            return StageCheck(facts, tuple(checked), ("controls: they refuse a stage that declares nothing",))
        if not facts.shrinks and not facts.recovers:
            return StageCheck(facts, tuple(checked), ("controls: the stage changes no network",))
        tuned = [] if facts.recovers else [_TUNE]
        with_controls = _recipe(workload, [*earlier, own, *tuned, {"stage": "controls", "epochs": 1}], place)
        check_order(with_controls)
        _ran(with_controls, place / "first")
        checked.append("controls are made of it")
    return StageCheck(facts, tuple(checked))


_CACHE = "Return a Work made by work.with_model(...) and put nothing into it that changes by itself."
_RANDOM = "Draw all random numbers from work.seed, and read nothing that the recipe does not name."
_RESUME = "Write files atomically (deadweight.targets.artifact.writing), and resume only from finished ones."


def _require(true: bool, what: str, cure: str) -> None:
    if not true:
        raise DeadweightError(what, cure)


def _recipe(workload: str, stages: list[dict[str, Any]], place: Path) -> Recipe:
    values = {"workload": workload, "stages": json.loads(json.dumps(stages))}
    return parse_recipe(values, place / "check.toml")


def _ran(recipe: Recipe, directory: Path) -> tuple[str, bool, float]:
    """The digest after all stages, whether the last came from the cache, and how long the last took."""
    run, work = prepared(recipe, directory, Watcher())
    started = time.monotonic()
    for named in recipe.stages:
        started = time.monotonic()
        work = run.step(named, work)
    return work.digest(), run.finished[-1].cached, time.monotonic() - started


def _killed(recipe: Recipe, directory: Path, seconds: float) -> str:
    """Kills a process that runs the recipe, half-way through its last stage; says when."""
    code = "import sys, deadweight.testing as t; t._child(sys.argv[1:])"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", code, json.dumps(recipe.values), str(recipe.path), str(directory)]
    child = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.stdout is not None
    reached = child.stdout.readline()
    time.sleep(seconds / 2)
    child.send_signal(signal.SIGKILL)
    _, errors = child.communicate()
    if not reached:
        raise DeadweightError(
            f"The stage did not run in its own process: {errors.decode(errors='replace').strip()[-400:]}",
            "Put its class into a file that can be imported.",
        )
    return f"after {seconds / 2:.1f} s" if child.returncode == -signal.SIGKILL else "just after its end"


def _child(arguments: list[str]) -> None:
    values, path, directory = arguments
    recipe = parse_recipe(json.loads(values), Path(path))
    run, work = prepared(recipe, Path(directory), Watcher())
    for named in recipe.stages[:-1]:
        work = run.step(named, work)
    print("last", flush=True)
    run.step(recipe.stages[-1], work)
