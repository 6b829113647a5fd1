from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from support.lint_cases import Case, Graph, fault_tests, found


def simple(**settings: Any) -> onnx.ModelProto:
    graph = Graph()
    graph.op("Relu", graph.input())
    return graph.model(**settings)


def one_operator(kind: str, *, opset: int = 17, **attributes: Any) -> onnx.ModelProto:
    graph = Graph()
    graph.op(kind, graph.input(), **attributes)
    return graph.model(opset=opset)


def custom(faulty: bool) -> onnx.ModelProto:
    graph = Graph()
    graph.op("Selu", graph.input(), domain="com.example" if faulty else "")
    return graph.model()


def in_a_branch(faulty: bool) -> onnx.ModelProto:
    graph = Graph()
    x, yes = graph.input(), graph.constant(True, np.bool_)
    kind = "Det" if faulty else "Relu"
    one = helper.make_node(kind, [x], ["a"], name="inside")
    two = helper.make_node("Abs", [x], ["b"], name="other")
    bodies = [
        helper.make_graph(
            [node], "body", [], [helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, None)]
        )
        for node in (one, two)
    ]
    graph.op("If", yes, then_branch=bodies[0], else_branch=bodies[1])
    return graph.model()


def random(faulty: bool) -> onnx.ModelProto:
    graph = Graph()
    x = graph.input()
    given: dict[str, Any] = {"seed": 3.0} if faulty else {}
    graph.op("Add", x, graph.op("RandomNormal", shape=[2, 16, 8, 8], **given))
    return graph.model()


def of_type(kind: int, operator: str) -> onnx.ModelProto:
    graph = Graph()
    graph.op(operator, graph.input(kind=kind))
    return graph.model(kind=kind)


def opset_case(on: str, bad: int, good: int) -> Case:
    def build(faulty: bool) -> onnx.ModelProto:
        return simple(opset=bad if faulty else good)

    return Case(101, f"opset {bad} on {on}", build, ("the file",), on, on)


CASES = [
    opset_case("8.5", 18, 17),
    opset_case("8.6", 18, 7),
    opset_case("10.0", 21, 20),
    opset_case("10.1", 8, 9),
    opset_case("10.13.3", 21, 17),
    opset_case("11.4", 26, 25),
    Case(
        102,
        "format",
        lambda faulty: simple(ir_version=9 if faulty else 8),
        ("the file",),
        "8.6",
        severity="warning",
    ),
    Case(
        102,
        "format on 10",
        lambda faulty: simple(ir_version=11 if faulty else 10),
        ("the file",),
        "10.0",
        severity="warning",
    ),
    Case(103, "none takes it", lambda faulty: one_operator("Det" if faulty else "Relu"), ("det",)),
    Case(103, "in no table", lambda faulty: one_operator("NoSuch" if faulty else "Relu"), ("nosuch",)),
    Case(103, "8.6 takes it", lambda faulty: one_operator("IsInf"), ("isinf",), "8.5", clean_on="8.6"),
    Case(103, "10.0 takes it", lambda faulty: one_operator("Mish"), ("mish",), "8.6", clean_on="10.0"),
    Case(
        103,
        "10.1 takes it",
        lambda faulty: one_operator("DeformConv"),
        ("deformconv",),
        "10.0",
        clean_on="10.1",
    ),
    Case(103, "in a branch", in_a_branch, ("inside",)),
    Case(104, "custom", custom, ("selu",)),
    Case(
        106,
        "listed elsewhere",
        lambda faulty: of_type(TensorProto.INT32 if faulty else TensorProto.FLOAT, "Exp"),
        ("exp",),
        severity="warning",
    ),
    Case(
        106,
        "never listed",
        lambda faulty: of_type(TensorProto.UINT16 if faulty else TensorProto.DOUBLE, "Abs"),
        ("abs",),
    ),
    Case(
        106,
        "bfloat16 on 8",
        lambda faulty: of_type(TensorProto.BFLOAT16, "Abs"),
        ("abs",),
        "8.6",
        clean_on="10.0",
    ),
    Case(
        106,
        "int64 is cast on 8",
        lambda faulty: of_type(TensorProto.UINT32 if faulty else TensorProto.INT64, "Abs"),
        ("abs",),
        "8.5",
    ),
    Case(107, "seed", random, ("randomnormal",), severity="note"),
]

test_a_planted_fault_is_found, test_its_clean_twin_is_clean = fault_tests(CASES)


def test_the_operators_of_the_qoperator_format_are_reported_how_to_quantize_instead() -> None:
    (finding,) = (f for f in found(one_operator("DynamicQuantizeLinear")) if f.rule == 103)
    assert "QuantizeLinear / DequantizeLinear pairs" in finding.cure


def test_a_missing_operator_is_reported_which_version_takes_it() -> None:
    (finding,) = found(one_operator("IsInf"), "8.5")
    assert "TensorRT 8.6" in finding.cure


def test_an_operator_of_tomorrow_is_judged_by_the_newest_table() -> None:
    (finding,) = found(one_operator("Swish", opset=24), "11.4")
    assert finding.what == "Swish is not in the operator table of TensorRT 10.1"


@pytest.mark.parametrize(("kind", "said"), [("Selu", "would run ONNX's Selu"), ("Mine", "without a plugin")])
def test_a_custom_operator_of_a_standard_name_would_be_taken_for_the_standard_one(
    kind: str, said: str
) -> None:
    graph = Graph()
    graph.op(kind, graph.input(), domain="com.example")
    (finding,) = [one for one in found(graph.model()) if one.rule == 104]
    assert said in finding.what
