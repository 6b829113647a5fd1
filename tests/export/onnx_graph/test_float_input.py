from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from support.int8_files import calibrate, compare_files, float_kernels, to_half, to_qdq
from support.onnx_files import numbers, op, write_network

from deadweight.export.onnx_graph.float_input import as_float, at_opset
from deadweight.export.onnx_graph.graph import load
from deadweight.targets.errors import ModelError

RANDOM = np.random.default_rng(0)
DATA = [{"x": RANDOM.standard_normal((16, 16, 8, 8)).astype(np.float32)}]
CONSTANTS = {name: RANDOM.normal(0.0, 0.2, (16, 16, 3, 3)).astype(np.float32) for name in ("w1", "w2")}
CONSTANTS |= {name: RANDOM.normal(0.0, 0.2, 16).astype(np.float32) for name in ("b1", "b2")}


def nodes(first: str = "w1", second: str = "w2") -> list[onnx.NodeProto]:
    return [
        helper.make_node("Conv", ["x", first, "b1"], ["a"], name="conv1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["r"], name="relu"),
        helper.make_node("Conv", ["r", second, "b2"], ["y"], name="conv2", pads=[1, 1, 1, 1]),
    ]


def written(
    path: Path,
    made: list[onnx.NodeProto],
    constants: dict[str, Any] = CONSTANTS,
    *,
    opset: int = 17,
    ir: int = 8,
    as_inputs: bool = False,
) -> Path:
    kind = TensorProto.FLOAT
    shape: list[str | int | None] = ["batch", 16, 8, 8]
    stored = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    inputs = [helper.make_tensor_value_info("x", kind, shape)]
    if as_inputs:
        inputs += [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in stored]
    graph = helper.make_graph(made, "g", inputs, [helper.make_tensor_value_info("y", kind, shape)], stored)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir), path)
    return path


def stored_as_int8(path: Path) -> dict[str, tuple[int, ...]]:
    kept = onnx.load(path).graph.initializer
    return {t.name: tuple(t.dims) for t in kept if t.data_type == TensorProto.INT8 and len(t.dims) == 4}


@pytest.mark.parametrize("dialect", ["tensorrt", "x86"])
def test_initializers_that_are_inputs_too_leave_no_input_behind(tmp_path: Path, dialect: Any) -> None:
    path = written(tmp_path / "old.onnx", nodes(), ir=3, as_inputs=True)
    to_qdq(path, calibrate(path, DATA), tmp_path / "q.onnx", dialect=dialect)
    to_half(path, tmp_path / "half.onnx")
    for name in ("q.onnx", "half.onnx"):
        session = onnxruntime.InferenceSession(tmp_path / name)
        assert [value.name for value in session.get_inputs()] == ["x"]
    compare_files(path, tmp_path / "q.onnx", DATA, kind="lossy", name="int8")


def test_an_opset_without_scales_by_channel_is_raised_to_one_with_them(tmp_path: Path) -> None:
    clip = helper.make_node("Clip", ["y0", "low", "high"], ["y"], name="clip")
    made = nodes()
    made[2].output[0] = "y0"
    bounds = {"low": np.float32(0), "high": np.float32(1)}
    for ir in (
        6,
        3,
    ):  # in IR 3, constants that are no inputs are against the rules, and ONNX Runtime takes them
        path = written(tmp_path / "old.onnx", [*made, clip], CONSTANTS | bounds, opset=11, ir=ir)
        assert at_opset(load(path), 13).proto.opset_import[0].version == 13
    made_float = as_float(load(path))
    assert [node.name for node in made_float.graph.node] == ["conv1", "relu", "conv2", "clip"]
    quantized = to_qdq(path, calibrate(path, DATA), tmp_path / "q.onnx")
    assert quantized.in_int8 == ("conv1", "conv2")
    assert onnx.load(tmp_path / "q.onnx").opset_import[0].version == 13
    compare_files(path, tmp_path / "q.onnx", DATA, kind="lossy", name="int8")


def test_what_the_converter_adds_gets_a_name_of_its_own(tmp_path: Path) -> None:
    # The softmax of opset 11 flattens; later ones need a Shape, a Flatten and a Reshape around it.
    made = nodes()
    made[2].output[0] = "y0"
    path = written(
        tmp_path / "old.onnx", [*made, helper.make_node("Softmax", ["y0"], ["y"], axis=1)], opset=11, ir=6
    )
    for model in (as_float(load(path)), to_half(path, tmp_path / "half.onnx").model):
        names = [node.name for node in model.graph.node]
        assert all(names)
        assert len(set(names)) == len(names)


def test_weights_behind_moves_and_casts_are_stored_as_int8_by_channel(tmp_path: Path) -> None:
    constants = CONSTANTS | {
        "w1": CONSTANTS["w1"].astype(np.float16),
        "w2": np.ascontiguousarray(CONSTANTS["w2"].transpose(3, 2, 1, 0)),
    }
    before = [
        helper.make_node("Cast", ["w1"], ["w1_float"], to=TensorProto.FLOAT),
        helper.make_node("Identity", ["w1_float"], ["w1_again"]),
        helper.make_node("Transpose", ["w2"], ["w2_turned"], perm=[3, 2, 1, 0]),
    ]
    path = written(tmp_path / "m.onnx", [*before, *nodes("w1_again", "w2_turned")], constants)
    ranges = calibrate(path, DATA)
    assert not {"w1_float", "w1_again", "w2_turned"} & set(ranges.tensors)
    to_qdq(path, ranges, tmp_path / "q.onnx", dialect="x86")
    assert set(stored_as_int8(tmp_path / "q.onnx").values()) == {(16, 16, 3, 3)}
    assert float_kernels(tmp_path / "q.onnx") == []
    compare_files(path, tmp_path / "q.onnx", DATA, kind="lossy", name="int8")


def test_a_weight_that_two_layers_share_by_an_identity_is_stored_once(tmp_path: Path) -> None:
    path = written(
        tmp_path / "m.onnx", [helper.make_node("Identity", ["w1"], ["again"]), *nodes("w1", "again")]
    )
    to_qdq(path, calibrate(path, DATA), tmp_path / "q.onnx")
    assert len(stored_as_int8(tmp_path / "q.onnx")) == 1


def test_a_broken_weight_is_found_where_the_float_one_is_a_constant_node(tmp_path: Path) -> None:
    constant = helper.make_node("Constant", [], ["w1"], value=numpy_helper.from_array(CONSTANTS["w1"]))
    others = {name: value for name, value in CONSTANTS.items() if name != "w1"}
    path = written(tmp_path / "m.onnx", [constant, *nodes()], others)
    to_qdq(path, calibrate(path, DATA), tmp_path / "q.onnx")
    broken = onnx.load(tmp_path / "q.onnx")
    (weight,) = [tensor for tensor in broken.graph.initializer if tensor.name == "w1_int8"]
    weight.CopyFrom(numpy_helper.from_array(np.roll(numpy_helper.to_array(weight), 1, 0), "w1_int8"))
    onnx.save(broken, tmp_path / "broken.onnx")
    with pytest.raises(ModelError, match="'w1' of Conv 'conv1' is off"):
        compare_files(path, tmp_path / "broken.onnx", DATA, kind="lossy", name="int8")


def test_layers_inside_local_functions_are_seen(tmp_path: Path) -> None:
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("mine", 1)]
    body = [op("MatMul", ["a", "b"], ["c"], name="product"), op("Relu", ["c"], ["d"])]
    layers = [op("Layer", ["x", "w1"], ["h"], domain="mine"), op("Layer", ["h", "w2"], ["y"], domain="mine")]
    constants = {"w1": numbers(24, 32), "w2": numbers(32, 9)}
    model = onnx.load(write_network(tmp_path / "m.onnx", layers, constants, ["batch", 24]))
    model.opset_import.append(imports[1])
    model.functions.append(helper.make_function("mine", "Layer", ["a", "b"], ["d"], body, imports[:1]))
    onnx.save(model, tmp_path / "m.onnx")
    data = [{"x": numbers(16, 24)}]
    made = to_qdq(tmp_path / "m.onnx", calibrate(tmp_path / "m.onnx", data), tmp_path / "q.onnx")
    assert len(made.in_int8) == 2
    compare_files(tmp_path / "m.onnx", tmp_path / "q.onnx", data, kind="lossy", name="int8")


def test_an_output_without_a_shape_gets_the_one_that_follows_from_the_network(tmp_path: Path) -> None:
    unknown = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    nodes, constants = [op("MatMul", ["x", "w"], ["y"])], {"w": numbers(24, 9)}
    path = write_network(tmp_path / "m.onnx", nodes, constants, ["batch", 24], outputs=unknown)
    to_qdq(path, calibrate(path, [{"x": numbers(4, 24)}]), tmp_path / "q.onnx")
    (output,) = onnxruntime.InferenceSession(tmp_path / "q.onnx").get_outputs()
    assert output.shape == ["batch", 9]


@pytest.mark.parametrize(
    "broken",
    [
        op("Cast", ["w"], ["v"]),
        op("Reshape", ["w", "seven"], ["v"]),
        op("Gemm", ["x"], ["v"]),
    ],
)
def test_a_broken_operator_is_refused_in_words(tmp_path: Path, broken: onnx.NodeProto) -> None:
    constants = {"w": numbers(24, 9), "seven": np.array([7, 7])}
    path = write_network(
        tmp_path / "m.onnx", [broken, op("MatMul", ["x", "v"], ["y"])], constants, ["batch", 24]
    )
    with pytest.raises(ModelError, match="ONNX Runtime refuses the model"):
        calibrate(path, [{"x": numbers(4, 24)}])
