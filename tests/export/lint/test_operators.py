from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, defs, helper
from support.lint_cases import Case, Graph, fault_tests, found


def simple(**settings: Any) -> onnx.ModelProto:
    graph = Graph()
    graph.op("Relu", graph.input())
    return graph.model(**settings)


def one_operator(kind: str, *, opset: int = 17, **attributes: Any) -> onnx.ModelProto:
    """One operator on the input, as often as ONNX requires."""
    graph = Graph()
    inputs = defs.get_schema(kind).min_input if defs.has(kind) else 1
    graph.op(kind, *[graph.input()] * inputs, **attributes)
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


def window() -> onnx.ModelProto:
    graph = Graph()
    graph.op("HannWindow", graph.input([], TensorProto.INT64))
    return graph.model()


def plugin(name: str, domain: str = "TRT") -> onnx.ModelProto:
    graph = Graph()
    graph.op(name, graph.input(), domain=domain)
    return graph.model()


def selected(faulty: bool) -> onnx.ModelProto:
    graph = Graph()
    graph.op("NonZero" if faulty else "Shape", graph.input([4, 5]))
    return graph.model(kind=TensorProto.INT64)


def gathered(faulty: bool) -> onnx.ModelProto:
    """Rows at the places of non-zero values; of the largest ones instead, whose number is known."""
    graph = Graph()
    x, scores = graph.input([9, 4]), graph.input([9])
    if faulty:
        places = graph.op("Squeeze", graph.op("NonZero", scores), graph.constant([0], np.int64))
    else:
        graph.op("TopK", scores, graph.constant([3], np.int64), outputs=2)
        places = graph.nodes[-1].output[1]
    graph.op("Gather", x, places)
    return graph.model()


def of_type(kind: int, operator: str) -> onnx.ModelProto:
    graph = Graph()
    graph.op(operator, graph.input(kind=kind))
    return graph.model(kind=kind)


def opset_case(on: str, bad: int, good: int) -> Case:
    def build(faulty: bool) -> onnx.ModelProto:
        return simple(opset=bad if faulty else good)

    return Case(101, f"opset {bad} on {on}", build, ("the file",), on, on, severity="warning")


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
        anyway=(109,),
    ),
    Case(103, "in a branch", in_a_branch, ("inside",)),
    Case(
        103,
        "in no table yet",
        lambda faulty: one_operator("CumProd" if faulty else "Relu", opset=26 if faulty else 17),
        ("cumprod",),
        "12.0",
        severity="warning",
        also=(101, 102, 403),
        anyway=(403,),
    ),
    Case(103, "10.4 takes it", lambda faulty: window(), ("hannwindow",), "10.3", clean_on="10.4"),
    Case(103, "never", lambda faulty: one_operator("NoSuch" if faulty else "Relu"), ("nosuch",), "10.13.3"),
    Case(104, "named as another", custom, ("selu",), severity="warning"),
    Case(104, "custom", lambda _: plugin("Mine", "com.example"), ("mine",), clean_on="10.1", anyway=(104,)),
    Case(108, "NonZero", selected, ("nonzero",), severity="warning"),
    Case(108, "behind an operator", gathered, ("gather",), severity="warning"),
    Case(
        109,
        "removed",
        lambda faulty: plugin("LReLU_TRT"),
        ("lrelu_trt",),
        "11.0",
        "10.16",
        also=(403,),
        anyway=(109,),
    ),
    Case(
        109, "to come", lambda faulty: plugin("ROIAlign_TRT"), ("roialign_trt",), "8.4", "8.5", anyway=(109,)
    ),
    Case(
        106,
        "listed elsewhere",
        lambda faulty: of_type(TensorProto.INT32 if faulty else TensorProto.FLOAT, "Softmax"),
        ("softmax",),
        severity="warning",
    ),
    Case(
        106,
        "floats only in 11",
        lambda faulty: of_type(TensorProto.INT32 if faulty else TensorProto.FLOAT, "Relu"),
        ("relu",),
        "11.4",
    ),
    Case(
        106,
        "floats only",
        lambda faulty: of_type(TensorProto.INT32 if faulty else TensorProto.FLOAT, "Exp"),
        ("exp",),
    ),
    Case(
        106,
        "never listed, newer",
        lambda faulty: of_type(TensorProto.UINT16 if faulty else TensorProto.DOUBLE, "Abs"),
        ("abs",),
        "10.16",
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


@pytest.mark.parametrize(
    ("operator", "version"), [("Swish", "11.4"), ("RMSNormalization", "10.15"), ("Attention", "10.14")]
)
def test_an_operator_that_nvidia_added_later_is_taken_from_that_version_on(
    operator: str, version: str
) -> None:
    model = one_operator(operator, opset=24)
    assert {finding.rule for finding in found(model, version)} <= {101, 403}
    (finding,) = [finding for finding in found(model, "10.3") if finding.rule == 103]
    assert finding.severity == "error"
    assert f"Use TensorRT {'11.0' if operator == 'Swish' else version}" in finding.cure


def test_a_newer_opset_than_nvidia_names_is_no_error_and_says_which_operators_changed() -> None:
    (finding,) = found(simple(opset=18), "8.5")
    assert (finding.rule, finding.severity) == (101, "warning")
    (finding,) = [
        finding for finding in found(one_operator("ReduceMean", opset=18), "8.5") if finding.rule == 101
    ]
    assert finding.what.endswith("these were defined anew since: ReduceMean")


@pytest.mark.parametrize("domain", ["", "TRT", "com.example"])
def test_a_standard_plugin_is_known_in_any_domain(domain: str) -> None:
    (finding,) = found(plugin("EfficientNMS_TRT", domain), "10.3")
    assert (finding.rule, finding.severity) == (109, "note")
    assert "deadweight, which registers NVIDIA's plugins" in finding.cure


def test_operators_that_the_parser_imports_as_plugins_are_named() -> None:
    def said(operator: str, version: str, **attributes: Any) -> list[str]:
        found_ = found(one_operator(operator, **attributes), version)
        return [finding.what for finding in found_ if finding.rule == 109]

    assert said("InstanceNormalization", "8.5") == [
        "InstanceNormalization runs as NVIDIA's plugin InstanceNormalization_TRT"
    ]
    assert said("InstanceNormalization", "10.3") == []
    assert said("RoiAlign", "10.3") == ["RoiAlign runs as NVIDIA's plugin ROIAlign_TRT"]


@pytest.mark.parametrize(("kind", "said"), [("Selu", "would run ONNX's Selu"), ("Mine", "without a plugin")])
def test_a_custom_operator_of_a_standard_name_would_be_taken_for_the_standard_one(
    kind: str, said: str
) -> None:
    graph = Graph()
    graph.op(kind, graph.input(), domain="com.example")
    (finding,) = [one for one in found(graph.model()) if one.rule == 104]
    assert said in finding.what
