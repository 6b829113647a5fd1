from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from support.lint_cases import Case, Graph, fault_tests, found

Build = Callable[[bool], onnx.ModelProto]


def half(place: int) -> Build:
    """A convolution with only one of its factors rounded, or with both."""

    def build(faulty: bool) -> onnx.ModelProto:
        graph = Graph()
        x = graph.input()
        data = x if faulty and place == 0 else graph.pair(x)
        weight = (
            graph.constant(np.ones((16, 16, 1, 1))) if faulty and place == 1 else graph.weight(16, 16, 1, 1)
        )
        graph.op("Conv", data, weight)
        return graph.model()

    return build


def half_product(faulty: bool) -> onnx.ModelProto:
    graph = Graph()
    left, right = graph.input([2, 32, 32]), graph.input([2, 32, 32])
    graph.op("MatMul", graph.pair(left), right if faulty else graph.pair(right))
    return graph.model()


def island(operator: str) -> Build:
    """A pair before an operator that leads to nothing in int8; without fault, none."""

    def build(faulty: bool) -> onnx.ModelProto:
        graph = Graph()
        x = graph.op("Relu", graph.conv(graph.input()))
        graph.op(operator, graph.pair(x) if faulty else x)
        return graph.model()

    return build


def at_the_output(faulty: bool) -> onnx.ModelProto:
    graph = Graph()
    x = graph.op("Relu", graph.conv(graph.input()))
    return graph.model(graph.pair(x) if faulty else x)


def before(activation: str) -> Build:
    def build(faulty: bool) -> onnx.ModelProto:
        graph = Graph()
        x = graph.conv(graph.input())
        y = graph.op(activation, graph.pair(x) if faulty else x)
        graph.conv(y)
        return graph.model()

    return build


def before_norm(faulty: bool) -> onnx.ModelProto:
    graph = Graph()
    x = graph.conv(graph.input())
    norm = graph.op(
        "BatchNormalization", graph.pair(x) if faulty else x, *(graph.constant(np.ones(16)) for _ in "abcd")
    )
    graph.conv(norm)
    return graph.model()


def before_bias(faulty: bool) -> onnx.ModelProto:
    graph = Graph()
    x = graph.op("MatMul", graph.pair(graph.input([4, 32])), graph.weight(32, 32, axis=1))
    y = graph.op("Add", graph.pair(x) if faulty else x, graph.constant(np.ones(32)))
    graph.op("MatMul", graph.pair(y), graph.weight(32, 32, axis=1))
    return graph.model()


def after_the_sum(faulty: bool) -> onnx.ModelProto:
    graph = Graph()
    x = graph.op("Relu", graph.conv(graph.input()))
    rounded = graph.pair(x)
    total = graph.op("Add", graph.op("Conv", rounded, graph.weight(16, 16, 1, 1)), rounded)
    graph.conv(graph.op("Relu", graph.pair(total) if faulty else total))
    return graph.model()


def before_half_of_silu(faulty: bool) -> onnx.ModelProto:
    graph = Graph()
    x = graph.conv(graph.input())
    y = graph.pair(x) if faulty else x
    graph.conv(graph.op("Mul", y, graph.op("Sigmoid", y)))
    return graph.model()


def residual(rounded: tuple[bool, bool], *, projection: bool = False) -> Build:
    """A residual add, the sides (convolution, skip) rounded so; without fault only the skip."""

    def build(faulty: bool) -> onnx.ModelProto:
        graph = Graph()
        start = graph.op("Relu", graph.conv(graph.input()))
        shared = graph.pair(start)
        long = graph.op("Conv", shared, graph.weight(16, 16, 1, 1))
        skip = graph.op("Conv", shared, graph.weight(16, 16, 1, 1)) if projection else start
        sides = [
            (shared if side == start else graph.pair(side)) if round_it else side
            for side, round_it in zip((long, skip), rounded if faulty else (False, True), strict=True)
        ]
        graph.conv(graph.op("Relu", graph.op("Add", *sides)))
        return graph.model()

    return build


def concat(scales: tuple[float, float], result: float, *, on_inputs: bool) -> Build:
    """Two tensors joined; without fault all of one scale."""

    def build(faulty: bool) -> onnx.ModelProto:
        graph = Graph()
        x = graph.input()
        parts = [graph.op("Relu", graph.conv(x)) for _ in scales]
        steps = scales if faulty else (0.02, 0.02)
        for part, step in zip(parts, steps, strict=True):
            graph.op("Conv", graph.pair(part, step), graph.weight(16, 16, 1, 1))
        others = [node.output[0] for node in graph.nodes if node.op_type == "Conv"][2:]
        joined = (
            [graph.pair(part, step) for part, step in zip(parts, steps, strict=True)] if on_inputs else parts
        )
        whole = graph.pair(graph.op("Concat", *joined, axis=1), result if faulty else 0.02)
        graph.op("Conv", whole, graph.weight(16, 32, 1, 1))
        return graph.model(graph.nodes[-1].output[0], *others)

    return build


def moved(faulty: bool) -> onnx.ModelProto:
    """One side of the concat is pooled as int8, with the scale it came with."""
    graph = Graph()
    rounded = graph.pair(graph.op("Relu", graph.conv(graph.input())), 0.04 if faulty else 0.02)
    pooled = graph.op("MaxPool", rounded, kernel_shape=[1, 1])
    other = graph.pair(graph.op("Relu", graph.op("Conv", rounded, graph.weight(16, 16, 1, 1))), 0.02)
    graph.op("Conv", graph.op("Concat", pooled, other, axis=1), graph.weight(16, 32, 1, 1))
    return graph.model()


def convolution(outputs: int, inputs: int, size: int, *, first: bool = False, group: int = 1) -> Build:
    """An int8 convolution of this shape; without fault it is left in float."""

    def build(faulty: bool) -> onnx.ModelProto:
        graph = Graph()
        x = graph.input([2, inputs * group, 8, 8])
        start = x if first else graph.op("Relu", x)
        (graph.conv if faulty else graph.float_conv)(start, outputs, inputs, size, group=group)
        return graph.model()

    return build


def vector(rows: int | str, columns: int) -> Build:
    def build(faulty: bool) -> onnx.ModelProto:
        graph = Graph()
        x = graph.input([rows if faulty else "batch", 32])
        graph.op("MatMul", graph.pair(x), graph.weight(32, columns if faulty else 16, axis=1))
        return graph.model()

    return build


def lowest(faulty: bool) -> onnx.ModelProto:
    graph = Graph()
    graph.op("Conv", graph.pair(graph.input()), graph.weight(16, 16, 1, 1, fill=-128 if faulty else -127))
    return graph.model()


CASES = [
    Case(301, "float input", half(0), ("conv",), severity="warning", also=(403,)),
    Case(301, "float weight", half(1), ("conv",), severity="note", also=(403,)),
    Case(301, "float factor", half_product, ("matmul",), severity="warning", also=(403,)),
    Case(
        302, "before Softmax", island("Softmax"), ("dequantizelinear_2",), severity="warning", anyway=(403,)
    ),
    Case(
        302,
        "before a pool that ends",
        island("GlobalAveragePool"),
        ("dequantizelinear_2",),
        severity="warning",
    ),
    Case(302, "at the output", at_the_output, ("dequantizelinear_2",), severity="warning"),
    *(
        Case(303, f"before {activation}", before(activation), ("quantizelinear_1",), severity="warning")
        for activation in ("Relu", "LeakyRelu", "Sigmoid", "Tanh", "HardSwish", "Elu", "Softplus", "Clip")
    ),
    Case(303, "before batch norm", before_norm, ("quantizelinear_1",), severity="warning"),
    Case(303, "before the bias", before_bias, ("quantizelinear_1",), severity="warning"),
    Case(303, "after the sum", after_the_sum, ("quantizelinear_2",), severity="warning"),
    Case(303, "before SiLU", before_half_of_silu, ("quantizelinear_1",), severity="warning"),
    Case(304, "both", residual((True, True)), ("add",), severity="warning"),
    Case(304, "the wrong side", residual((True, False)), ("add",), severity="warning"),
    Case(
        304, "both with a projection", residual((True, True), projection=True), ("add",), severity="warning"
    ),
    Case(305, "neither", residual((False, False)), ("add",), severity="warning"),
    Case(
        305,
        "neither with a projection",
        residual((False, False), projection=True),
        ("add",),
        severity="warning",
    ),
    Case(306, "inputs differ", concat((0.02, 0.03), 0.03, on_inputs=True), ("concat",), severity="warning"),
    Case(
        306, "the result differs", concat((0.02, 0.02), 0.03, on_inputs=True), ("concat",), severity="warning"
    ),
    Case(
        306,
        "other pairs differ",
        concat((0.02, 0.03), 0.03, on_inputs=False),
        ("concat",),
        severity="warning",
    ),
    Case(306, "a pooled input differs", moved, ("concat",), severity="warning"),
    Case(307, "narrow", convolution(8, 8, 3), ("conv",), severity="warning"),
    Case(307, "odd first", convolution(12, 3, 3, first=True), ("conv",), severity="warning"),
    Case(307, "depthwise", convolution(12, 1, 3, group=12), ("conv",), severity="warning"),
    Case(307, "grouped points", convolution(16, 8, 1, group=2), ("conv",), severity="warning"),
    Case(307, "one column", vector("batch", 1), ("matmul",), severity="warning"),
    Case(307, "one row", vector(1, 16), ("matmul",), severity="warning"),
    Case(308, "-128", lowest, ("dequantizelinear_1",), severity="note"),
]

test_a_planted_fault_is_found, test_its_clean_twin_is_clean = fault_tests(CASES)


@pytest.mark.parametrize("move", ["MaxPool", "Transpose", "Reshape", "Flatten", "Squeeze"])
def test_a_pair_serves_through_what_only_moves_numbers(move: str) -> None:
    graph = Graph()
    x = graph.pair(graph.op("Relu", graph.input([4, 32, 1, 1])))
    if move == "MaxPool":
        y = graph.op("Flatten", graph.op(move, x, kernel_shape=[1, 1]))
    elif move == "Transpose":
        y = graph.op("Flatten", graph.op(move, x, perm=[0, 1, 3, 2]))
    elif move == "Flatten":
        y = graph.op(move, x)
    else:
        y = graph.op(move, x, graph.constant([4, 32] if move == "Reshape" else [2, 3], np.int64))
    graph.op("Gemm", y, graph.weight(32, 16, axis=1))
    assert found(graph.model()) == []


def test_a_tensor_read_both_by_its_activation_and_by_a_convolution_may_be_rounded_for_the_latter() -> None:
    graph = Graph()
    x = graph.conv(graph.input())
    direct = graph.op("Conv", graph.pair(x), graph.weight(16, 16, 1, 1))
    behind = graph.conv(graph.op("Relu", x))
    assert found(graph.model(direct, behind)) == []


def test_a_sum_whose_convolution_is_read_elsewhere_does_not_fuse_and_may_be_rounded_on_both_sides() -> None:
    graph = Graph()
    start = graph.pair(graph.op("Relu", graph.conv(graph.input())))
    long = graph.op("Conv", start, graph.weight(16, 16, 1, 1))
    total = graph.op("Add", graph.pair(long), start)
    last = graph.conv(graph.op("Relu", total))
    assert found(graph.model(last, long)) == []


def test_an_average_in_int8_between_pairs_is_no_island() -> None:
    graph = Graph()
    x = graph.op("Relu", graph.conv(graph.input()))
    pooled = graph.op("Flatten", graph.op("GlobalAveragePool", graph.pair(x)))
    graph.op("Gemm", graph.pair(pooled), graph.weight(16, 16, axis=1))
    assert found(graph.model()) == []
