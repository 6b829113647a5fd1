from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.int8_files import adaround, calibrate, compare_files, to_qdq
from support.onnx_files import numbers, op, write_network

from deadweight.export.onnx_graph.graph import Index, load
from deadweight.export.onnx_graph.readback import products
from deadweight.export.onnx_graph.run import runner
from deadweight.export.to_onnx import to_onnx
from deadweight.targets.errors import WorkloadError

Nets = Callable[[str], Any]


@pytest.mark.parametrize(
    ("name", "dialect"), [("mlp", "x86"), ("residual", "tensorrt"), ("attentive", "x86")]
)
def test_weights_stay_on_their_steps_and_outputs_of_each_layer_err_less(
    net: Nets, tmp_path: Path, name: str, dialect: Any
) -> None:
    made = net(name)
    to_qdq(made.path, made.ranges, tmp_path / "q.onnx", dialect=dialect)
    gains = adaround(made.path, tmp_path / "q.onnx", made.batches, tmp_path / "f.onnx", iterations=150)
    to_qdq(tmp_path / "f.onnx", made.ranges, tmp_path / "better.onnx", dialect=dialect)
    before, plain, better = (load(tmp_path / file) for file in (made.path, "q.onnx", "better.onnx"))
    pairs = {one.node.name: one for one in products(before, plain)}
    assert set(gains) == {name for name, one in pairs.items() if one.weight.ndim}
    for chosen in products(load(tmp_path / "f.onnx"), better):
        old = pairs[chosen.node.name]
        assert np.array_equal(old.steps, chosen.steps)
        assert np.abs(chosen.integers * chosen.steps - old.weight).max() <= 1.0001 * old.steps.max()
        assert (chosen.integers != old.integers).sum() == gains[chosen.node.name].moved
    assert any(gain.moved for gain in gains.values())
    assert all(gain.error <= 1.0 for gain in gains.values())
    assert min(gain.error for gain in gains.values()) < 0.8
    compare_files(
        made.path,
        tmp_path / "better.onnx",
        made.batches,
        kind="lossy",
        name="q",
        rounded_from=tmp_path / "f.onnx",
    )


@pytest.mark.parametrize(
    "settings", [{}, {"groups": 4}, {"stride": 2, "padding": 1}, {"dilation": 2, "bias": False}]
)
def test_what_is_gained_is_what_the_operator_itself_gains(tmp_path: Path, settings: dict[str, Any]) -> None:
    # The second moments know nothing of the operator: this runs the operator.
    torch.manual_seed(0)
    data = torch.rand(32, 8, 7, 7)
    module = torch.nn.Sequential(torch.nn.Conv2d(8, 8, 3, **settings)).eval()
    to_onnx(module, {"input": data[:2]}, tmp_path / "float.onnx")
    from support.int8_files import calibrate

    ranges = calibrate(tmp_path / "float.onnx", [{"input": data}])
    to_qdq(tmp_path / "float.onnx", ranges, tmp_path / "q.onnx")
    gains = adaround(tmp_path / "float.onnx", tmp_path / "q.onnx", [{"input": data}], tmp_path / "f.onnx")
    to_qdq(tmp_path / "f.onnx", ranges, tmp_path / "better.onnx")
    # The float weights on the rounded input, which is what a layer is to give.
    rounded = load(tmp_path / "q.onnx")
    read = next(node.input[0] for node in rounded.graph.node if node.op_type == "Conv")
    values = runner(rounded.proto, [read])({"input": data.numpy()})[read]
    exact = runner(load(tmp_path / "float.onnx").proto)({"input": values})["output"]
    errors = [
        np.square(runner(load(tmp_path / file).proto)({"input": values})["output"] - exact).sum()
        for file in ("q.onnx", "better.onnx")
    ]
    (gain,) = gains.values()
    assert errors[1] / errors[0] == pytest.approx(gain.error, rel=0.02)
    assert gain.error < 0.8


def test_equal_data_give_equal_bytes(net: Nets, tmp_path: Path) -> None:
    made = net("mlp")
    to_qdq(made.path, made.ranges, tmp_path / "q.onnx")
    for name in ("a", "b"):
        adaround(made.path, tmp_path / "q.onnx", made.batches, tmp_path / name, iterations=20)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_transposed_convolution_is_left_as_it_is(net: Nets, tmp_path: Path) -> None:
    made = net("joined")
    to_qdq(made.path, made.ranges, tmp_path / "q.onnx")
    gains = adaround(made.path, tmp_path / "q.onnx", made.batches, tmp_path / "f.onnx", iterations=20)
    assert "up/ConvTranspose" not in gains
    old, new = (Index.of(load(path).graph) for path in (made.path, tmp_path / "f.onnx"))
    (name,) = [node.input[1] for node in old.producer.values() if node.op_type == "ConvTranspose"]
    assert np.array_equal(np.asarray(old.value(name)), np.asarray(new.value(name)))


def test_no_samples_are_an_error(net: Nets, tmp_path: Path) -> None:
    made = net("mlp")
    to_qdq(made.path, made.ranges, tmp_path / "q.onnx")
    with pytest.raises(WorkloadError, match="no calibration data"):
        adaround(made.path, tmp_path / "q.onnx", [], tmp_path / "f.onnx")


@pytest.mark.parametrize(
    ("product", "shape", "weight"),
    [
        (op("MatMul", ["x", "w"], ["y"]), [16, 4, 6, 24], numbers(4, 24, 12)),
        (op("Gemm", ["x", "w"], ["y"], transA=1), [16, 24], numbers(16, 9)),
    ],
)
def test_a_product_whose_channels_are_no_rows_is_left_as_it_is(
    tmp_path: Path, product: Any, shape: list[int], weight: Any
) -> None:
    path = write_network(tmp_path / "m.onnx", [product], {"w": weight}, shape)
    data = [{"x": numbers(*shape, size=1.0)}]
    to_qdq(path, calibrate(path, data), tmp_path / "q.onnx")
    assert adaround(path, tmp_path / "q.onnx", data, tmp_path / "rounded.onnx") == {}
    assert not (tmp_path / "rounded.onnx").exists()
