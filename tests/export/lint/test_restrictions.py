from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from support.lint_cases import IMAGE, Case, Graph, fault_tests, found

from deadweight.export.lint.restrictions import RESTRICTIONS

Fill = Callable[[Graph, bool], Any]


def case(
    operator: str,
    words: str,
    fill: Fill,
    on: str = "10.1",
    clean_on: str = "",
    severity: str = "error",
    anyway: tuple[int, ...] = (),
    **settings: Any,
) -> Case:
    """`fill` adds the operator to a graph, with the fault or without."""

    def build(faulty: bool) -> onnx.ModelProto:
        graph = Graph()
        fill(graph, faulty)
        return graph.model(**settings)

    return Case(105, f"{operator} {words}", build, (operator.lower(),), on, clean_on, severity, anyway=anyway)


def attribute(operator: str, name: str, bad: Any, good: Any, *, inputs: int = 0, **others: Any) -> Case:
    """One attribute is the fault; `inputs` constants follow the data."""

    def fill(graph: Graph, faulty: bool) -> None:
        given = {name: bad if faulty else good, **others}
        constants = [graph.constant(np.ones(16)) for _ in range(inputs)]
        kept = {key: value for key, value in given.items() if value is not None}
        graph.op(operator, graph.input(), *constants, **kept)

    return case(operator, name, fill)


def computed(operator: str, places: int, value: Any, *, opset: int = 17, **attributes: Any) -> Case:
    """The last of `places` inputs is an input of the network instead of a constant."""

    def fill(graph: Graph, faulty: bool) -> None:
        inputs = [graph.input([1, 16, 8, 8])]
        for place in range(1, places):
            last = place == places - 1
            given = (
                value
                if last
                else [1]
                if operator == "Slice"
                else [0] * 8
                if operator == "Pad" and place == 1
                else ""
            )
            if last and faulty:
                inputs.append(graph.input(np.shape(value), TensorProto.INT64))
            elif given == "":
                inputs.append("")
            else:
                inputs.append(graph.constant(given, np.int64))
        graph.op(operator, *inputs, **attributes)

    return case(operator, "computed", fill, opset=opset)


def second_output(graph: Graph, faulty: bool) -> None:
    graph.op("MaxPool", graph.input(), outputs=2 if faulty else 1, kernel_shape=[2, 2])


def statistics_as_output(graph: Graph, faulty: bool) -> None:
    graph.op("LayerNormalization", graph.input(), graph.constant(np.ones(8)), outputs=2 if faulty else 1)


def batch_norm(graph: Graph, faulty: bool) -> None:
    constants = [graph.constant(np.ones(16)) for _ in range(4)]
    extra: dict[str, Any] = {"training_mode": 1, "outputs": 3} if faulty else {}
    graph.op("BatchNormalization", graph.input(), *constants, **extra)


def instance_norm(graph: Graph, faulty: bool) -> None:
    scale = graph.input([16]) if faulty else graph.constant(np.ones(16))
    graph.op("InstanceNormalization", graph.input(), scale, graph.constant(np.ones(16)))


def dropout(graph: Graph, faulty: bool) -> None:
    graph.op("Dropout", graph.input(), "", graph.constant(faulty, np.bool_))


def dropout_by_input(graph: Graph, faulty: bool) -> None:
    training = graph.input([], TensorProto.BOOL) if faulty else graph.constant(False, np.bool_)
    graph.op("Dropout", graph.input(), "", training)


def constant(graph: Graph, faulty: bool) -> None:
    values = numpy_helper.from_array(np.ones(1, np.float32), "v")
    places = numpy_helper.from_array(np.zeros(1, np.int64), "i")
    kept: dict[str, Any] = (
        {"sparse_value": helper.make_sparse_tensor(values, places, [1])}
        if faulty
        else {"value_floats": [1.0]}
    )
    graph.op("Relu", graph.op("Constant", **kept))


def einsum(bad: str, good: str) -> Fill:
    def fill(graph: Graph, faulty: bool) -> None:
        x = graph.input([4, 4])
        graph.op("Einsum", x, *([x] if "," in good else []), equation=bad if faulty else good)

    return fill


def broadcast(graph: Graph, faulty: bool) -> None:
    graph.op("Einsum", graph.input([4, 1 if faulty else 3]), graph.input([3, 5]), equation="ij,jk->ik")


def grid(graph: Graph, faulty: bool) -> None:
    x = graph.input([2, 16, 8, 8, 8] if faulty else IMAGE)
    graph.op("GridSample", x, graph.input([2, 4, 4, 4, 3] if faulty else [2, 4, 4, 2]))


def recurrent(operator: str, **attributes: Any) -> Fill:
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[operator]

    def fill(graph: Graph, faulty: bool) -> None:
        sides = 2 if "activations" in attributes else 1
        weights = [graph.constant(np.ones((sides, gates * 4, size))) for size in (3, 4)]
        given = {"hidden_size": 4, **(attributes if faulty else {})}
        if sides == 2:
            given["direction"] = "bidirectional"
        graph.op(operator, graph.input([5, 2, 3]), *weights, **given)

    return fill


def branches(graph: Graph, faulty: bool) -> None:
    x, yes = graph.input(), graph.constant(True, np.bool_)
    bodies = [
        helper.make_graph(
            [helper.make_node("Relu", [x], [name])],
            "body",
            [],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)],
        )
        for name, shape in (("one", IMAGE), ("one" if faulty else "two", IMAGE))
    ]
    graph.op("If", yes, then_branch=bodies[0], else_branch=bodies[1])


def ranks(graph: Graph, faulty: bool) -> None:
    x, yes = graph.input(), graph.constant(True, np.bool_)
    bodies = [
        helper.make_graph(
            [helper.make_node(operator, [x], [operator])],
            "body",
            [],
            [helper.make_tensor_value_info(operator, TensorProto.FLOAT, shape)],
        )
        for operator, shape in (("Relu", IMAGE), ("Flatten", [2, 1024]) if faulty else ("Abs", IMAGE))
    ]
    graph.op("If", yes, then_branch=bodies[0], else_branch=bodies[1])


def loop(*, turns: bool = False, condition: bool = False) -> Fill:
    def fill(graph: Graph, faulty: bool) -> None:
        x = graph.input([2, 3])
        count = graph.input([], TensorProto.INT64) if turns and faulty else graph.constant(3, np.int64)
        grows = not turns and not condition and faulty
        goes_on = "" if condition and faulty else graph.constant(True, np.bool_)
        after = [4, 3] if grows else [2, 3]
        step = ("Concat", {"axis": 0}) if grows else ("Max", {})
        body = helper.make_graph(
            [
                helper.make_node("Identity", ["c"], ["c2"]),
                helper.make_node(step[0], ["v", "v"], ["v2"], **step[1]),  # type: ignore[arg-type]
                helper.make_node("Identity", ["v2"], ["scan"]),
            ],
            "body",
            [
                helper.make_tensor_value_info("i", TensorProto.INT64, []),
                helper.make_tensor_value_info("c", TensorProto.BOOL, []),
                helper.make_tensor_value_info("v", TensorProto.FLOAT, [2, 3]),
            ],
            [
                helper.make_tensor_value_info("c2", TensorProto.BOOL, []),
                helper.make_tensor_value_info("v2", TensorProto.FLOAT, after),
                helper.make_tensor_value_info("scan", TensorProto.FLOAT, after),
            ],
        )
        graph.op("Loop", count, goes_on, x, outputs=2, body=body)

    return fill


def group_norm(graph: Graph, faulty: bool) -> None:
    parameters = [graph.constant(np.ones(16)) for _ in range(2)]
    graph.op("GroupNormalization", graph.input(), *parameters, num_groups=4)


def elements(graph: Graph, faulty: bool) -> None:
    kept: dict[str, Any] = {"reduction": "add"} if faulty else {}
    graph.op("ScatterElements", graph.input([4]), graph.constant([1], np.int64), graph.input([1]), **kept)


def with_axes(operator: str, graph: Graph, axes: str) -> None:
    x = graph.input()
    padding = [graph.constant([0, 1], np.int64), ""] if operator == "Pad" else []
    graph.op(operator, x, *padding, axes)


def axes_given(operator: str) -> Fill:
    return lambda graph, faulty: with_axes(operator, graph, graph.constant([0], np.int64))


def axes_computed(operator: str) -> Fill:
    return lambda graph, faulty: with_axes(operator, graph, graph.input([1], TensorProto.INT64))


def squeeze_by(source: str, operator: str = "Squeeze") -> Fill:
    """Axes that an input gives, or its shape; the clean twin has constant axes, or is on another version."""

    def fill(graph: Graph, faulty: bool) -> None:
        x = graph.input([1, 1, 8, 8])
        axes = graph.constant([0], np.int64)
        if source:
            axes = graph.op("Gather", graph.op(source, x), axes)
        elif faulty:
            axes = graph.input([1], TensorProto.INT64)
        graph.op(operator, x, axes)

    return fill


def resize(**attributes: Any) -> Fill:
    def fill(graph: Graph, faulty: bool) -> None:
        graph.op("Resize", graph.input(), "", graph.constant([1, 1, 2, 2]), **(attributes if faulty else {}))

    return fill


def scatter(reduction: str | None) -> Fill:
    def fill(graph: Graph, faulty: bool) -> None:
        kept: dict[str, Any] = {"reduction": reduction} if faulty else {}
        graph.op(
            "ScatterND", graph.input([4, 3]), graph.constant([[1]], np.int64), graph.input([1, 3]), **kept
        )

    return fill


def top(count: int, **attributes: Any) -> Fill:
    def fill(graph: Graph, faulty: bool) -> None:
        k = graph.constant([count if faulty else 5], np.int64)
        graph.op("TopK", graph.input([2, 5000]), k, outputs=2, **(attributes if faulty else {}))

    return fill


def top_of_an_input(graph: Graph, faulty: bool) -> None:
    k = graph.input([1], TensorProto.INT64) if faulty else graph.constant([5], np.int64)
    graph.op("TopK", graph.input([2, 500]), k, outputs=2)


def reverse(graph: Graph, faulty: bool) -> None:
    graph.op("ReverseSequence", graph.input(["batch" if faulty else 4, 4]), graph.constant([1] * 4, np.int64))


def open_axis(operator: str) -> Fill:
    def fill(graph: Graph, faulty: bool) -> None:
        graph.op(operator, graph.input([4, "open" if faulty else 4]))

    return fill


def deform(shape: tuple[int, ...], pads: list[int]) -> Fill:
    def fill(graph: Graph, faulty: bool) -> None:
        kept = shape if faulty else (2, 16, 8, 8)
        kernel = [1] * (len(kept) - 2)
        weight, offset = graph.constant(np.ones((16, 16, *kernel))), graph.input()
        graph.op("DeformConv", graph.input(kept), weight, offset, pads=pads if faulty else [0] * 4)

    return fill


def one_hot(graph: Graph, faulty: bool) -> None:
    depth = graph.input([1], TensorProto.INT64) if faulty else graph.constant([4], np.int64)
    graph.op("OneHot", graph.input([2], TensorProto.INT64), depth, graph.constant([0, 1]))


CASES = [
    attribute("MaxPool", "dilations", [2, 2], [1, 1], kernel_shape=[2, 2]),
    attribute("MaxPool", "dilations", [2, 2], None, kernel_shape=[2, 2]),
    case(
        "MaxPool",
        "dilations ignored",
        lambda g, bad: g.op("MaxPool", g.input(), kernel_shape=[2, 2], dilations=[2 if bad else 1] * 2),
        "8.5",
    ),
    case(
        "MaxPool",
        "four axes",
        lambda g, bad: g.op(
            "MaxPool", g.input([1, 4] + [8] * (4 if bad else 3)), kernel_shape=[2] * (4 if bad else 3)
        ),
    ),
    case("MaxPool", "indices", second_output),
    case(
        "AveragePool",
        "four axes",
        lambda g, bad: g.op(
            "AveragePool", g.input([1, 4] + [8] * (4 if bad else 1)), kernel_shape=[2] * (4 if bad else 1)
        ),
    ),
    attribute("LpPool", "p", 3, 2, kernel_shape=[2, 2]),
    attribute("LpNormalization", "p", 3, 1),
    case("LayerNormalization", "statistics", statistics_as_output),
    case("BatchNormalization", "training", batch_norm),
    case("InstanceNormalization", "scale", instance_norm, "8.5", anyway=(109,)),
    case(
        "InstanceNormalization",
        "scale later",
        lambda g, bad: instance_norm(g, True),
        "8.5",
        "8.6",
        anyway=(109,),
    ),
    case("Dropout", "training", dropout),
    case("Dropout", "training by input", dropout_by_input),
    case("Constant", "sparse", constant),
    case("Einsum", "ellipsis", einsum("...i->...", "ji->j"), "8.6"),
    case("Einsum", "diagonal", einsum("ii->i", "ij->i"), "8.6"),
    case("Einsum", "broadcast", broadcast, "8.6"),
    case("Einsum", "diagonal in 10.3", einsum("ii->i", "ij->i"), "10.3", severity="warning"),
    case(
        "Einsum",
        "diagonal until 10.12",
        lambda g, _: einsum("ii->i", "")(g, True),
        "10.11",
        "10.12",
        "warning",
    ),
    case("Einsum", "broadcast in 10.3", broadcast, "10.3", severity="warning"),
    case("Einsum", "letters", einsum("iJ,Jk->ik", "ij,jk->ik")),
    case("EyeLike", "size", open_axis("EyeLike")),
    case("Hardmax", "size", open_axis("Hardmax")),
    case("GridSample", "axes", grid),
    case("GridSample", "axes in between", grid, "10.13", severity="warning"),
    case("GroupNormalization", "opset 21", group_norm, "10.8", "10.9", opset=21, anyway=(101,)),
    case(
        "LSTM",
        "activations",
        recurrent("LSTM", activations=["Sigmoid", "Tanh", "Tanh", "Sigmoid", "Tanh", "Sigmoid"]),
    ),
    case("LSTM", "coupled", recurrent("LSTM", input_forget=1)),
    case("LSTM", "layout", recurrent("LSTM", layout=1)),
    case("GRU", "activations", recurrent("GRU", activations=["Sigmoid", "Tanh", "Tanh", "Tanh"])),
    case("RNN", "activations", recurrent("RNN", activations=["Tanh", "Relu"])),
    case("If", "names", branches),
    case("If", "ranks", ranks),
    case("Loop", "turns", loop(turns=True)),
    case("Loop", "shape", loop()),
    case("Loop", "condition", loop(condition=True)),
    case("Resize", "coordinates", resize(coordinate_transformation_mode="tf_crop_and_resize")),
    case(
        "Resize",
        "nearest",
        resize(coordinate_transformation_mode="tf_half_pixel_for_nn", nearest_mode="floor"),
    ),
    case("Resize", "antialias", resize(antialias=1), opset=18, ir_version=8),
    case("Resize", "policy", resize(keep_aspect_ratio_policy="not_larger"), opset=18),
    case("ScatterND", "reduction", scatter("add")),
    case("ScatterND", "reduction none", scatter("none")),
    case("ScatterND", "reduction ignored", scatter("add"), "8.6"),
    case("ScatterND", "reduction in 11", scatter("add"), "11.4"),
    case("ScatterND", "reduction none until 10.9", lambda g, _: scatter("none")(g, True), "10.8", "10.9"),
    case("ScatterElements", "reduction ignored", elements, "8.6"),
    case("Resize", "axes", resize(axes=[0, 1, 2, 3]), "8.6", opset=18, anyway=(101,)),
    case("TopK", "large", top(3841)),
    case("TopK", "unsorted", top(5, sorted=0)),
    case("TopK", "computed", top_of_an_input, "8.5"),
    case("ReverseSequence", "open", reverse, "8.5"),
    case("DeformConv", "axes", deform((2, 16, 4, 4, 4), [0] * 6), opset=19, anyway=(109,)),
    case("DeformConv", "pads", deform((2, 16, 8, 8), [0, 0, 1, 1]), opset=19, anyway=(109,)),
    case("OneHot", "depth", one_hot),
    computed("CumSum", 2, 1),
    computed("Pad", 4, [0, 1, 2, 3], opset=18),
    computed("Slice", 4, [0]),
    computed("Squeeze", 2, [0]),
    case("Squeeze", "by data", squeeze_by(""), "11.4", anyway=(106,)),
    case("Unsqueeze", "computed until 10.7", squeeze_by("Shape", "Unsqueeze"), "10.6", "10.7"),
    computed("Unsqueeze", 2, [0]),
    case("Pad", "axes in 8", axes_given("Pad"), "8.6", "10.1", opset=18, anyway=(101,)),
    case("Pad", "computed until 10.4", axes_computed("Pad"), "10.3", "10.4", opset=18),
    case("ReduceMean", "axes ignored", axes_given("ReduceMean"), "8.5", "10.1", opset=18, anyway=(101,)),
    computed("ReduceSum", 2, [0]),
    *(
        computed(f"Reduce{kind}", 2, [0], opset=18)
        for kind in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")
    ),
]

test_a_planted_fault_is_found, test_its_clean_twin_is_clean = fault_tests(CASES)


def test_every_restriction_has_a_planted_fault() -> None:
    assert {case.words.split()[0] for case in CASES} == set(RESTRICTIONS)


TAKEN: list[tuple[Fill, str]] = [
    (top(3840), "10.3"),
    (top(5, sorted=0), "11.4"),
    (scatter("none"), "11.4"),
    (grid, "11.4"),
]


@pytest.mark.parametrize(("fill", "on"), TAKEN)
def test_what_the_parser_and_builder_were_seen_to_take_is_no_fault(fill: Fill, on: str) -> None:
    graph = Graph()
    fill(graph, True)
    assert [finding for finding in found(graph.model(), on) if finding.rule == 105] == []
