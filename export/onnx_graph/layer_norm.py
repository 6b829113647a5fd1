"""Decomposition of LayerNormalization for parsers without that operator: TensorRT before 8.6.

The order is that of torch before opset 17, the pattern that TensorRT 8.5 fuses: mean, difference, square,
mean, epsilon, root, quotient, scale, shift (Ba, Kiros and Hinton, "Layer Normalization", 2016). Where the
operator
exists it is better: in FP16 it still accumulates in FP32. Group and instance norms need nothing: torch writes
both as InstanceNormalization, which 8.5 has.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from .graph import Array, attribute_of, replace_nodes, tensor_types

OPERATOR = "LayerNormalization"


def spell_out_layer_norms(model: onnx.ModelProto) -> None:
    """Replaces each float32 LayerNormalization, in place, in a model of opset 18 or newer.

    Others are unchanged: they accumulate in another type than that of their input.
    """
    known = tensor_types(model)
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        found = known.get(node.input[0]) if node.op_type == OPERATOR else None
        if found is None or found.elem_type != TensorProto.FLOAT or any(node.output[1:]):
            nodes.append(node)
            continue
        first, rank = int(attribute_of(node, "axis", -1)), len(found.shape.dim)
        nodes += _spelled(node, list(range(first if first < 0 else first - rank, 0)), model.graph)
    replace_nodes(model.graph, nodes)


def _spelled(node: onnx.NodeProto, axes: list[int], graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    made: list[onnx.NodeProto] = []
    scope = node.name.removesuffix(f"/{OPERATOR}")

    def constant(what: str, value: Array) -> str:
        graph.initializer.append(numpy_helper.from_array(value, f"{node.name}:{what}"))
        return f"{node.name}:{what}"

    def call(operator: str, what: str, *inputs: str) -> str:
        made.append(helper.make_node(operator, inputs, [f"{node.name}:{what}"], name=f"{scope}/{what}"))
        made[-1].metadata_props.extend(node.metadata_props)
        return f"{node.name}:{what}"

    over = constant("axes", np.array(axes, np.int64))
    epsilon = np.array(attribute_of(node, "epsilon", 1e-5), np.float32)
    centred = call("Sub", "centred", node.input[0], call("ReduceMean", "mean", node.input[0], over))
    squared = call("Pow", "squared", centred, constant("two", np.array(2.0, np.float32)))
    variance = call("ReduceMean", "variance", squared, over)
    deviation = call("Sqrt", "deviation", call("Add", "raised", variance, constant("epsilon", epsilon)))
    result = call("Mul", "scaled", call("Div", "normed", centred, deviation), node.input[1])
    if len(node.input) > 2 and node.input[2]:
        result = call("Add", "shifted", result, node.input[2])
    made[-1].output[0] = node.output[0]
    return made
