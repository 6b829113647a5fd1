from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper
from support.int8_files import calibrate, compare_files, float_kernels, optimized, to_qdq
from support.onnx_files import numbers, op, write_network
from torch import nn

from deadweight.export.onnx_graph.counts import count
from deadweight.export.onnx_graph.graph import Index, attribute_of
from deadweight.export.quantization.calibrate import Range, Ranges
from deadweight.export.quantization.to_qdq import quantize_weight, saturation, symmetric, unsigned
from deadweight.export.to_onnx import to_onnx
from deadweight.targets.errors import ModelError
from deadweight.targets.machine.probe import saturates_int8
from deadweight.targets.runtimes.open import open_session
from deadweight.targets.target import load_target

Nets = Callable[[str], Any]
ALL = ["mlp", "residual", "depthwise", "joined", "attentive"]
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def run(path: Path, inputs: dict[str, Any]) -> list[Any]:
    """The outputs of a file in ONNX Runtime as it comes, or exact where its INT8 kernels saturate."""
    with closing(open_session(path, runtime=f"onnxruntime{'+exact' * saturates_int8()}")) as session:
        return list(session.run(inputs).values())


@pytest.mark.parametrize("name", ALL)
def test_the_tensorrt_graph_follows_every_rule_of_explicit_quantization(
    net: Nets, tmp_path: Path, name: str
) -> None:
    made = to_qdq(net(name).path, net(name).ranges, tmp_path / "q.onnx", dialect="tensorrt")
    model = onnx.load(tmp_path / "q.onnx")
    onnx.checker.check_model(model, full_check=True)
    index = Index.of(model.graph)
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            scale, zero = index.value(node.input[1]), index.value(node.input[2])
            assert scale is not None
            assert zero is not None
            assert zero.dtype == np.int8
            assert not zero.any()
            assert scale.dtype == np.float32
            assert np.isfinite(scale).all()
            assert (scale > 0).all()
            assert scale.ndim == 0 or node.input[0] in index.constants
        if node.op_type in WEIGHTED and node.name not in made.left_float:
            for place, value in enumerate(node.input[:2]):
                dequantize = index.producer[value]
                assert dequantize.op_type == "DequantizeLinear"
                integers = index.value(dequantize.input[0])
                if integers is None:
                    assert index.producer[dequantize.input[0]].op_type == "QuantizeLinear"
                    continue
                assert integers.dtype == np.int8
                assert abs(int(integers.min())) <= 127
                axis = {"Conv": 0, "ConvTranspose": 1, "MatMul": 1}.get(node.op_type)
                axis = (0 if attribute_of(node, "transB", 0) else 1) if axis is None else axis
                assert attribute_of(dequantize, "axis") == axis
                scale = index.value(dequantize.input[1])
                assert scale is not None
                assert scale.shape == (integers.shape[axis],)
                assert place == 1
            for bias in node.input[2:]:
                assert index.constants[bias].data_type == onnx.TensorProto.FLOAT
        if node.op_type in ("Relu", "Clip", "Sigmoid", "Erf"):
            assert index.producer[node.input[0]].op_type not in ("QuantizeLinear", "DequantizeLinear")
        if node.op_type == "Add":
            makers = [index.producer[value].op_type for value in node.input if value in index.producer]
            if "Conv" in makers:
                assert "DequantizeLinear" in makers


@pytest.mark.parametrize("name", ["mlp", "residual", "depthwise"])
def test_no_convolution_and_no_gemm_is_left_in_float_on_x86(net: Nets, tmp_path: Path, name: str) -> None:
    to_qdq(net(name).path, net(name).ranges, tmp_path / "q.onnx", dialect="x86")
    assert float_kernels(tmp_path / "q.onnx") == []
    found = [node.op_type for node in optimized(tmp_path / "q.onnx").graph.node]
    weighted = sum(node.op_type in WEIGHTED for node in onnx.load(net(name).path).graph.node)
    assert found.count("QLinearConv") + found.count("QGemm") == weighted
    assert not {"Relu", "Clip"} & set(found)


def test_what_has_no_int8_kernel_on_x86_stays_in_float_and_is_named(net: Nets, tmp_path: Path) -> None:
    made = to_qdq(net("joined").path, net("joined").ranges, tmp_path / "q.onnx", dialect="x86")
    assert list(made.left_float) == ["up/ConvTranspose"]
    assert float_kernels(tmp_path / "q.onnx") == ["up/ConvTranspose"]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dialect", ["tensorrt", "x86"])
def test_outputs_stay_close_and_keep_their_names_and_shapes(
    net: Nets, tmp_path: Path, dialect: Any, name: str
) -> None:
    made = net(name)
    to_qdq(made.path, made.ranges, tmp_path / "q.onnx", dialect=dialect)
    inputs = {key: value.numpy() for key, value in made.batches[0].items()}
    before, after = onnxruntime.InferenceSession(made.path), onnxruntime.InferenceSession(tmp_path / "q.onnx")
    assert [o.name for o in before.get_outputs()] == [o.name for o in after.get_outputs()]
    assert [o.shape for o in before.get_outputs()] == [o.shape for o in after.get_outputs()]
    for right, found in zip(run(made.path, inputs), run(tmp_path / "q.onnx", inputs), strict=True):
        noise = np.sqrt(np.mean((found - right) ** 2) / np.mean(right**2))
        assert 0 < noise < 0.04


def test_int8_weights_make_the_file_a_quarter(tmp_path: Path) -> None:
    example = {"input": torch.randn(2, 256)}
    to_onnx(
        nn.Sequential(nn.Linear(256, 1024), nn.ReLU(), nn.Linear(1024, 256)), example, tmp_path / "f.onnx"
    )
    ranges = calibrate(tmp_path / "f.onnx", [{"input": torch.randn(64, 256)}])
    for dialect in ("tensorrt", "x86"):
        to_qdq(tmp_path / "f.onnx", ranges, tmp_path / "q.onnx", dialect=dialect)
        assert 3.8 < count(tmp_path / "f.onnx").file_bytes / count(tmp_path / "q.onnx").file_bytes < 4.0


@pytest.mark.parametrize("dialect", ["tensorrt", "x86"])
def test_a_trained_network_keeps_its_accuracy(digits: Any, tmp_path: Path, dialect: Any) -> None:
    to_qdq(digits.net.path, digits.net.ranges, tmp_path / "q.onnx", dialect=dialect)
    inputs = {"x": digits.images.numpy()}
    scores = []
    logits = []
    for path in (digits.net.path, tmp_path / "q.onnx"):
        logits.append(run(path, inputs)[0])
        scores.append(float((logits[-1].argmax(axis=1) == digits.labels.numpy()).mean()))
    assert scores[0] > 0.9
    assert abs(scores[0] - scores[1]) <= 0.01
    assert np.abs(logits[1] - logits[0]).max() < 0.05 * np.abs(logits[0]).max()


def test_equal_ranges_give_equal_bytes(net: Nets, tmp_path: Path) -> None:
    for name in ("a", "b"):
        to_qdq(net("residual").path, net("residual").ranges, tmp_path / name, dialect="x86")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_concat_takes_one_scale_in_tensorrt(net: Nets, tmp_path: Path) -> None:
    to_qdq(net("joined").path, net("joined").ranges, tmp_path / "q.onnx", dialect="tensorrt")
    index = Index.of(onnx.load(tmp_path / "q.onnx").graph)
    concat = next(n for n in index.producer.values() if n.op_type == "Concat" and n.output[0] != "Concat")
    scales = {
        str(index.value(f"{name}_scale"))
        for name in (*concat.input, concat.output[0])
        if f"{name}_scale" in index.constants
    }
    assert len(scales) == 1


def test_a_skipped_layer_keeps_its_float_weights(net: Nets, tmp_path: Path) -> None:
    for dialect in ("tensorrt", "x86"):
        made = to_qdq(
            net("mlp").path, net("mlp").ranges, tmp_path / "q.onnx", dialect=dialect, skip=["fc2/Gemm"]
        )
        assert made.left_float == {"fc2/Gemm": "requested"}
        types = {t.name: t.data_type for t in onnx.load(tmp_path / "q.onnx").graph.initializer}
        assert types["fc2.weight"] == onnx.TensorProto.FLOAT
        assert "fc1.weight" not in types
        assert types["fc1.weight_int8"] == onnx.TensorProto.INT8


def test_a_large_bias_beside_tiny_weights_survives_x86(tmp_path: Path) -> None:
    torch.manual_seed(0)
    first, last = nn.Linear(16, 8), nn.Linear(8, 4)
    module = nn.Sequential(first, nn.ReLU(), last)
    with torch.no_grad():
        first.weight[0] *= 1e-9
        first.bias[0] = 3.0
        last.weight[1] = 0.0
        last.bias[1] = -5.0
    data = {"input": torch.randn(64, 16)}
    to_onnx(module, data, tmp_path / "f.onnx")
    to_qdq(tmp_path / "f.onnx", calibrate(tmp_path / "f.onnx", [data]), tmp_path / "q.onnx", dialect="x86")
    found = run(tmp_path / "q.onnx", {"input": data["input"].numpy()})[0]
    right = module(data["input"]).detach().numpy()
    assert np.abs(found - right).max() < 0.05 * np.abs(right).max()


def test_seven_bits_keep_the_sum_of_two_products_within_16_bits(net: Nets, tmp_path: Path) -> None:
    to_qdq(net("residual").path, net("residual").ranges, tmp_path / "q.onnx", dialect="x86", weight_bits=7)
    for tensor in onnx.load(tmp_path / "q.onnx").graph.initializer:
        if tensor.data_type == onnx.TensorProto.INT8 and tensor.dims:
            assert 2 * 255 * np.abs(numpy_helper.to_array(tensor).astype(int)).max(initial=0) < 2**15
    with pytest.raises(ModelError, match="9 bits"):
        to_qdq(net("mlp").path, net("mlp").ranges, tmp_path / "q.onnx", weight_bits=9)


def test_saturating_sums_are_said_with_their_cure_for_files_that_run_in_onnx_runtime() -> None:
    said = saturation(load_target("x86-cpu"), 8, "--weight-bits 7")
    assert bool(said) == saturates_int8()
    assert all("--weight-bits 7 avoids it" in sentence for sentence in said)
    assert saturation(load_target("x86-cpu"), 7, "") == []
    assert saturation(load_target("orin-nano-8gb"), 8, "") == []


def test_outputs_of_a_file_for_an_engine_do_not_saturate_on_any_processor(tmp_path: Path) -> None:
    feeds = {"x": np.linspace(0, 1, 8, dtype=np.float32).reshape(4, 2)}
    nodes = [op("MatMul", ["x", "w"], ["y"])]
    path = write_network(tmp_path / "m.onnx", nodes, {"w": np.ones((2, 1), np.float32)}, ["n", 2])
    to_qdq(path, calibrate(path, [feeds]), tmp_path / "q.onnx", dialect="x86")
    assert load_target("orin-nano-8gb").scored_here.name == "onnxruntime+exact"
    assert load_target("x86-cpu").scored_here.name == "onnxruntime"
    with closing(open_session(tmp_path / "q.onnx", runtime="onnxruntime+exact")) as session:
        assert session.run(feeds)["y"].max() == pytest.approx(13 / 7, rel=0.02)


def test_quantizing_twice_is_refused(net: Nets, tmp_path: Path) -> None:
    to_qdq(net("mlp").path, net("mlp").ranges, tmp_path / "q.onnx")
    with pytest.raises(ModelError, match="quantized already"):
        to_qdq(tmp_path / "q.onnx", net("mlp").ranges, tmp_path / "again.onnx")


def test_a_network_with_nothing_to_quantize_is_refused_with_the_reasons(net: Nets, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"fc1/Gemm stays in float: requested\."):
        to_qdq(
            net("mlp").path,
            net("mlp").ranges,
            tmp_path / "q.onnx",
            skip=["fc1/Gemm", "fc2/Gemm", "fc3/Gemm"],
        )


def test_ranges_of_another_network_are_refused(net: Nets, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no calibrated range"):
        to_qdq(net("residual").path, net("mlp").ranges, tmp_path / "q.onnx")
    assert not (tmp_path / "q.onnx").exists()


def test_a_weight_with_nan_is_refused(net: Nets, tmp_path: Path) -> None:
    model = onnx.load(net("mlp").path)
    for tensor in model.graph.initializer:
        if tensor.name == "fc2.weight":
            broken = np.full(tuple(tensor.dims), np.nan, np.float32)
            tensor.CopyFrom(numpy_helper.from_array(broken, tensor.name))
    onnx.save(model, tmp_path / "nan.onnx")
    with pytest.raises(ModelError, match=r"fc2\.weight"):
        to_qdq(tmp_path / "nan.onnx", net("mlp").ranges, tmp_path / "q.onnx")


sizes = st.floats(1e-20, 1e20)


@given(st.floats(-1e20, 1e20), sizes)
def test_every_range_rounds_within_half_a_step(low: float, width: float) -> None:
    high = low + width
    inside = np.linspace(min(low, 0.0), max(high, 0.0), 50)
    for (scale, zero), (least, most) in (
        (symmetric(low, high), (-127, 127)),
        (unsigned(low, high), (0, 255)),
    ):
        step = float(scale)
        assert step > 0
        integers = np.clip(np.rint(inside / step) + int(zero), least, most)
        # The last step may be cut short by rounding the zero point and the scale.
        assert np.abs((integers - int(zero)) * step - inside).max() <= 1.001 * step


@given(sizes)
def test_uint8_never_passes_the_end_of_its_range(high: float) -> None:
    scale, zero = unsigned(0.0, high)
    assert int(zero) == 0
    assert float(scale) * 255.0 <= max(high, 255.0 * 1.2e-38)


@given(st.integers(0, 2**32), st.sampled_from([None, 0, 1]), st.sampled_from([7, 8]))
def test_weights_are_rounded_to_the_nearest_step(seed: int, axis: int | None, bits: int) -> None:
    generator = np.random.default_rng(seed)
    weight = (generator.standard_normal((3, 4, 2)) * 10.0 ** generator.integers(-6, 6)).astype(np.float32)
    integers, scale = quantize_weight(weight, axis, bits=bits)
    assert integers.shape == weight.shape
    steps = scale if axis is None else scale.reshape([-1 if place == axis else 1 for place in range(3)])
    assert np.abs(integers * steps - weight).max() <= 0.5001 * steps.max()
    assert np.abs(integers.astype(int)).max() == 2 ** (bits - 1) - 1


def test_a_channel_of_zeros_gets_a_scale_above_zero() -> None:
    integers, scale = quantize_weight(np.zeros((2, 3), np.float32), 0)
    assert not integers.any()
    assert (scale > 0).all()


def test_a_clip_bounds_the_range_on_x86(net: Nets, tmp_path: Path) -> None:
    made = net("depthwise")
    wide = {name: Range(found.low, 50.0) for name, found in made.ranges.tensors.items()}
    to_qdq(made.path, Ranges("minmax", 27, wide), tmp_path / "q.onnx", dialect="x86")
    assert "Clip" not in {node.op_type for node in optimized(tmp_path / "q.onnx").graph.node}
    assert float_kernels(tmp_path / "q.onnx") == []


def held_against_float(path: Path, data: list[dict[str, Any]], out_path: Path) -> None:
    to_qdq(path, calibrate(path, data), out_path, dialect="x86")
    compare_files(path, out_path, data, kind="lossy", name="int8")


def test_a_weight_that_two_layers_read_along_two_axes_has_the_scales_of_both(tmp_path: Path) -> None:
    # An autoencoder with tied weights: the decoder's is the encoder's, transposed.
    nodes = [
        op("Gemm", ["x", "w", "b"], ["h"], name="encoder", transB=1),
        op("Gemm", ["h", "w", "c"], ["y"], name="decoder"),
    ]
    constants = {"w": numbers(32, 24), "b": numbers(32), "c": numbers(24)}
    path = write_network(tmp_path / "tied.onnx", nodes, constants, ["batch", 24])
    held_against_float(path, [{"x": numbers(16, 24, size=1.0)}], tmp_path / "q.onnx")
    stored = {t.name: list(t.dims) for t in onnx.load(tmp_path / "q.onnx").graph.initializer}
    assert [stored["w_scale"], stored["w_scale_1"]] == [[32], [24]]
    assert float_kernels(tmp_path / "q.onnx") == []


def test_a_bias_that_differs_by_row_stays_float(tmp_path: Path) -> None:
    # ONNX Runtime leaves such a Gemm in float; so it is not rounded either, and the one before it is.
    nodes = [op("MatMul", ["x", "v"], ["h"], name="first"), op("Gemm", ["h", "w", "b"], ["y"])]
    constants = {"v": numbers(24, 24), "w": numbers(24, 9), "b": numbers(16, 9)}
    path = write_network(tmp_path / "m.onnx", nodes, constants, [16, 24])
    held_against_float(path, [{"x": numbers(16, 24, size=1.0)}], tmp_path / "q.onnx")


def test_names_that_a_network_has_already_are_not_given_again(tmp_path: Path) -> None:
    nodes = [
        op("Mul", ["x", "x_scale"], ["x_int8"]),
        op("MatMul", ["x", "w"], ["h"], name="w_dequantize"),
        op("MatMul", ["h", "w_scale"], ["h_zero"], name="x_quantize"),
        op("Add", ["h_zero", "x_int8"], ["y"]),
    ]
    constants = {"w": numbers(24, 24), "w_scale": numbers(24, 24, seed=1), "x_scale": numbers(24)}
    path = write_network(tmp_path / "m.onnx", nodes, constants, ["batch", 24])
    held_against_float(path, [{"x": numbers(16, 24, size=1.0)}], tmp_path / "q.onnx")


@pytest.mark.parametrize("operator", ["Conv", "Gemm"])
def test_a_channel_whose_weights_are_all_zero_keeps_its_bias_on_x86(tmp_path: Path, operator: str) -> None:
    shape = [16, 16, 1, 1] if operator == "Conv" else [16, 16]
    weight, bias = numbers(*shape, size=0.01), numbers(16)
    weight[3], bias[3] = 0.0, 0.3
    attributes: dict[str, Any] = {} if operator == "Conv" else {"transB": 1}
    made = op(operator, ["x", "w", "b"], ["y"], **attributes)
    x = np.abs(numbers(16, 16, *shape[2:], size=80.0))  # as of pixels that were not scaled
    path = write_network(tmp_path / "m.onnx", [made], {"w": weight, "b": bias}, ["batch", *x.shape[1:]])
    held_against_float(path, [{"x": x}], tmp_path / "q.onnx")
    (before,), (after,) = run(path, {"x": x}), run(tmp_path / "q.onnx", {"x": x})
    step = (before.max() - before.min()) / 255
    assert np.abs(after[:, 3] - before[:, 3]).max() <= max(0.51 * step, 0.01)


def test_an_input_that_is_an_output_too_is_handed_on_as_it_came(tmp_path: Path) -> None:
    shown = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", 24]) for name in "xy"]
    nodes = [op("MatMul", ["x", "w"], ["h"]), op("Relu", ["h"], ["a"]), op("MatMul", ["a", "w"], ["y"])]
    path = write_network(tmp_path / "m.onnx", nodes, {"w": numbers(24, 24)}, ["batch", 24], outputs=shown)
    x = numbers(16, 24, size=1.0)
    held_against_float(path, [{"x": x}], tmp_path / "q.onnx")
    assert np.array_equal(run(tmp_path / "q.onnx", {"x": x})[0], x)
