from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto
from support.lint_cases import Case, Graph, fault_tests, found

STEPS = [0.01] * 16


def activation(bad: dict[str, Any], **good: Any) -> Callable[[bool], onnx.ModelProto]:
    """An int8 convolution whose activation's pair has these settings."""

    def build(faulty: bool) -> onnx.ModelProto:
        graph = Graph()
        rounded = graph.pair(graph.input(), **(bad if faulty else good))
        graph.op("Conv", rounded, graph.weight(16, 16, 1, 1))
        return graph.model()

    return build


def computed(parameter: int) -> Callable[[bool], onnx.ModelProto]:
    def build(faulty: bool) -> onnx.ModelProto:
        graph = Graph()
        x = graph.input()
        parameters = [graph.constant(0.1), graph.constant(0, np.int8)]
        if faulty:
            kind = (TensorProto.FLOAT, TensorProto.INT8)[parameter]
            parameters[parameter] = graph.input([], kind)
        rounded = graph.op("DequantizeLinear", graph.op("QuantizeLinear", x, *parameters), *parameters)
        graph.op("Conv", rounded, graph.weight(16, 16, 1, 1))
        return graph.model()

    return build


def bias(kind: Any) -> Callable[[bool], onnx.ModelProto]:
    def build(faulty: bool) -> onnx.ModelProto:
        graph = Graph()
        rounded, weight = graph.pair(graph.input()), graph.weight(16, 16, 1, 1)
        stored = [
            graph.constant(np.ones(16), kind),
            graph.constant(STEPS),
            graph.constant(np.zeros(16), kind),
        ]
        held = graph.op("DequantizeLinear", *stored, axis=0) if faulty else graph.constant(np.ones(16))
        graph.op("Conv", rounded, weight, held)
        return graph.model()

    return build


def product(
    operator: str, shape: tuple[int, ...], bad: int, good: int | None, **attributes: Any
) -> Callable[[bool], onnx.ModelProto]:
    def build(faulty: bool) -> onnx.ModelProto:
        graph = Graph()
        spatial = [8] * (len(shape) - 2) if "Conv" in operator else []
        x = graph.input(
            [
                4,
                shape[1]
                if operator == "Conv" or attributes.get("transB")
                else shape[-2]
                if "Mat" in operator
                else shape[0],
                *spatial,
            ]
        )
        graph.op(operator, graph.pair(x), graph.weight(*shape, axis=bad if faulty else good), **attributes)
        return graph.model()

    return build


def float_weight(faulty: bool) -> onnx.ModelProto:
    """A weight stored as float, with a pair of its own, behind a transposition."""
    graph = Graph()
    weight = graph.pair(
        graph.constant(np.ones((24, 16))), STEPS if faulty else [0.01] * 24, axis=1 if faulty else 0
    )
    graph.op("MatMul", graph.pair(graph.input([4, 16])), graph.op("Transpose", weight, perm=[1, 0]))
    return graph.model()


def weight_scales(scale: Any, **attributes: Any) -> Callable[[bool], onnx.ModelProto]:
    """A convolution's weight with these scales along axis 0; without fault the right ones."""

    def build(faulty: bool) -> onnx.ModelProto:
        graph = Graph()
        kept: dict[str, Any] = attributes if faulty else {"axis": 0}
        steps = graph.constant(scale if faulty else STEPS)
        zero = graph.constant(np.zeros(np.shape(scale) if faulty else 16), np.int8)
        stored = graph.constant(np.ones((16, 16, 1, 1)), np.int8)
        graph.op("Conv", graph.pair(graph.input()), graph.op("DequantizeLinear", stored, steps, zero, **kept))
        return graph.model()

    return build


def no_zero(faulty: bool) -> onnx.ModelProto:
    graph = Graph()
    x, step, zero = graph.input(), graph.constant(0.1), graph.constant(0, np.int8)
    rounded = graph.op("QuantizeLinear", x, step, zero)
    back = graph.op("DequantizeLinear", rounded, step, *([] if faulty else [zero]))
    graph.op("Conv", back, graph.weight(16, 16, 1, 1))
    return graph.model()


def no_zero_at_all(faulty: bool) -> onnx.ModelProto:
    graph = Graph()
    x, step, zero = graph.input(), graph.constant(0.1), [] if faulty else [graph.constant(0, np.int8)]
    graph.op(
        "Conv",
        graph.op("DequantizeLinear", graph.op("QuantizeLinear", x, step, *zero), step, *zero),
        graph.weight(16, 16, 1, 1),
    )
    return graph.model()


def more_zeros(faulty: bool) -> onnx.ModelProto:
    graph = Graph()
    x, step, zero = graph.input(), graph.constant(0.1), graph.constant(np.zeros(2 if faulty else 1), np.int8)
    graph.op(
        "Conv",
        graph.op("DequantizeLinear", graph.op("QuantizeLinear", x, step, zero), step, zero),
        graph.weight(16, 16, 1, 1),
    )
    return graph.model()


def half(faulty: bool, *, opset: int = 19, data: int = TensorProto.FLOAT16) -> onnx.ModelProto:
    """A pair whose scale is half precision where the data are (or are not)."""
    graph = Graph()
    x = graph.input(kind=data)
    step, zero = graph.constant(0.1, np.float16), graph.constant(0, np.int8)
    weight = graph.op("DequantizeLinear", graph.constant(np.ones((16, 16, 1, 1)), np.int8), step, zero)
    graph.op(
        "Conv", graph.op("DequantizeLinear", graph.op("QuantizeLinear", x, step, zero), step, zero), weight
    )
    return graph.model(opset=opset, ir_version=9, kind=TensorProto.FLOAT16)


def by_channel(faulty: bool) -> onnx.ModelProto:
    graph = Graph()
    graph.op("Conv", graph.pair(graph.input()), graph.weight(16, 16, 1, 1))
    return graph.model(opset=12 if faulty else 13)


PAIR = ("quantizelinear", "dequantizelinear")
CASES = [
    Case(201, "activation", activation({"zero": 3}), PAIR),
    Case(201, "by channel", activation({"scale": STEPS, "zero": 3, "axis": 1}), PAIR, also=(205,)),
    Case(201, "computed", computed(1), PAIR),
    Case(202, "uint8", activation({"kind": np.uint8}), PAIR),
    Case(202, "uint16", activation({"kind": np.uint16}), PAIR),
    Case(
        202,
        "fp8 on 8",
        lambda faulty: fp8(19 if faulty else 17),
        ("quantizelinear", "dequantizelinear_1"),
        "8.6",
        "10.1",
        also=(101, 102),
    ),
    Case(202, "no zero point", no_zero_at_all, PAIR),
    Case(203, "int32", bias(np.int32), ("conv",)),
    Case(203, "int8", bias(np.int8), ("conv",)),
    Case(204, "empty", activation({"scale": []}), PAIR),
    Case(204, "zero", activation({"scale": 0.0}), PAIR),
    Case(204, "negative", activation({"scale": -1.0}), PAIR),
    Case(204, "nan", activation({"scale": np.nan}), PAIR),
    Case(204, "infinite", activation({"scale": np.inf}), PAIR),
    Case(204, "computed", computed(0), PAIR),
    Case(204, "zero points", more_zeros, PAIR),
    Case(204, "one channel", weight_scales([0.0] + [0.1] * 15, axis=0), ("dequantizelinear_1",)),
    Case(205, "by channel", activation({"scale": STEPS, "axis": 1}), PAIR),
    Case(206, "Conv", product("Conv", (16, 24, 1, 1), 1, 0), ("dequantizelinear_1",)),
    Case(206, "ConvTranspose", product("ConvTranspose", (24, 16, 2, 2), 0, 1), ("dequantizelinear_1",)),
    Case(206, "Gemm", product("Gemm", (16, 24), 0, 1), ("dequantizelinear_1",)),
    Case(206, "Gemm transposed", product("Gemm", (16, 24), 1, 0, transB=1), ("dequantizelinear_1",)),
    Case(206, "MatMul", product("MatMul", (16, 24), 0, 1), ("dequantizelinear_1",)),
    Case(206, "batched MatMul", product("MatMul", (2, 16, 24), 2, None), ("dequantizelinear_1",)),
    Case(206, "behind a transposition", float_weight, PAIR),
    Case(206, "no axis", weight_scales(STEPS), ("dequantizelinear_1",)),
    Case(206, "axis outside", weight_scales(STEPS, axis=4), ("dequantizelinear_1",)),
    Case(206, "too few", weight_scales([0.1] * 8, axis=0), ("dequantizelinear_1",)),
    Case(206, "blocks", weight_scales(np.full((16, 2, 1, 1), 0.1), axis=1), ("dequantizelinear_1",)),
    Case(207, "by channel", by_channel, ("dequantizelinear_1",)),
    Case(
        207,
        "half precision",
        lambda faulty: half(faulty, opset=17 if faulty else 19),
        ("dequantizelinear", "quantizelinear", "dequantizelinear_1"),
    ),
    Case(
        207,
        "two types",
        lambda faulty: half(faulty, data=TensorProto.FLOAT if faulty else TensorProto.FLOAT16),
        ("quantizelinear",),
    ),
    Case(208, "left out", no_zero, ("dequantizelinear",), "8.6"),
    Case(208, "left out, later", lambda faulty: no_zero(True), ("dequantizelinear",), "8.5", "10.0"),
]

test_a_planted_fault_is_found, test_its_clean_twin_is_clean = fault_tests(CASES)


def fp8(opset: int) -> onnx.ModelProto:
    graph = Graph()
    step, zero = graph.constant(0.1), graph.constant(0, ml_dtypes.float8_e4m3fn if opset == 19 else np.int8)
    weight = graph.op(
        "DequantizeLinear", graph.constant(np.ones((16, 16, 1, 1)), np.int8), step, graph.constant(0, np.int8)
    )
    rounded = graph.op("DequantizeLinear", graph.op("QuantizeLinear", graph.input(), step, zero), step, zero)
    graph.op("Conv", rounded, weight)
    return graph.model(opset=opset, ir_version=9)


def test_fp8_is_legal_from_tensorrt_10_on() -> None:
    assert found(fp8(19), "10.1") == []


def test_the_dla_of_tensorrt_11_takes_asymmetric_quantization_with_a_flag() -> None:
    model = activation({"kind": np.uint8, "zero": 128})(True)
    for board, severity in (
        ("agx-orin-64gb 11.4.1", "warning"),
        ("orin-nx-16gb 11.4.1", "error"),
        ("10.16", "error"),
    ):
        result = [finding for finding in found(model, board) if finding.rule in (201, 202)]
        assert {finding.rule for finding in result} == {201, 202}
        assert {finding.severity for finding in result} == {severity}
        assert all(("DLA" in finding.what) == (severity == "warning") for finding in result)
