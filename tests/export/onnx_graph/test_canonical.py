from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from deadweight.export.onnx_graph import canonical
from deadweight.export.onnx_graph.run import runner
from deadweight.targets.errors import ModelError


def model_of(
    nodes: list[onnx.NodeProto], constants: dict[str, Any], shape: list[Any], opset: int = 18
) -> onnx.ModelProto:
    """A model from x to y."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def numbers(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


node = helper.make_node
AXES = {"axes": np.array([-1], np.int64)}


@pytest.mark.parametrize(
    ("made", "constants"),
    [
        (node("ReduceMean", ["x", "axes"], ["y"], keepdims=0), AXES),
        (node("ReduceMax", ["x", "axes"], ["y"], noop_with_empty_axes=0), AXES),
        (node("ReduceMin", ["x"], ["y"]), {}),
        (node("ReduceSum", ["x", "axes"], ["y"]), AXES),
        (node("Split", ["x"], ["y", "z"], axis=1, num_outputs=2), {}),
        (node("Pad", ["x", "pads"], ["y"]), {"pads": np.array([0, 1, 0, 0, 1, 0], np.int64)}),
        (node("Relu", ["x"], ["y"]), {}),
        (
            node("Resize", ["x", "", "scales"], ["y"], mode="nearest", antialias=0),
            {"scales": np.array([1, 2, 1], np.float32)},
        ),
    ],
    ids=lambda value: value.op_type if isinstance(value, onnx.NodeProto) else "",
)
def test_an_operator_means_the_same_after_it_was_said_in_opset_17(
    made: onnx.NodeProto, constants: dict[str, Any]
) -> None:
    model = model_of([made], constants, ["batch", 4, 6])
    x = {"x": numbers(3, 4, 6)}
    before = runner(model)(x)["y"]
    canonical.lower_opset(model, 17)
    assert model.opset_import[0].version == 17
    onnx.checker.check_model(onnx.shape_inference.infer_shapes(model, strict_mode=True))
    np.testing.assert_array_equal(runner(model)(x)["y"], before)


@pytest.mark.parametrize(
    ("made", "constants"),
    [
        (node("Mish", ["x"], ["y"], name="act/Mish"), {}),
        (node("DeformConv", ["x", "x", "x"], ["y"]), {}),  # torch writes it as 18, which has none either
        (
            node("Resize", ["x", "", "scales"], ["y"], mode="linear", antialias=1),
            {"scales": np.array([1, 1, 0.5], np.float32)},
        ),
        (node("Pad", ["x", "pads", "", "axes"], ["y"]), {"pads": np.array([1, 1]), **AXES}),
    ],
)
def test_what_opset_17_cannot_say_is_refused_by_name(made: onnx.NodeProto, constants: dict[str, Any]) -> None:
    model = model_of([made], constants, ["batch", 4, 6])
    with pytest.raises(ModelError, match=rf"{made.name or 'y'} \({made.op_type}\)"):
        canonical.lower_opset(model, 17)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("kind", ["Conv", "ConvTranspose", "Gemm", "Gemm transposed"])
@pytest.mark.parametrize("bias", [True, False])
def test_a_folded_batch_norm_computes_the_same(kind: str, groups: int, bias: bool) -> None:
    operator, _, transposed = kind.partition(" ")
    channels = 6
    if operator == "Gemm":
        weight = numbers(channels, 4, seed=1) if transposed else numbers(4, channels, seed=1)
        attributes: dict[str, Any] = {"transB": 1} if transposed else {}
        x = numbers(3, 4)
    else:
        weight = (
            numbers(4, channels // groups, 3, 3)
            if operator == "ConvTranspose"
            else numbers(channels, 4 // groups, 3, 3)
        )
        attributes = {"group": groups}
        x = numbers(3, 4, 8, 8)
    constants = {
        "w": weight,
        "gamma": numbers(channels, seed=2),
        "beta": numbers(channels, seed=3),
        "mean": numbers(channels, seed=4),
        "variance": np.abs(numbers(channels, seed=5)) + 0.1,
    }
    names = ["x", "w"]
    if bias:
        constants["b"] = numbers(channels, seed=6)
        names.append("b")
    nodes = [
        node(operator, names, ["h"], **attributes),
        node("BatchNormalization", ["h", "gamma", "beta", "mean", "variance"], ["y"], epsilon=1e-3),
    ]
    model = model_of(nodes, constants, ["batch", *x.shape[1:]], 17)
    before = runner(model)({"x": x})["y"]
    canonical.fold_batch_norm(model)
    assert [made.op_type for made in model.graph.node] == [operator]
    assert len(model.graph.initializer) == 2
    np.testing.assert_allclose(runner(model)({"x": x})["y"], before, rtol=1e-4, atol=1e-4)


def test_a_batch_norm_stays_when_the_value_before_it_is_read_elsewhere() -> None:
    constants = {"w": numbers(4, 4)} | {name: np.ones(4, np.float32) for name in "gbmv"}
    nodes = [
        node("Gemm", ["x", "w"], ["h"]),
        node("BatchNormalization", ["h", "g", "b", "m", "v"], ["n"]),
        node("Add", ["h", "n"], ["y"]),
    ]
    model = model_of(nodes, constants, ["batch", 4], 17)
    canonical.fold_batch_norm(model)
    assert [made.op_type for made in model.graph.node] == ["Gemm", "BatchNormalization", "Add"]


def test_an_output_that_is_an_input_or_comes_twice_keeps_its_own_name() -> None:
    model = model_of([node("Relu", ["x"], ["y"])], {}, ["batch", 4], 17)
    model.graph.output.append(model.graph.output[0])
    model.graph.output.append(model.graph.input[0])
    canonical.name_by_module(model, set(), ["a", "b", "c"])
    x = numbers(2, 4)
    found = runner(model)({"x": x})
    np.testing.assert_array_equal(found["a"], np.maximum(x, 0))
    np.testing.assert_array_equal(found["b"], found["a"])
    np.testing.assert_array_equal(found["c"], x)


def test_a_mean_over_space_and_channels_is_no_global_pool() -> None:
    for axes in ([1, 2, 3], [3], [0, 2, 3]):
        made = node("ReduceMean", ["x", "axes"], ["y"])
        model = model_of([made], {"axes": np.array(axes, np.int64)}, ["batch", 4, 5, 5])
        canonical.global_pools(model)
        assert model.graph.node[0].op_type == "ReduceMean"


def test_one_convolution_before_two_norms_is_folded_into_each() -> None:
    # The head of a detector: one convolution for all scales of the image, a norm for each.
    nodes = [
        node("Conv", ["x", "w"], ["a"], name="near"),
        node("BatchNormalization", ["a", "g", "b", "m", "v"], ["c"]),
        node("Conv", ["x", "w"], ["d"], name="far"),
        node("BatchNormalization", ["d", "v", "m", "b", "g"], ["e"]),
        node("Concat", ["c", "e"], ["y"], axis=1),
    ]
    norms = {name: np.abs(numbers(4, seed=place)) for place, name in enumerate("gbmv")}
    model = model_of(nodes, {"w": numbers(4, 3, 1, 1), **norms}, ["batch", 3, 5, 5])
    expected = runner(model)({"x": numbers(2, 3, 5, 5)})["y"]
    canonical.fold_batch_norm(model)
    names = [tensor.name for tensor in model.graph.initializer]
    assert len(set(names)) == len(names)
    assert [made.op_type for made in model.graph.node] == ["Conv", "Conv", "Concat"]
    np.testing.assert_allclose(runner(model)({"x": numbers(2, 3, 5, 5)})["y"], expected, rtol=1e-4, atol=1e-5)
