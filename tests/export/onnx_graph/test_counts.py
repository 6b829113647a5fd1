from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from support.int8_files import calibrate, compare_files, float_kernels, optimized, to_qdq
from support.onnx_files import numbers, op, write_network
from torch import nn

from deadweight.export.onnx_graph.counts import count
from deadweight.export.to_onnx import to_onnx
from deadweight.targets.errors import ArtifactError, ModelError

Nets = Callable[[str], Any]


def test_the_multiply_adds_of_an_mlp_are_its_weights(net: Nets) -> None:
    found = count(net("mlp").path)
    assert found.macs == 64 * 48 + 48 * 32 + 32 * 10
    assert found.parameters == found.macs + 48 + 32 + 10
    assert found.file_bytes == net("mlp").path.stat().st_size


def test_the_multiply_adds_of_convolutions_agree_with_a_count_by_hand(net: Nets) -> None:
    stem = 28 * 28 * 16 * 9
    same = 2 * 14 * 14 * 16 * 16 * 9
    wider = 14 * 14 * (16 * 32 * 9 + 32 * 32 * 9 + 16 * 32)
    assert count(net("residual").path).macs == stem + same + wider + 32 * 10
    down, deep, head = 8 * 8 * 2 * 8 * 9, 4 * 4 * 8 * 16 * 9, 8 * 8 * 16 * 2
    up = 4 * 4 * 16 * 8 * 4
    assert count(net("joined").path).macs == down + deep + up + head
    # A depthwise convolution reads one channel for each output.
    block = 8 * 8 * (16 * 64 + 64 * 9 + 64 * 16)
    assert count(net("depthwise").path).macs == 8 * 8 * 3 * 16 * 9 + 2 * block + 16 * 5


def test_matrix_products_over_a_sequence_are_counted_for_one_sample(net: Nets) -> None:
    linear = 6 * (16 * 48 + 16 * 16 + 16 * 32 + 32 * 16)
    attention = 2 * 6 * 6 * 16
    assert count(net("attentive").path).macs == linear + attention


def test_recurrent_layers_are_counted(tmp_path: Path) -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(5, 8, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.lstm(x)[0]
            return out

    to_onnx(Recurrent(), {"x": torch.randn(2, 7, 5)}, tmp_path / "lstm.onnx")
    assert count(tmp_path / "lstm.onnx").macs == 7 * 4 * 8 * (5 + 8)


@pytest.mark.parametrize("dialect", ["tensorrt", "x86"])
@pytest.mark.parametrize("name", ["mlp", "residual", "depthwise"])
def test_quantizing_changes_neither_parameters_nor_work(
    net: Nets, tmp_path: Path, dialect: Any, name: str
) -> None:
    to_qdq(net(name).path, net(name).ranges, tmp_path / "q.onnx", dialect=dialect)
    before, after = count(net(name).path), count(tmp_path / "q.onnx")
    assert (after.parameters, after.macs) == (before.parameters, before.macs)


def test_the_optimized_graph_is_what_the_runtime_really_runs(net: Nets) -> None:
    found = [node.op_type for node in optimized(net("mlp").path).graph.node]
    assert sorted(found) == ["FusedGemm", "FusedGemm", "Gemm"]
    assert len(float_kernels(net("mlp").path)) == 3


def test_a_product_of_unknown_sizes_cannot_be_counted(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="layer")],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "length", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.zeros((4, 4), np.float32), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "free.onnx")
    assert count(tmp_path / "free.onnx").macs is None
    assert count(tmp_path / "free.onnx").parameters == 16
    assert count(tmp_path / "free.onnx", sizes={"x": (2, 7, 4)}).macs == 7 * 4 * 4


def test_a_convolution_over_pictures_of_any_size_is_counted_at_the_size_of_an_example(tmp_path: Path) -> None:
    nodes = [op("Conv", ["x", "w"], ["h"], strides=[2, 2], pads=[1, 1, 1, 1]), op("Conv", ["h", "v"], ["y"])]
    constants = {"w": numbers(8, 3, 3, 3), "v": numbers(4, 8, 1, 1)}
    path = write_network(tmp_path / "m.onnx", nodes, constants, ["batch", 3, "height", "width"])
    assert count(path).macs is None
    assert count(path, sizes={"x": (2, 3, 32, 16)}).macs == 16 * 8 * (8 * 3 * 9 + 4 * 8)


@pytest.mark.parametrize("call", [count, optimized])
def test_a_damaged_file_is_an_error_with_a_cure(
    net: Nets, tmp_path: Path, call: Callable[[Path], Any]
) -> None:
    whole = net("mlp").path.read_bytes()
    for name, data in (("empty", b""), ("cut", whole[: len(whole) // 2]), ("text", b"hello, world")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises((ArtifactError, ModelError), match=name):
            call(tmp_path / name)
    with pytest.raises(ArtifactError, match="cannot be read"):
        call(tmp_path / "nowhere.onnx")


def test_weights_in_a_file_beside_the_network_count_as_its_bytes(net: Nets, tmp_path: Path) -> None:
    model = onnx.load(net("mlp").path)
    path = tmp_path / "apart.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    written = [file.stat().st_size for file in tmp_path.iterdir()]
    assert len(written) == 2
    assert count(path).file_bytes == sum(written)


PRODUCTS: dict[str, tuple[onnx.NodeProto, bool]] = {
    "plain": (op("Gemm", ["x", "w", "b"], ["h"]), True),
    "bias as a row": (op("Gemm", ["x", "w", "row"], ["h"]), True),
    "bias of one number": (op("Gemm", ["x", "w", "single"], ["h"]), True),
    "bias by row": (op("Gemm", ["x", "w", "column"], ["h"]), False),
    "computed bias": (op("Gemm", ["x", "w", "mean"], ["h"]), False),
    "alpha": (op("Gemm", ["x", "w", "b"], ["h"], alpha=0.5), False),
    "alpha without a bias": (op("Gemm", ["x", "w"], ["h"], alpha=0.5), True),
    "beta": (op("Gemm", ["x", "w", "b"], ["h"], beta=0.5), False),
    "weight on the left": (op("MatMul", ["w", "x"], ["h"]), False),
    "weight on the left of a Gemm": (op("Gemm", ["w", "x"], ["h"]), False),
}


@pytest.mark.parametrize("case", PRODUCTS)
def test_what_is_said_to_be_in_int8_is_what_onnx_runtime_runs_in_int8(tmp_path: Path, case: str) -> None:
    node, served = PRODUCTS[case]
    node.name = "product"
    nodes = [
        op("ReduceMean", ["x"], ["mean"], axes=[0], keepdims=0),
        node,
        op("Relu", ["h"], ["r"]),
        op("MatMul", ["r", "w"], ["y"], name="next"),
    ]
    constants = {"w": numbers(24, 24), "b": numbers(24), "row": numbers(1, 24), "single": numbers(1)}
    path = write_network(tmp_path / "m.onnx", nodes, constants | {"column": numbers(24, 1)}, [24, 24])
    data = [{"x": numbers(24, 24)}]
    made = to_qdq(path, calibrate(path, data), tmp_path / "q.onnx", dialect="x86")
    assert made.in_int8 == (("product", "next") if served else ("next",))
    assert float_kernels(tmp_path / "q.onnx") == list(made.left_float) == ([] if served else ["product"])
    compare_files(path, tmp_path / "q.onnx", data, kind="lossy", name="int8")


SUMS: dict[str, tuple[str, bool]] = {
    "bias": ("b", True),
    "bias as a row": ("row", True),
    "one number": ("single", True),
    "bias by row": ("square", False),
    "computed bias": ("mean", False),
    "residual": ("x", False),
}


@pytest.mark.parametrize("activation", ["Relu", "Tanh"])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("case", SUMS)
def test_a_product_and_the_sum_behind_it_run_in_int8_or_are_said_not_to(
    tmp_path: Path, case: str, turned: bool, activation: str
) -> None:
    other, served = SUMS[case]
    nodes = [
        op("ReduceMean", ["x"], ["mean"], axes=[0], keepdims=0),
        op("MatMul", ["x", "w"], ["h"], name="first"),
        op(activation, ["h"], ["r"]),
        op("MatMul", ["r", "w"], ["m"], name="last"),
        op("Add", [other, "m"] if turned else ["m", other], ["y"]),
    ]
    constants = {"w": numbers(24, 24), "b": numbers(24), "row": numbers(1, 24), "single": numbers(1)}
    path = write_network(tmp_path / "m.onnx", nodes, constants | {"square": numbers(24, 24)}, [24, 24])
    data = [{"x": numbers(24, 24)}]
    made = to_qdq(path, calibrate(path, data), tmp_path / "q.onnx", dialect="x86")
    assert made.in_int8 == (("first", "last") if served else ("first",))
    assert list(made.left_float) == ([] if served else ["last"])
    assert len(float_kernels(tmp_path / "q.onnx")) == (0 if served else 1)
    hop = compare_files(path, tmp_path / "q.onnx", data, kind="lossy", name="int8")
    assert hop.outputs["y"].noise < 0.03


@pytest.mark.parametrize("operator", ["MatMul", "Gemm"])
def test_a_product_whose_relu_is_read_in_float_runs_in_int8(tmp_path: Path, operator: str) -> None:
    # ONNX Runtime leaves both in float unless the result of the ReLU is rounded for every reader.
    nodes = [
        op(operator, ["x", "w"], ["h"], name="product"),
        op("Relu", ["h"], ["r"]),
        op("Softmax", ["r"], ["y"]),
    ]
    path = write_network(tmp_path / "m.onnx", nodes, {"w": numbers(24, 24)}, ["batch", 24])
    data = [{"x": numbers(24, 24)}]
    made = to_qdq(path, calibrate(path, data), tmp_path / "q.onnx", dialect="x86")
    assert made.in_int8 == ("product",)
    assert float_kernels(tmp_path / "q.onnx") == []
    compare_files(path, tmp_path / "q.onnx", data, kind="lossy", name="int8")
