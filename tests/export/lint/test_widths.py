from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from support.lint_cases import Case, Graph, fault_tests, found

NANO = "orin-nano-8gb"
Build = Callable[[bool], onnx.ModelProto]


def chain(bad: int, good: int, **attributes: int) -> Build:
    """Two convolutions, the first of this width; the second's is the output's and cannot be chosen."""

    def build(faulty: bool) -> onnx.ModelProto:
        graph = Graph()
        wide = bad if faulty else good
        groups = wide if attributes.get("depthwise") else 1
        x = graph.input([2, wide if groups > 1 else 16, 8, 8])
        first = graph.float_conv(x, wide, 1 if groups > 1 else 16, 3, group=groups)
        graph.float_conv(graph.op("Relu", first), 10, wide)
        return graph.model()

    return build


def transposed(faulty: bool) -> onnx.ModelProto:
    graph = Graph()
    wide = 9 if faulty else 16
    up = graph.op("ConvTranspose", graph.input(), graph.constant(np.ones((16, wide, 2, 2))))
    graph.float_conv(up, 10, wide)
    return graph.model()


def products(bad: int, good: int, shape: list[int], operator: str = "MatMul") -> Build:
    def build(faulty: bool) -> onnx.ModelProto:
        graph = Graph()
        wide = bad if faulty else good
        first = graph.op(operator, graph.input(shape), graph.constant(np.ones((32, wide))))
        graph.op(operator, graph.op("Relu", first), graph.constant(np.ones((wide, 10))))
        return graph.model()

    return build


def between(operator: str) -> Build:
    """An operator without int8 between two int8 convolutions; without fault one with."""

    def build(faulty: bool) -> onnx.ModelProto:
        graph = Graph()
        x = graph.conv(graph.input())
        graph.conv(graph.op(operator if faulty else "HardSwish", x))
        return graph.model()

    return build


def float_between(faulty: bool) -> onnx.ModelProto:
    graph = Graph()
    x = graph.op("Relu", graph.conv(graph.input()))
    graph.conv(graph.op("Relu", (graph.float_conv if faulty else graph.conv)(x)))
    return graph.model()


def single(faulty: bool) -> onnx.ModelProto:
    graph = Graph()
    kind = np.float32 if faulty else np.float16
    x = graph.input(kind=TensorProto.FLOAT if faulty else TensorProto.FLOAT16)
    graph.op("Conv", x, graph.constant(np.ones((16, 16, 1, 1)), kind))
    return graph.model(kind=TensorProto.FLOAT if faulty else TensorProto.FLOAT16)


CASES = [
    Case(401, "off the hard multiple", chain(12, 16), ("conv",), NANO, severity="warning"),
    Case(401, "off the step", chain(24, 32), ("conv",), NANO, severity="note"),
    Case(401, "depthwise", chain(36, 32, depthwise=1), ("conv",), NANO, severity="warning"),
    Case(401, "transposed", transposed, ("convtranspose",), NANO, severity="warning"),
    Case(401, "linear", products(30, 32, [2, 32], "Gemm"), ("gemm",), NANO, severity="note"),
    Case(401, "tokens", products(30, 32, [2, 7, 32]), ("matmul",), NANO, severity="warning"),
    Case(402, "Softmax", between("Softmax"), ("softmax",), severity="note", also=(403,)),
    Case(402, "Exp", between("Exp"), ("exp",), severity="note", also=(403,)),
    Case(402, "a float convolution", float_between, ("conv_1",), severity="note", also=(403,)),
    Case(403, "single precision", single, ("conv",), "11.4", severity="note"),
    Case(403, "later", lambda faulty: single(True), ("conv",), "11.0", "10.16", severity="note"),
]

test_a_planted_fault_is_found, test_its_clean_twin_is_clean = fault_tests(CASES)


def test_widths_are_not_judged_without_a_board() -> None:
    assert found(chain(12, 16)(True)) == []


def test_the_next_width_that_costs_no_more_is_reported() -> None:
    (finding,) = found(chain(12, 16)(True), NANO)
    assert "only multiples of 8 have fast kernels" in finding.what
    assert "16 cost no more" in finding.what


def test_what_runs_in_float_before_or_behind_all_int8_is_no_detour() -> None:
    graph = Graph()
    x = graph.op("Softmax", graph.input())
    graph.op("Softmax", graph.conv(x))
    assert {finding.rule for finding in found(graph.model())} == {403}


def quantized(*operators: str) -> onnx.ModelProto:
    graph = Graph()
    x = graph.conv(graph.input())
    for name in operators:
        x = graph.op(name, x, *([graph.constant(np.ones(8))] if "Norm" in name else []))
    return graph.model()


@pytest.mark.parametrize("version", ["10.0", "10.3.0", "10.16.2", "11.4"])
def test_norms_and_softmax_beside_int8_run_in_fp32_in_every_strongly_typed_engine(version: str) -> None:
    model = quantized("LayerNormalization", "Softmax", "Erf", "Relu", "MaxPool")
    findings = [finding for finding in found(model, version) if finding.rule == 403]
    assert [finding.node for finding in findings] == ["layernormalization", "softmax", "erf"]
    assert "deadweight build --precision fp16" in findings[0].cure


def test_a_float_file_has_a_flag_for_fp16_before_tensorrt_11() -> None:
    for version, said in (("8.6", set()), ("10.3", set()), ("11.0", {403})):
        assert {finding.rule for finding in found(single(True), version)} == said
