from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from support.int8_files import calibrate, compare_files, to_qdq
from support.onnx_files import numbers, op, write_network

from deadweight.export.onnx_graph.graph import Index, load
from deadweight.export.onnx_graph.run import runner
from deadweight.export.quantization.calibrate import tensors_to_measure
from deadweight.export.quantization.placement import DIALECTS, place
from deadweight.targets.errors import ModelError, WorkloadError

Nets = Callable[[str], Any]
METHODS: list[Any] = ["minmax", "percentile", "entropy", "mse"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["mlp", "residual", "depthwise", "joined", "attentive"])
def test_both_dialects_find_every_range_they_need(net: Nets, name: str, method: Any) -> None:
    ranges = calibrate(net(name).path, net(name).batches, method=method)
    for dialect in DIALECTS:
        assert set(place(load(net(name).path), dialect).tensors) <= set(ranges.tensors)
    assert ranges.samples == 27
    assert ranges.method == method


def test_minmax_is_the_smallest_and_largest_value_that_came(net: Nets) -> None:
    made = net("residual")
    model = load(made.path)
    tensors = tensors_to_measure(model)
    feeds = {"image": torch.cat([batch["image"] for batch in made.batches]).numpy()}
    values = runner(model.proto, tensors, optimize=False)(feeds)
    for name, found in made.ranges.tensors.items():
        assert found.low == pytest.approx(values[name].min(), rel=1e-5, abs=1e-6)
        assert found.high == pytest.approx(values[name].max(), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_ranges_do_not_depend_on_how_the_data_were_batched(net: Nets, method: Any) -> None:
    made = net("mlp")
    whole = torch.cat([batch["x"] for batch in made.batches])
    found = calibrate(made.path, made.batches, method=method)
    for parts in (whole[:, None], [whole], whole.flip(0).reshape(9, 3, 64)):
        again = calibrate(made.path, [{"x": part} for part in parts], method=method)
        for name, value in again.tensors.items():
            # Products are added up in an order that depends on the batch, hence not bit for bit.
            assert value.low == pytest.approx(found.tensors[name].low, rel=1e-5)
            assert value.high == pytest.approx(found.tensors[name].high, rel=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_the_same_data_give_the_same_ranges(net: Nets, method: Any) -> None:
    one, two = (calibrate(net("joined").path, net("joined").batches, method=method) for _ in range(2))
    assert json.dumps(one.to_json()) == json.dumps(two.to_json())


@pytest.mark.parametrize("method", ["percentile", "entropy"])
def test_an_outlier_stretches_minmax_and_not_percentile_or_entropy(net: Nets, method: Any) -> None:
    x = torch.randn(400, 64, generator=torch.Generator().manual_seed(0))
    x[7, 7] = 500.0
    assert calibrate(net("mlp").path, [{"x": x}]).tensors["x"].high == 500.0
    assert calibrate(net("mlp").path, [{"x": x}], method=method).tensors["x"].high < 20.0


def test_progress_is_reported_in_samples_and_labels_are_ignored(net: Nets) -> None:
    calls: list[int] = []
    batches = [batch | {"label": torch.zeros(len(batch["x"]))} for batch in net("mlp").batches]
    calibrate(net("mlp").path, batches, progress=calls.append)
    assert calls == sorted(calls)
    assert calls[-1] == 27


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("value", "said"), [(np.nan, "NaN"), (np.inf, "infinity"), (-np.inf, "infinity")])
def test_values_that_are_not_finite_are_an_error_naming_the_tensor(
    net: Nets, method: Any, value: float, said: str
) -> None:
    x = net("mlp").batches[0]["x"].clone()
    x[3, 4] = value
    with pytest.raises(ModelError, match=rf"'x' has {said}, in one of the samples 0 to 7"):
        calibrate(net("mlp").path, [{"x": x}], method=method)


@pytest.mark.parametrize("method", METHODS)
def test_nan_from_inside_the_network_is_found(net: Nets, tmp_path: Path, method: Any) -> None:
    model = onnx.load(net("mlp").path)
    for tensor in model.graph.initializer:
        if tensor.name == "fc2.bias":
            bias = numpy_helper.to_array(tensor).copy()
            bias[3] = np.nan
            tensor.CopyFrom(numpy_helper.from_array(bias, tensor.name))
    onnx.save(model, tmp_path / "nan.onnx")
    with pytest.raises(ModelError, match="NaN"):
        calibrate(tmp_path / "nan.onnx", net("mlp").batches, method=method)


@pytest.mark.parametrize("method", METHODS)
def test_data_that_say_nothing_are_errors_with_a_cure(net: Nets, method: Any) -> None:
    path = net("mlp").path
    with pytest.raises(WorkloadError, match="no calibration data"):
        calibrate(path, [], method=method)
    with pytest.raises(WorkloadError, match="constant"):
        calibrate(path, [{"x": torch.ones(4, 64)}], method=method)
    with pytest.raises(WorkloadError, match="lacks the inputs"):
        calibrate(path, [{"pixels": torch.ones(4, 64)}], method=method)
    with pytest.raises(WorkloadError, match="do not fit"):
        calibrate(path, [{"x": torch.ones(4, 63)}], method=method)


@pytest.mark.parametrize("dialect", ["tensorrt", "x86"])
@pytest.mark.parametrize("method", METHODS)
def test_a_layer_that_is_always_zero_is_named_and_keeps_nobody_from_int8(
    net: Nets, tmp_path: Path, method: Any, dialect: Any
) -> None:
    # It was an error once. Who has nothing but the file cannot prune, and leaving the layer in float did not
    # help either, for the other dialect still rounded it.
    model = onnx.load(net("mlp").path)
    for tensor in model.graph.initializer:
        if tensor.name == "fc1.bias":
            tensor.CopyFrom(numpy_helper.from_array(np.full(48, -1e3, np.float32), tensor.name))
    dead, data = tmp_path / "dead.onnx", net("mlp").batches
    onnx.save(model, dead)
    ranges = calibrate(dead, data, method=method)
    assert (ranges.tensors["Relu"].low, ranges.tensors["Relu"].high) == (0.0, 0.0)
    assert [name for name, found in ranges.adequacy.items() if found.dead] == ["Relu"]
    to_qdq(dead, ranges, tmp_path / "q.onnx", dialect=dialect)
    scale = Index.of(onnx.load(tmp_path / "q.onnx").graph).value("Relu_scale")
    assert scale == pytest.approx(1 / (127 if dialect == "tensorrt" else 255))
    hop = compare_files(dead, tmp_path / "q.onnx", data, kind="lossy", name="int8")
    assert hop.outputs["output"].noise < 0.01


def test_a_quantized_model_and_an_unknown_method_are_refused(net: Nets, tmp_path: Path) -> None:
    to_qdq(net("mlp").path, net("mlp").ranges, tmp_path / "q.onnx")
    with pytest.raises(ModelError, match="quantized already"):
        calibrate(tmp_path / "q.onnx", net("mlp").batches)
    with pytest.raises(ModelError, match="'maximum'"):
        calibrate(net("mlp").path, net("mlp").batches, method="maximum")  # type: ignore[arg-type]


def test_a_custom_operator_is_refused_in_words(net: Nets, tmp_path: Path) -> None:
    model = onnx.load(net("mlp").path)
    model.opset_import.append(onnx.helper.make_opsetid("mine", 1))
    model.graph.node[1].op_type, model.graph.node[1].domain = "Wobble", "mine"
    onnx.save(model, tmp_path / "custom.onnx")
    with pytest.raises(ModelError, match="ONNX Runtime refuses"):
        calibrate(tmp_path / "custom.onnx", net("mlp").batches)


@pytest.mark.parametrize("operator", ["MatMul", "Gemm"])
def test_a_network_in_fp16_is_refused_with_the_reason_and_what_to_give(tmp_path: Path, operator: str) -> None:
    nodes = [op("Transpose", ["x"], ["t"], perm=[1, 0]), op(operator, ["x", "t"], ["y"], name="product")]
    path = write_network(tmp_path / "half.onnx", nodes, {}, ["batch", 24], kind=TensorProto.FLOAT16)
    with pytest.raises(ModelError, match="product stays in float: its factors are not float32") as refused:
        calibrate(path, [{"x": numbers(4, 24).astype(np.float16)}])
    assert "give the FP32 one" in refused.value.cure


def test_a_product_of_integers_beside_a_float_one_is_left_alone(tmp_path: Path) -> None:
    nodes = [
        op("Shape", ["x"], ["sizes"]),
        op("MatMul", ["sizes", "sizes"], ["square"], name="integers"),
        op("Cast", ["square"], ["scale"], to=TensorProto.FLOAT),
        op("MatMul", ["x", "w"], ["h"], name="floats"),
        op("Div", ["h", "scale"], ["y"]),
    ]
    path = write_network(tmp_path / "m.onnx", nodes, {"w": numbers(24, 9)}, ["batch", 24])
    ranges = calibrate(path, [{"x": numbers(4, 24)}])
    assert set(ranges.tensors) == {"x"}
    made = to_qdq(path, ranges, tmp_path / "q.onnx")
    assert (made.in_int8, list(made.left_float)) == (("floats",), ["integers"])
