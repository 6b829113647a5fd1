from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from deadweight.targets.errors import ModelError
from deadweight.targets.gate.calibrate import plant, slower
from deadweight.targets.runtimes.open import open_session
from deadweight.targets.timing.clock import time_together
from deadweight.targets.timing.judge import judge
from deadweight.targets.timing.measurement import Protocol

MakeMlp = Callable[..., Path]


@pytest.mark.parametrize("heavy", [False, True])
def test_the_planted_model_is_valid_computes_the_same_and_has_as_many_operators_more(
    mlp: MakeMlp, tmp_path: Path, heavy: bool
) -> None:
    path = mlp(64, 32, 10)
    planted = slower(path, tmp_path / "slow.onnx", operators=5, heavy=heavy)
    onnx.checker.check_model(onnx.load(str(planted)))
    nodes = [len(onnx.load(str(one)).graph.node) for one in (path, planted)]
    assert nodes[1] == nodes[0] + 5 + (3 if heavy else 0)
    x = {"x": np.random.default_rng(0).standard_normal((1, 64)).astype(np.float32)}
    before, after = open_session(path), open_session(planted)
    assert len(after.outputs) == len(before.outputs) + 1
    assert np.array_equal(before.run(x)["y"], after.run(x)["y"])


def test_a_slower_copy_takes_the_weights_beside_its_model_with_it(mlp: MakeMlp, tmp_path: Path) -> None:
    path, apart = mlp(64, 32, 10), tmp_path / "apart.onnx"
    onnx.save(onnx.load(path), apart, save_as_external_data=True, location="apart.data", size_threshold=0)
    planted = slower(apart, tmp_path / "copies" / "slow.onnx", operators=2, heavy=False)
    x = {"x": np.ones((1, 64), np.float32)}
    assert np.array_equal(open_session(path).run(x)["y"], open_session(planted).run(x)["y"])


def test_planted_operators_take_real_time(mlp: MakeMlp, tmp_path: Path) -> None:
    path = mlp(64, 32, 10)
    planted = slower(path, tmp_path / "slow.onnx", operators=30, heavy=True)
    protocol = Protocol(events=8, event_s=0.002, block_s=0.0005, settle_s=0.0002)
    timed = time_together({"baseline": path, "candidate": planted}, protocol=protocol)
    assert judge(timed["baseline"], timed["candidate"]).outcome == "slower"


def test_a_model_that_is_too_quick_to_plant_in_is_refused(mlp: MakeMlp, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be added"):
        plant(mlp(4, 2), tmp_path, 0.001, protocol=Protocol(events=2, event_s=0.001))
