from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from support.int8_files import calibrate
from torch import Tensor

from deadweight.export.onnx_graph.graph import OnnxModel
from deadweight.export.quantization.adequacy import MOVES, SETTLED, Adequacy, Seen, of_samples, words
from deadweight.export.quantization.calibrate import Ranges
from deadweight.export.to_onnx import to_onnx

Nets = Callable[[str], Any]
METHODS: list[Any] = ["minmax", "percentile", "entropy", "mse"]


def said(ranges: Ranges) -> str:
    return "; ".join(words(ranges.adequacy, samples=ranges.samples, method=ranges.method))


def normal(samples: int, seed: int = 0) -> Tensor:
    return torch.randn(samples, 64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("seed", range(3))
def test_as_many_samples_as_are_common_are_not_called_too_few(net: Nets, method: Any, seed: int) -> None:
    ranges = calibrate(net("mlp").path, [{"x": normal(200, seed)}], method=method)
    assert set(ranges.adequacy) == set(ranges.tensors)
    settled = max(one.moved or 0.0 for one in ranges.adequacy.values()) <= SETTLED
    assert said(ranges).startswith("200 calibration samples" + (" are enough" if settled else ": between"))
    assert ";" not in said(ranges)


@pytest.mark.parametrize("seed", range(3))
def test_eight_samples_with_heavy_tails_are_not_enough_and_the_tensor_is_named(net: Nets, seed: int) -> None:
    ranges = calibrate(net("mlp").path, [{"x": normal(8, seed) / normal(8, seed + 9)}])
    moved = ranges.adequacy["x"].moved
    assert moved is not None
    assert moved > MOVES
    assert "8 calibration samples are not enough" in said(ranges)
    assert f"x by {moved:.0%}" in said(ranges)
    assert "give more samples, or use the method percentile" in said(ranges)


def test_an_outlier_is_named_where_the_range_follows_it_and_not_where_it_is_cut_off(net: Nets) -> None:
    x = normal(400)
    x[7, 7] = 500.0
    ranges = calibrate(net("mlp").path, [{"x": x}])
    assert ranges.adequacy["x"].carriers == 1
    assert "at most 1 of 400 samples" in said(ranges)
    assert "x (1)" in said(ranges)
    cut = calibrate(net("mlp").path, [{"x": x}], method="percentile")
    assert cut.adequacy["x"].carriers == 16
    assert "x (" not in said(cut)


def test_the_movement_is_what_half_of_the_samples_lack_on_average_over_all_halves() -> None:
    random = np.random.default_rng(0)
    values = np.exp(random.normal(size=(10, 5))).astype(np.float32) * random.choice([-1, 1], (10, 5))
    seen = Seen(bins=0)
    for start in (0, 3, 6):
        seen.add(values[start : start + 3].astype(np.float32), 3, by_sample=True)
    seen.add(values[9:].astype(np.float32), 1, by_sample=True)
    low, high = values.min(), values.max()
    widths = []
    for chosen in itertools.product([False, True], repeat=10):
        if any(chosen):
            part = values[list(chosen)]
            widths.append(max(part.max(), 0.0) - min(part.min(), 0.0))
    expected = 1 - np.mean(widths) / (high - low)
    assert seen.adequacy((low, high)).moved == pytest.approx(expected, rel=1e-5)


def test_what_a_histogram_decides_is_held_against_what_it_decides_for_each_half() -> None:
    # Samples alternately: those with even numbers reach from -4 to 4, the others from -1 to 3.
    seen = Seen(bins=0)
    seen.add(np.array([[-4.0, 4.0], [-1.0, 3.0]] * 20, np.float32), 40, by_sample=True)
    halves = [(half.low, half.high) for half in seen.halves]
    assert halves == [(-4.0, 4.0), (-1.0, 3.0)]
    assert seen.adequacy((-4.0, 4.0), halves).moved == pytest.approx((3 + 1) / 2 / 8)
    assert seen.adequacy((-4.0, 4.0)).moved == pytest.approx(0.0, abs=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_how_the_samples_were_batched_does_not_matter(net: Nets, method: Any) -> None:
    x = normal(27)
    whole = calibrate(net("mlp").path, [{"x": x}], method=method).adequacy
    for sizes in ([1] * 27, [5, 22], [9, 9, 9]):
        batches = [{"x": part} for part in torch.split(x, sizes)]
        parts = calibrate(net("mlp").path, batches, method=method).adequacy
        for name, found in whole.items():
            assert parts[name].moved == pytest.approx(found.moved, abs=0.01)
            assert parts[name].carriers == found.carriers


def test_a_first_axis_that_is_not_that_of_the_samples_is_not_taken_for_it() -> None:
    values = [
        helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 8, 3]),
        helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [8, "batch", 3]),
    ]
    node = helper.make_node("Transpose", ["x"], ["y"], perm=[1, 0, 2])
    model = helper.make_model(helper.make_graph([node], "network", values[:1], values[1:]))
    assert of_samples(OnnxModel(model, Path("m.onnx")), ["x", "y"]) == {"x"}
    seen = Seen(bins=0)
    position = np.arange(8, dtype=np.float32).reshape(8, 1, 1) * np.ones((8, 8, 3), np.float32)
    for _ in range(2):
        seen.add(position, 8, by_sample=False)
    assert [half.high for half in seen.halves] == [7.0, 7.0]
    assert seen.adequacy((0.0, 7.0)) == Adequacy(0.0, 16)


def test_one_sample_cannot_show_whether_it_is_enough(net: Nets) -> None:
    ranges = calibrate(net("mlp").path, [{"x": normal(1)}])
    assert all(found.moved is None for found in ranges.adequacy.values())
    assert "too few to judge" in said(ranges)


def test_a_sentence_names_the_three_that_move_most() -> None:
    found = {f"t{number}": Adequacy(0.1 * number, 50) for number in range(9)}
    (sentence,) = words(found, samples=64, method="mse")
    assert "7 of 9 ranges" in sentence
    assert "t8 by 80%, t7 by 70%, t6 by 60%: give more samples" in sentence
    assert "percentile" not in sentence


def test_a_model_of_a_fixed_batch_is_judged_by_whole_batches(net: Nets, tmp_path: Any) -> None:
    path = tmp_path / "fixed.onnx"
    to_onnx(net("mlp").module, net("mlp").example, path)
    model = onnx.load(path)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 4
    onnx.save(model, path)
    ranges = calibrate(path, [{"x": part} for part in torch.split(normal(16), 4)])
    assert all(found.moved is not None for found in ranges.adequacy.values())


def test_tensors_that_are_zero_in_all_samples_are_named_and_many_of_them_are_shouted_about() -> None:
    found = {f"t{number}": Adequacy(0.01, 200) for number in range(20)}
    first, second = words(found | {"dead": Adequacy(0.0, 0)}, samples=400, method="minmax")
    assert first.startswith("1 of 21 rounded tensors are 0 in all of 400 calibration samples (dead): ")
    assert "prune dead channels" in first
    assert second.startswith("400 calibration samples are enough")
    dead = {f"d{number}": Adequacy(0.0, 0) for number in range(20)}
    assert words(found | dead, samples=400, method="minmax")[0].startswith("CHECK THE SAMPLES: 20 of 40 ")


def test_one_sample_that_wakes_a_tensor_is_an_outlier_and_the_tensor_is_not_dead() -> None:
    seen, values = Seen(bins=0), np.zeros((200, 4), np.float32)
    seen.add(values, 200, by_sample=True)
    assert seen.adequacy((0.0, 0.0)).dead
    values[3, 1] = 2.0
    seen.add(values, 200, by_sample=True)
    found = seen.adequacy((0.0, 2.0))
    assert not found.dead
    assert found.hangs_on_few(400)


def test_a_handful_of_samples_that_are_alike_cannot_show_that_they_are_enough(net: Nets) -> None:
    ranges = calibrate(net("mlp").path, [{"x": normal(1).repeat(4, 1)}])
    assert said(ranges).startswith("4 calibration samples are too few to judge")


def test_samples_that_are_doubted_are_not_called_enough() -> None:
    dead = {f"d{number}": Adequacy(0.0, 0) for number in range(20)}
    (sentence,) = words(dead, samples=400, method="minmax")
    assert sentence.startswith("CHECK THE SAMPLES")
