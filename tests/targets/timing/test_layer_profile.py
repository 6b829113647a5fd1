"""Layers' times travel whole: what comes back is judged as what was taken."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from deadweight.targets.errors import MeasurementError
from deadweight.targets.remote.board import layers_on
from deadweight.targets.remote.on_board import ready_on
from deadweight.targets.remote.ssh import Local
from deadweight.targets.timing.layers import judge_layers, profile_layers, read_layers
from deadweight.targets.timing.measurement import Protocol
from deadweight.targets.timing.ort_layers import time_layers

MakeMlp = Callable[..., Path]
SHORT = Protocol(events=3, event_s=0.005, block_s=0.001, settle_s=0.0005)


def test_layers_that_another_process_timed_are_layers_as_they_are_timed_here(mlp: MakeMlp) -> None:
    models = {"wide": mlp(16, 256, 4, name="a.onnx"), "narrow": mlp(16, 32, 4, name="b.onnx")}
    whats: list[str] = []
    machine = Local(lambda done, total, what: whats.append(what))
    layers, void = layers_on(machine, ready_on(Local(), models), protocol=SHORT)
    here = time_layers(models, protocol=SHORT)
    assert void == ()
    assert set(whats) == {"timing"}
    assert {name: list(one) for name, one in layers.items()} == {
        name: list(one) for name, one in here.items()
    }
    for name, theirs in layers.items():
        for key, layer in theirs.items():
            same = here[name][key]
            facts = ("kind", "weight", "moved_bytes", "macs", "kernels")
            assert [getattr(layer, fact) for fact in facts] == [getattr(same, fact) for fact in facts]
            assert layer.times_s.shape[0] == SHORT.events
            assert (layer.times_s > 0).all()
    judged = judge_layers(layers["wide"], layers["narrow"])
    assert [one.name for one in judged] == list(layers["wide"])


def test_every_sample_comes_back_as_it_was_taken(mlp: MakeMlp) -> None:
    answer = json.loads(json.dumps(profile_layers({"a": mlp(16, 8, 4)}, protocol=SHORT)))
    layers, _ = read_layers(answer)
    for place, layer in enumerate(layers["a"].values()):
        np.testing.assert_array_equal(layer.times_s, np.array(answer["layers"]["a"][place]["times_s"]))
        assert layer.conversion_s == answer["layers"]["a"][place]["conversion_s"]


def test_why_times_are_void_comes_along(mlp: MakeMlp) -> None:
    answer = profile_layers({"a": mlp(16, 8, 4)}, protocol=SHORT)
    answer["void"] = ["the power mode changed"]
    assert read_layers(answer)[1] == ("the power mode changed",)


def test_engines_are_not_profiled_this_way(tmp_path: Path) -> None:
    (tmp_path / "a.plan").write_bytes(b"ftrt")
    with pytest.raises(MeasurementError, match="these models are engines"):
        profile_layers({"a": tmp_path / "a.plan"}, protocol=replace(SHORT, runtime="tensorrt"))
