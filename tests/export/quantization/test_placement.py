from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from deadweight.export.onnx_graph.graph import OnnxModel, load
from deadweight.export.onnx_graph.kernels import single_rows
from deadweight.export.quantization.placement import DIALECTS, place
from deadweight.targets.errors import ModelError

Nets = Callable[[str], Any]


def graph_of(nodes: list[onnx.NodeProto], constants: dict[str, Any], channels: int = 16) -> onnx.GraphProto:
    return helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", channels, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", channels, 8, 8])],
        [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in constants.items()],
    )


def model_of(graph: onnx.GraphProto) -> OnnxModel:
    imports = [helper.make_opsetid("", 17)]
    return OnnxModel(helper.make_model(graph, opset_imports=imports), Path("m.onnx"))


def conv(x: str, y: str) -> onnx.NodeProto:
    return helper.make_node("Conv", [x, "w"], [y], name=f"{y}/Conv")


node = helper.make_node
W = {"w": np.ones((16, 16, 1, 1))}


def test_tensorrt_rounds_inputs_of_weighted_operators_and_the_skip_of_an_add(net: Nets) -> None:
    placed = place(load(net("residual").path), "tensorrt")
    wanted = {"image", "MaxPool", "same/Relu", "same/Relu_1", "wider.shortcut/Conv", "wider/Relu", "Reshape"}
    assert set(placed.tensors) == wanted
    assert placed.left_float == {}


def test_tensorrt_never_rounds_between_a_weighted_operator_and_its_activation() -> None:
    for activation in ("Relu", "Sigmoid", "HardSwish"):
        graph = graph_of([conv("x", "a"), node(activation, ["a"], ["b"]), conv("b", "y")], W)
        assert place(model_of(graph), "tensorrt").tensors == ("x", "b")


@pytest.mark.parametrize("order", [["a", "r"], ["r", "a"]])
def test_only_the_residual_branch_of_an_add_is_rounded(order: list[str]) -> None:
    graph = graph_of(
        [
            conv("x", "h"),
            node("Relu", ["h"], ["r"]),
            conv("r", "a"),
            node("Add", order, ["s"]),
            node("Relu", ["s"], ["y"]),
        ],
        W,
    )
    placed = place(model_of(graph), "tensorrt")
    assert (3, order.index("r")) in placed.readers
    assert (3, order.index("a")) not in placed.readers


@pytest.mark.parametrize("order", [["long", "short"], ["short", "long"]])
def test_of_two_convolutions_the_shorter_branch_is_the_residual(order: list[str]) -> None:
    graph = graph_of([conv("x", "h"), conv("x", "short"), conv("h", "long"), node("Add", order, ["y"])], W)
    placed = place(model_of(graph), "tensorrt")
    assert placed.tensors == ("x", "h", "short")
    assert (3, order.index("short")) in placed.readers


def test_an_add_without_a_convolution_beside_it_is_left_alone() -> None:
    relu = [
        node("Relu", ["x"], ["a"]),
        node("Relu", ["a"], ["b"]),
        node("Add", ["a", "b"], ["s"]),
        conv("s", "y"),
    ]
    assert place(model_of(graph_of(relu, W)), "tensorrt").tensors == ("s",)


def test_a_concat_has_one_scale_in_tensorrt_and_its_own_for_each_input_on_x86() -> None:
    nodes = [
        conv("x", "a"),
        node("Relu", ["a"], ["b"]),
        conv("b", "c"),
        node("MaxPool", ["c"], ["d"], kernel_shape=[1, 1]),
        node("Concat", ["b", "d"], ["e"], axis=0),
        conv("e", "y"),
    ]
    tied = place(model_of(graph_of(nodes, W)), "tensorrt").ties
    assert tied["b"] == tied["e"] == ("b", "e")
    on_x86 = place(model_of(graph_of(nodes, W)), "x86").ties
    assert on_x86["b"] == ("b",)
    assert on_x86["c"] == ("c", "d")


def test_weights_have_their_scales_along_the_output_channel(net: Nets) -> None:
    graph = onnx.load(net("joined").path).graph
    axes = {
        graph.node[position].name: weight.axis
        for dialect in DIALECTS
        for (position, _), weight in place(model_of(graph), dialect).weights.items()
    }
    assert axes == {"down/Conv": 0, "deep/Conv": 0, "up/ConvTranspose": 1, "head/Conv": 0}
    constants = {"t": np.ones((3, 8)), "n": np.ones((8, 3)), "m": np.ones((8, 3)), "p": np.ones((2, 8, 3))}
    products = [
        node("Gemm", ["x", "t"], ["a"], transB=1),
        node("Gemm", ["x", "n"], ["b"]),
        node("MatMul", ["x", "m"], ["c"]),
        node("MatMul", ["x", "p"], ["y"]),
    ]
    weights = place(model_of(graph_of(products, constants)), "tensorrt").weights
    assert [weights[position, 1].axis for position in range(4)] == [0, 1, 1, None]


def test_x86_rounds_behind_the_activation_and_between_int8_operators(net: Nets) -> None:
    graph = onnx.load(net("residual").path).graph
    placed = place(model_of(graph), "x86")
    before_relu = {made.input[0] for made in graph.node if made.op_type == "Relu"}
    assert not before_relu & set(placed.tensors)
    convolutions = {made.output[0] for made in graph.node if made.op_type == "Conv"}
    behind = {made.output[0] for made in graph.node if made.op_type == "Relu"}
    assert (convolutions - before_relu) | behind <= set(placed.tensors)


def test_x86_leaves_a_float_region_alone(net: Nets) -> None:
    graph = onnx.load(net("attentive").path).graph
    made_by = {name: made.op_type for made in graph.node for name in made.output}
    placed = place(model_of(graph), "x86")
    read = {graph.node[position].input[place_] for position, place_ in placed.readers}
    # Only what a product reads is rounded: not the residual stream, not what a norm or a softmax reads.
    assert set(placed.tensors) == read
    assert {made_by[name] for name in placed.tensors} >= {"LayerNormalization", "Softmax"}


def test_a_skipped_layer_asks_for_nothing(net: Nets) -> None:
    graph = onnx.load(net("mlp").path).graph
    placed = place(model_of(graph), "tensorrt", skip=["fc1/Gemm"])
    assert "x" not in placed.tensors
    assert placed.left_float == {"fc1/Gemm": "requested"}
    assert len(placed.weights) == 2


@pytest.mark.parametrize(
    ("shape", "attributes", "reason"),
    [
        ((8, 2, 3, 3), {}, ""),  # the first convolution may read few channels
        ((12, 16, 3, 3), {}, ""),
        ((12, 12, 3, 3), {}, "too narrow"),
        ((16, 8, 3, 1), {}, "too narrow"),
        ((16, 1, 3, 3), {"group": 16}, ""),
        ((12, 1, 3, 3), {"group": 12}, "too narrow"),
        ((16, 1, 1, 1), {"group": 16}, "too narrow"),
        ((12, 20, 3, 3), {}, "too narrow"),
    ],
)
def test_a_convolution_without_an_int8_kernel_stays_float_in_tensorrt_alone(
    shape: tuple[int, ...], attributes: dict[str, Any], reason: str
) -> None:
    graph = graph_of([node("Conv", ["x", "w"], ["y"], name="conv", **attributes)], {"w": np.ones(shape)})
    left = place(model_of(graph), "tensorrt").left_float
    assert (reason in left["conv"]) if reason else (left == {})
    assert place(model_of(graph), "x86").left_float == {}


def test_behind_the_first_a_convolution_must_be_wide_on_one_side() -> None:
    nodes = [node("Relu", ["x"], ["r"]), node("Conv", ["r", "w"], ["y"], name="conv")]
    assert place(model_of(graph_of(nodes, {"w": np.ones((16, 8, 3, 3))})), "tensorrt").left_float == {}
    narrow = place(model_of(graph_of(nodes, {"w": np.ones((8, 8, 3, 3))})), "tensorrt")
    assert "too narrow" in narrow.left_float["conv"]


def test_a_product_with_a_vector_stays_float_in_tensorrt() -> None:
    nodes = [
        node("Gemm", ["x", "t"], ["a"], transB=1, name="gemm"),
        node("MatMul", ["x", "v"], ["b"], name="vector"),
        node("MatMul", ["x", "m"], ["y"], name="matrix"),
    ]
    constants = {"t": np.ones((1, 8)), "v": np.ones((8, 1)), "m": np.ones((8, 2))}
    left = place(model_of(graph_of(nodes, constants)), "tensorrt").left_float
    assert set(left) == {"gemm", "vector"}
    assert "a vector" in left["gemm"]


def test_a_misspelt_name_is_an_error_that_proposes_the_nearest(net: Nets) -> None:
    graph = onnx.load(net("mlp").path).graph
    with pytest.raises(ModelError, match="fc1/Gem'") as caught:
        place(model_of(graph), "tensorrt", skip=["fc1/Gem"])
    assert "fc1/Gemm" in caught.value.cure
    with pytest.raises(ModelError, match="dialect 'arm'"):
        place(model_of(graph), "arm")


def test_a_product_of_a_single_row_stays_float_in_tensorrt_whatever_the_batch() -> None:
    nodes = [
        node("MatMul", ["x", "m"], ["a"], name="row"),
        node("Reshape", ["a", "shape"], ["b"]),
        node("Gemm", ["b", "m"], ["y"], name="batch"),
    ]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 1, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 16])],
        [
            numpy_helper.from_array(np.ones((16, 16), np.float32), "m"),
            numpy_helper.from_array(np.array([-1, 16]), "shape"),
        ],
    )
    assert single_rows(model_of(graph)) == {"row"}
    left = place(model_of(graph), "tensorrt").left_float
    assert set(left) == {"row"}
    assert "a single row" in left["row"]
    assert place(model_of(graph), "x86").left_float == {}
