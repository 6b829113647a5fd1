from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from support.lint_cases import IMAGE, Case, Graph, fault_tests, found

from deadweight.export.lint.check import lint
from deadweight.export.lint.dla import _LIMITS
from deadweight.targets.errors import TargetError
from deadweight.targets.target import load_target

ORIN = "agx-orin-64gb 10.3"
Fill = Callable[[Graph, bool], Any]


def limit(operator: str, words: str, fill: Fill, on: str = ORIN) -> Case:
    def build(faulty: bool) -> onnx.ModelProto:
        graph = Graph()
        fill(graph, faulty)
        return graph.model()

    return Case(503, f"{operator} {words}", build, (operator.lower(),), on, severity="note")


def conv(words: str, size: int = 1, shape: tuple[int, ...] = IMAGE, **attributes: Any) -> Case:
    """A float convolution that is too large in one way; without fault 1x1 on an image."""

    def fill(graph: Graph, faulty: bool) -> None:
        seen = shape if faulty else IMAGE
        kernel = [size if faulty else 1] * (len(seen) - 2)
        weight = graph.constant(np.ones((16, seen[1], *kernel)))
        graph.op("Conv", graph.input(seen), weight, **(attributes if faulty else {}))

    return limit("Conv", words, fill)


def transposed(words: str, size: int = 2, **attributes: Any) -> Case:
    def fill(graph: Graph, faulty: bool) -> None:
        groups = attributes.get("group", 1) if faulty else 1
        weight = graph.constant(np.ones((16, 16 // groups, *[size if faulty else 2] * 2)))
        graph.op("ConvTranspose", graph.input(), weight, **(attributes if faulty else {}))

    return limit("ConvTranspose", words, fill)


def pool(operator: str, words: str, **attributes: Any) -> Case:
    def fill(graph: Graph, faulty: bool) -> None:
        graph.op(operator, graph.input(), **{"kernel_shape": [2, 2], **(attributes if faulty else {})})

    return limit(operator, words, fill)


def flat(operator: str) -> Case:
    def fill(graph: Graph, faulty: bool) -> None:
        x = graph.input([2, 16] if faulty else IMAGE)
        graph.op(operator, x, *([x] if operator in ("Add", "Sub", "Mul", "Max", "Min") else []))

    return limit(operator, "in two axes", fill)


def transposed_in_three_axes(graph: Graph, faulty: bool) -> None:
    axes = 3 if faulty else 2
    weight = graph.constant(np.ones((16, 16, *[2] * axes)))
    graph.op("ConvTranspose", graph.input([2, 16, *[4] * axes]), weight)


def clip(graph: Graph, faulty: bool) -> None:
    graph.op("Clip", graph.input(), graph.constant(-1 if faulty else 0), graph.constant(6))


def product(operator: str) -> Fill:
    def fill(graph: Graph, faulty: bool) -> None:
        x = graph.input([2, 32])
        graph.op(operator, x, graph.input([32, 16]) if faulty else graph.constant(np.ones((32, 16))))

    return fill


def concat(graph: Graph, faulty: bool) -> None:
    x = graph.input()
    graph.op("Concat", x, x, axis=2 if faulty else 1)


def resize(mode: str, factors: list[float]) -> Fill:
    def fill(graph: Graph, faulty: bool) -> None:
        graph.op("Resize", graph.input(), "", graph.constant(factors if faulty else [1, 1, 2, 2]), mode=mode)

    return fill


def softmax(axis: int, length: int) -> Fill:
    def fill(graph: Graph, faulty: bool) -> None:
        graph.op("Softmax", graph.input([1, length if faulty else 16, 2, 2]), axis=axis if faulty else 1)

    return fill


def norm(graph: Graph, faulty: bool) -> None:
    graph.op("LRN", graph.input(), size=11 if faulty else 5)


def slope(graph: Graph, faulty: bool) -> None:
    graph.op(
        "PRelu", graph.input(), graph.input([16, 1, 1]) if faulty else graph.constant(np.ones((16, 1, 1)))
    )


def pairs(faulty: bool) -> onnx.ModelProto:
    graph = Graph()
    (graph.conv if faulty else graph.float_conv)(graph.input())
    return graph.model()


def one(operator: str, good: str = "Relu") -> Callable[[bool], onnx.ModelProto]:
    def build(faulty: bool) -> onnx.ModelProto:
        graph = Graph()
        graph.op(operator if faulty else good, graph.input())
        return graph.model()

    return build


def large(shape: list[int]) -> Callable[[bool], onnx.ModelProto]:
    def build(faulty: bool) -> onnx.ModelProto:
        graph = Graph()
        graph.op("Relu", graph.input(shape if faulty else IMAGE))
        return graph.model()

    return build


CASES = [
    Case(501, "pairs", pairs, ("quantizelinear", "dequantizelinear_1"), ORIN, severity="note"),
    Case(
        501,
        "pairs later",
        lambda faulty: pairs(True),
        ("quantizelinear", "dequantizelinear_1"),
        ORIN,
        "agx-orin-64gb 11.4.1",
        severity="note",
    ),
    Case(502, "no layer", one("HardSwish"), ("hardswish",), ORIN, severity="note"),
    Case(502, "no layer in 8.5", one("Cos"), ("cos",), "orin-nx-16gb 8.5", severity="note"),
    Case(
        502,
        "a layer since 10",
        lambda faulty: one("Cos")(True),
        ("cos",),
        "orin-nx-16gb 8.6",
        "orin-nx-16gb 10.3",
        severity="note",
    ),
    conv("kernel", 33, (1, 16, 40, 40)),
    conv("padding", pads=[1, 1, 1, 1]),
    conv("large padding", 3, pads=[32] * 4),
    conv("stride", strides=[9, 9]),
    conv("dilation", 3, (1, 16, 80, 80), dilations=[33, 33]),
    conv("three axes", shape=(1, 16, 4, 4, 4)),
    conv("buffer", 7, (1, 2048, 64, 64)),
    transposed("padding", pads=[1, 1, 1, 1]),
    transposed("output padding", output_padding=[1, 1], strides=[2, 2]),
    transposed("groups", group=2),
    transposed("dilation", dilations=[2, 2]),
    transposed("kernel", 33),
    limit("ConvTranspose", "three axes", transposed_in_three_axes),
    transposed("stride", strides=[33, 33]),
    pool("MaxPool", "window", kernel_shape=[9, 9]),
    pool("MaxPool", "stride", strides=[17, 17]),
    pool("MaxPool", "padding", kernel_shape=[8, 8], pads=[8] * 4),
    pool("AveragePool", "padding left out", pads=[1, 1, 1, 1]),
    limit("Clip", "bounds", clip),
    limit("Gemm", "computed factor", product("Gemm")),
    limit("MatMul", "computed factor", product("MatMul")),
    limit("Concat", "axis", concat),
    limit("Resize", "factor", resize("nearest", [1, 1, 1.5, 1.5])),
    limit("Resize", "large factor", resize("linear", [1, 1, 5, 5])),
    limit("Resize", "channels", resize("nearest", [1, 2, 2, 2])),
    limit("Softmax", "batch", softmax(0, 16)),
    limit("Softmax", "long", softmax(1, 1025)),
    limit("LRN", "window", norm),
    limit("PRelu", "computed slope", slope),
    *(
        flat(operator)
        for operator in ("Add", "LeakyRelu", "Max", "Min", "Mul", "Relu", "Sigmoid", "Sub", "Sum", "Tanh")
    ),
    Case(504, "axis", large([1, 4, 2, 8193]), ("relu",), ORIN, severity="note"),
    Case(504, "batch", large([4097, 1, 2, 2]), ("relu",), ORIN, severity="note"),
]

test_a_planted_fault_is_found, test_its_clean_twin_is_clean = fault_tests(CASES)


def test_every_limit_has_a_planted_fault() -> None:
    assert {case.words.split()[0] for case in CASES if case.rule == 503} == set(_LIMITS)


def test_boards_and_versions_without_dla_are_not_judged_by_it() -> None:
    model = one("HardSwish")(True)
    for on in (
        "orin-nano-8gb",
        "thor-t5000",
        "agx-orin-64gb 10.8",
        "agx-orin-64gb 11.3",
        "orin-nx-16gb 11.4.1",
        "10.3",
    ):
        assert found(model, on) == []
    for on in (
        "orin-nx-16gb",
        "agx-orin-64gb",
        "agx-orin-64gb 8.5.2",
        "agx-orin-64gb 10.7.0.23",
        "agx-orin-64gb 11.4.1",
    ):
        assert [finding.rule for finding in found(model, on)] == [502]


def test_shapes_are_computed_while_building_and_go_to_no_processor() -> None:
    graph = Graph()
    x = graph.input()
    size = graph.op("Gather", graph.op("Shape", x), graph.constant([0, 1, 2, 3], np.int64))
    graph.op("Reshape", x, size)
    assert found(graph.model(), ORIN) == []


def test_a_file_for_dla_is_refused_for_its_pairs_and_warned_of_open_sizes(tmp_path: Path) -> None:
    onnx.save(pairs(True), tmp_path / "pairs.onnx")
    orin = load_target("agx-orin-64gb")
    refused = lint(tmp_path / "pairs.onnx", target=orin, dla=True)
    assert {(finding.rule, finding.severity) for finding in refused.findings} == {(501, "error")}
    assert "deadweight quantize FLOAT.onnx" in refused.findings[0].cure
    assert "--target agx-orin-64gb --calibration-cache" in refused.findings[0].cure
    assert lint(tmp_path / "pairs.onnx", target=orin, tensorrt="11.4.1", dla=True).passed
    graph = Graph()
    graph.op("Relu", graph.input(["batch", 16, 8, 8]))
    onnx.save(graph.model(), tmp_path / "open.onnx")
    (finding,) = lint(tmp_path / "open.onnx", target=orin, dla=True).findings
    assert (finding.rule, finding.severity, finding.node) == (505, "warning", "x")
    assert lint(tmp_path / "open.onnx", target=orin).findings == ()


@pytest.mark.parametrize("board", ["orin-nano-8gb", "thor-t5000"])
def test_a_board_without_dla_cannot_be_asked_for_it(tmp_path: Path, board: str) -> None:
    onnx.save(pairs(False), tmp_path / "m.onnx")
    with pytest.raises(TargetError, match=f"has no DLA on {board}"):
        lint(tmp_path / "m.onnx", target=load_target(board), dla=True)
