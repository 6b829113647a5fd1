from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from support.int8_files import to_half, to_qdq
from support.onnx_files import numbers, op, write_network

from deadweight.export.lint.check import lint
from deadweight.export.onnx_graph.graph import Index
from deadweight.targets.errors import ModelError

Nets = Callable[[str], Any]
ALL = ["mlp", "residual", "depthwise", "joined", "attentive"]


def outputs(path: Path, inputs: dict[str, Any]) -> list[Any]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
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


def test_a_scale_that_would_be_0_in_fp16_is_an_error(net: Nets, tmp_path: Path) -> None:
    to_qdq(net("mlp").path, net("mlp").ranges, tmp_path / "q.onnx")
    model = onnx.load(tmp_path / "q.onnx")
    (scale,) = [one for one in model.graph.initializer if one.name == "x_scale"]
    scale.CopyFrom(numpy_helper.from_array(np.array(1e-9, np.float32), "x_scale"))
    onnx.save(model, tmp_path / "q.onnx")
    with pytest.raises(ModelError, match=r"'x_scale' of 'x_quantize' is 1e-09, which is 0 in FP16"):
        to_half(tmp_path / "q.onnx", tmp_path / "half.onnx")


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
