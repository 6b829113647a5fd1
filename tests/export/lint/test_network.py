from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper
from support.lint_cases import IMAGE, Graph

from deadweight.export.lint.network import network_of, type_name
from deadweight.targets.errors import ModelError


def test_the_plain_graph_is_the_network_before_it_was_quantized() -> None:
    graph = Graph()
    x = graph.op("Relu", graph.conv(graph.input()))
    graph.op("Add", graph.pair(x), graph.conv(graph.op("MaxPool", x, kernel_shape=[1, 1])))
    network = network_of(graph.model())
    assert [node.op_type for node in network.plain.node] == ["Conv", "Relu", "MaxPool", "Conv", "Add"]
    assert [list(node.input)[:1] for node in network.plain.node] == [
        ["x"],
        ["conv"],
        ["relu"],
        ["maxpool"],
        ["relu"],
    ]
    assert [node.name for node in network.nodes] == [node.name for node in network.plain.node]
    assert network.int8 == {0, 3}
    assert network.plain_index.outputs == {"add"}


def test_shapes_are_known_without_reading_large_weights() -> None:
    graph = Graph()
    graph.float_conv(graph.input(["batch", 16, 8, 8]), 24, 16, 3)
    network = network_of(graph.model())
    assert network.shapes["conv"] == (None, 24, 6, 6)
    assert network.types["conv"] == TensorProto.FLOAT
    assert network.shapes["constant"] == (24, 16, 3, 3)


def test_numbers_stay_rounded_through_moves_and_joins() -> None:
    graph = Graph()
    x = graph.pair(graph.input())
    pooled = graph.op("MaxPool", x, kernel_shape=[1, 1])
    joined = graph.op("Concat", pooled, x, axis=1)
    mixed = graph.op("Concat", pooled, graph.op("Relu", x), axis=1)
    network = network_of(graph.model())
    assert {x, pooled, joined} <= network.rounded
    assert mixed not in network.rounded


def test_constants_of_inner_graphs_are_constants() -> None:
    graph = Graph()
    x, yes = graph.input(), graph.constant(True, np.bool_)
    bodies = []
    for name in ("a", "b"):
        nodes = [
            helper.make_node("Constant", [], [f"axes_{name}"], value_ints=[0]),
            helper.make_node("Unsqueeze", [x, f"axes_{name}"], [name], name=name),
        ]
        value = helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, *IMAGE])
        bodies.append(helper.make_graph(nodes, "body", [], [value]))
    graph.op("If", yes, then_branch=bodies[0], else_branch=bodies[1])
    network = network_of(graph.model())
    assert {"axes_a", "axes_b"} <= set(network.index.constants)
    assert sorted(node.op_type for node in network.every_node()) == ["If", "Unsqueeze", "Unsqueeze"]


def test_an_operator_without_its_inputs_is_a_damaged_file() -> None:
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node("QuantizeLinear", ["x"], ["y"], name="half")],
            "graph",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, IMAGE)],
            [helper.make_tensor_value_info("y", TensorProto.UINT8, IMAGE)],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
    )
    with pytest.raises(ModelError, match="QuantizeLinear 'half' has 1 inputs"):
        network_of(model)


def test_a_type_of_element_has_a_name_or_at_least_a_number() -> None:
    assert type_name(TensorProto.INT8) == "INT8"
    assert type_name(99) == "type 99"


def test_a_graph_that_inference_cannot_follow_is_read_all_the_same() -> None:
    graph = Graph()
    graph.op("Add", graph.input([2, 3]), graph.input([4, 5]))
    network = network_of(graph.model())
    assert [node.op_type for node in network.nodes] == ["Add"]
