from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from support.int8_files import calibrate, to_half, to_qdq
from support.onnx_files import numbers, op, write_network
from support.tensorrt_versions import RTX, installed

from deadweight.export.lint.check import lint
from deadweight.export.onnx_graph.graph import Index
from deadweight.targets.errors import ModelError
from deadweight.targets.machine.probe import saturates_int8

Nets = Callable[[str], Any]
ASK = """
import json, sys
from pathlib import Path
from benchmarks.int8.rtx_parser import opinion
said = opinion(Path(sys.argv[1]), Path(sys.argv[2]))
print(json.dumps([said.refused, list(said.products.values())]))
"""
ALL = ["mlp", "residual", "depthwise", "joined", "attentive"]


def outputs(path: Path, inputs: dict[str, Any]) -> list[Any]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if saturates_int8():
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    return list(onnxruntime.InferenceSession(path, options).run(None, inputs))


@pytest.mark.parametrize("name", ALL)
def test_what_stays_in_float_is_fp16_and_inputs_and_outputs_are_not(
    net: Nets, tmp_path: Path, name: str
) -> None:
    made = net(name)
    inputs = {key: value.numpy() for key, value in made.batches[0].items()}
    to_qdq(made.path, made.ranges, tmp_path / "q.onnx")
    for source, tolerance in ((made.path, 2e-3), (tmp_path / "q.onnx", 0.03)):
        halved = to_half(source, tmp_path / "half.onnx")
        assert halved.left_float == {}
        model = onnx.load(tmp_path / "half.onnx")
        onnx.checker.check_model(model, full_check=True)
        index = Index.of(model.graph)
        for node in model.graph.node:
            if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
                assert index.constants[node.input[1]].data_type == TensorProto.FLOAT16
        assert not [one.name for one in model.graph.initializer if one.data_type == TensorProto.FLOAT]
        kinds = {value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)}
        assert kinds == {TensorProto.FLOAT}
        for right, found in zip(
            outputs(source, inputs), outputs(tmp_path / "half.onnx", inputs), strict=True
        ):
            assert found.dtype == np.float32
            assert np.abs(found - right).max() <= tolerance * np.abs(right).max()


@pytest.mark.parametrize("name", ALL)
def test_lint_finds_no_error_in_it_for_tensorrt_10_and_nothing_in_fp32_for_11(
    net: Nets, tmp_path: Path, name: str
) -> None:
    to_qdq(net(name).path, net(name).ranges, tmp_path / "q.onnx")
    to_half(tmp_path / "q.onnx", tmp_path / "half.onnx")
    assert lint(tmp_path / "half.onnx", tensorrt="10.3").counts["error"] == 0
    assert 403 not in {finding.rule for finding in lint(tmp_path / "half.onnx", tensorrt="11.4").findings}


def test_half_as_many_bytes(net: Nets, tmp_path: Path) -> None:
    to_half(net("residual").path, tmp_path / "half.onnx")
    assert (tmp_path / "half.onnx").stat().st_size < 0.55 * net("residual").path.stat().st_size


def test_tensorrt_8_is_refused_with_the_reason_and_what_to_do(net: Nets, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"TensorRT 8\.6 has no FP16 scales.*opset 17") as caught:
        to_half(net("mlp").path, tmp_path / "half.onnx", tensorrt=(8, 6))
    assert "flags INT8 and FP16" in caught.value.cure
    assert not (tmp_path / "half.onnx").exists()


def one_layer(tmp_path: Path, weight: float) -> Path:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(np.full((4, 4), weight, np.float32), "w")],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9), tmp_path / "m"
    )
    return tmp_path / "m"


def test_an_operator_with_a_constant_that_fp16_cannot_hold_stays_in_float(tmp_path: Path) -> None:
    made = to_half(one_layer(tmp_path, 1e5), tmp_path / "half.onnx")
    assert made.left_float == {"product": "its constant 'w' reaches 1e+05, but FP16 only 65504"}
    assert to_half(one_layer(tmp_path, 6e4), tmp_path / "half.onnx").left_float == {}


def test_a_mask_of_attention_beyond_fp16_still_masks(tmp_path: Path) -> None:
    mask = np.array([0.0, 0.0, -1e9, 0.0, -3.4e38, 0.0], np.float32)
    nodes = [
        op("MatMul", ["x", "w"], ["scores"]),
        op("Add", ["scores", "mask"], ["masked"], name="masked"),
        op("Softmax", ["masked"], ["y"]),
    ]
    path = write_network(tmp_path / "m.onnx", nodes, {"w": numbers(6, 6), "mask": mask}, ["batch", 6])
    made = to_half(path, tmp_path / "half.onnx")
    assert list(made.left_float) == ["masked"]
    x = {"x": numbers(4, 6)}
    np.testing.assert_allclose(outputs(tmp_path / "half.onnx", x)[0], outputs(path, x)[0], atol=2e-3)


def with_constants(path: Path, changed: dict[str, Any]) -> None:
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.name in changed:
            value = numpy_helper.to_array(tensor)
            value = np.broadcast_to(changed[tensor.name], value.shape).astype(value.dtype)
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    onnx.save(model, path)


def two_layers(tmp_path: Path, **scales: float) -> tuple[Path, Path]:
    """A network of two products in INT8 with other scales, and where its FP16 form is written."""
    nodes = [
        op("MatMul", ["x", "u"], ["a"], name="first"),
        op("Relu", ["a"], ["b"], name="relu"),
        op("MatMul", ["b", "v"], ["c"], name="second"),
        op("Sigmoid", ["c"], ["y"], name="sigmoid"),
    ]
    constants = {"u": numbers(8, 8), "v": numbers(8, 8)}
    path = write_network(tmp_path / "m.onnx", nodes, constants, ["batch", 8])
    ranges = calibrate(path, [{"x": numbers(4, 8)}])
    to_qdq(path, ranges, tmp_path / "q.onnx")
    with_constants(tmp_path / "q.onnx", scales)
    return tmp_path / "q.onnx", tmp_path / "half.onnx"


@pytest.mark.parametrize("scale", [1e-9, 1e4])
def test_a_layer_whose_scale_fp16_cannot_hold_stays_in_float_with_its_pairs(
    tmp_path: Path, scale: float
) -> None:
    path, half = two_layers(tmp_path, x_scale=scale, u_scale=0.01)
    made = to_half(path, half)
    beside = ["x_quantize", "x_dequantize", "first", "relu", "b_quantize"]
    assert sorted(made.left_float) == sorted(beside)
    assert "its scale 'x_scale' is" in made.left_float["x_quantize"]
    assert made.left_float["relu"] == "it is computed with 'first'"
    index = Index.of(onnx.load(half).graph)
    (first,) = [node for node in index.producer.values() if node.name == "first"]
    for name in first.input:  # no cast between a pair and its product: it still runs in INT8
        assert index.producer[name].op_type == "DequantizeLinear"
        assert index.constants[index.producer[name].input[1]].data_type == TensorProto.FLOAT
    (second,) = [node for node in index.producer.values() if node.name == "second"]
    for name in second.input:
        assert index.constants[index.producer[name].input[1]].data_type == TensorProto.FLOAT16
    x = {"x": (numbers(4, 8) * scale * 50).astype(np.float32)}
    np.testing.assert_allclose(outputs(half, x)[0], outputs(path, x)[0], atol=0.02)


def test_what_makes_values_beyond_fp16_stays_in_float(tmp_path: Path) -> None:
    path, half = two_layers(tmp_path, b_scale=1e4, u_scale=500.0)
    made = to_half(path, half)
    assert {"first", "relu", "b_quantize", "b_dequantize", "second"} <= set(made.left_float)
    x = {"x": np.full((2, 8), 30.0, np.float32)}
    found = outputs(half, x)[0]
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, outputs(path, x)[0], atol=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("scale", ["x_scale", "u_scale", "b_scale"])
def test_layers_left_in_float_still_run_in_int8_in_nvidias_builder(tmp_path: Path, scale: str) -> None:
    nodes = [
        op("Conv", ["x", "u"], ["a"], name="first"),
        op("Relu", ["a"], ["b"], name="relu"),
        op("Conv", ["b", "v"], ["c"], name="second"),
        op("Sigmoid", ["c"], ["y"], name="sigmoid"),
    ]
    constants = {"u": numbers(32, 32, 3, 3), "v": numbers(32, 32, 3, 3)}
    path = write_network(tmp_path / "m.onnx", nodes, constants, ["n", 32, 16, 16])
    to_qdq(path, calibrate(path, [{"x": numbers(4, 32, 16, 16)}]), tmp_path / "q.onnx")
    with_constants(tmp_path / "q.onnx", {scale: 1e4 if scale == "b_scale" else 1e-7})
    assert to_half(tmp_path / "q.onnx", tmp_path / "half.onnx").left_float
    done = subprocess.run(
        [sys.executable, "-c", ASK, str(tmp_path / "half.onnx"), str(installed(*RTX))],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout.splitlines()[-1]) == ["", ["Int8", "Int8"]]


def test_channels_that_died_in_training_do_not_keep_their_layer_in_float(tmp_path: Path) -> None:
    scales = np.full(8, 0.01, np.float32)
    scales[3] = 1e-12
    path, half = two_layers(tmp_path, u_scale=scales)  # type: ignore[arg-type]
    made = to_half(path, half)
    assert made.left_float == {}
    x = {"x": numbers(4, 8)}
    np.testing.assert_allclose(outputs(half, x)[0], outputs(path, x)[0], atol=0.02)


def test_a_term_against_division_by_zero_stays_in_float(tmp_path: Path) -> None:
    nodes = [op("Abs", ["x"], ["a"]), op("Add", ["a", "e"], ["b"], name="add"), op("Div", ["x", "b"], ["y"])]
    path = write_network(tmp_path / "m.onnx", nodes, {"e": np.array(1e-12, np.float32)}, ["batch", 4])
    assert to_half(path, tmp_path / "half.onnx").left_float == {
        "add": "its constant 'e' is 1e-12, which is 0 in FP16"
    }


def test_the_bodies_of_branches_stay_in_float_and_what_they_read_has_its_type(tmp_path: Path) -> None:
    def body(name: str, node: onnx.NodeProto) -> onnx.GraphProto:
        return helper.make_graph(
            [node], name, [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 6])]
        )

    branch = op(
        "If",
        ["deep"],
        ["chosen"],
        name="branch",
        then_branch=body("one", op("Add", ["a", "w"], ["one"])),
        else_branch=body("two", op("Sigmoid", ["a"], ["two"])),
    )
    nodes = [
        op("MatMul", ["x", "w"], ["a"], name="product"),
        op("ReduceMax", ["a"], ["top"], keepdims=0),
        op("Greater", ["top", "limit"], ["deep"]),
        branch,
        op("MatMul", ["chosen", "w"], ["y"], name="last"),
    ]
    constants = {"w": numbers(6, 6), "limit": np.array(100.0, np.float32)}
    path = write_network(tmp_path / "m.onnx", nodes, constants, [6, 6])
    made = to_half(path, tmp_path / "half.onnx")
    assert made.left_float == {"branch": "the bodies of branches and loops are not converted"}
    assert made.in_half == 4
    for x in ({"x": numbers(6, 6)}, {"x": 100 * np.abs(numbers(6, 6))}):
        np.testing.assert_allclose(
            outputs(tmp_path / "half.onnx", x)[0], outputs(path, x)[0], rtol=1e-2, atol=0.02
        )


def test_a_float_file_keeps_its_opset(tmp_path: Path) -> None:
    path = write_network(tmp_path / "m.onnx", [op("Relu", ["x"], ["y"])], {}, ["batch", 4], opset=13)
    assert to_half(path, tmp_path / "half.onnx").model.proto.opset_import[0].version == 13


def test_what_has_no_half_precision_stays_in_float_between_casts(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [
            helper.make_node("Relu", ["x"], ["a"], name="relu"),
            helper.make_node("Bernoulli", ["a"], ["b"], name="coin", seed=1.0),
            helper.make_node("Resize", ["b", "", "scales"], ["c"], name="resize"),
            helper.make_node("NonMaxSuppression", ["boxes", "c", "most"], ["y"], name="nms"),
        ],
        "graph",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, 3]),
            helper.make_tensor_value_info("boxes", TensorProto.FLOAT, [1, 3, 4]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.INT64, [None, 3])],
        [
            numpy_helper.from_array(np.ones(3, np.float32), "scales"),
            numpy_helper.from_array(np.array([3]), "most"),
        ],
    )
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9), path)
    halved = to_half(path, tmp_path / "half.onnx")
    assert set(halved.left_float) == {"nms"}
    index = Index.of(onnx.load(tmp_path / "half.onnx").graph)
    (nms,) = [node for node in index.producer.values() if node.op_type == "NonMaxSuppression"]
    assert nms.input[0] == "boxes"
    assert index.producer[nms.input[1]].op_type == "Cast"
    (resize,) = [node for node in index.producer.values() if node.op_type == "Resize"]
    assert index.constants[resize.input[2]].data_type == TensorProto.FLOAT


def test_an_operator_that_names_its_own_type_keeps_it(tmp_path: Path) -> None:
    filled = numpy_helper.from_array(np.array([0.5], np.float32))
    nodes = [
        op("Shape", ["x"], ["sizes"]),
        op("ConstantOfShape", ["sizes"], ["halves"], name="halves", value=filled),
        op("Add", ["x", "halves"], ["s"]),
        op("MatMul", ["s", "w"], ["y"]),
    ]
    path = write_network(tmp_path / "m.onnx", nodes, {"w": numbers(24, 9)}, ["batch", 24])
    made = to_half(path, tmp_path / "half.onnx")
    assert list(made.left_float) == ["halves"]
    x = {"x": numbers(4, 24)}
    np.testing.assert_allclose(outputs(tmp_path / "half.onnx", x)[0], outputs(path, x)[0], atol=0.01)
