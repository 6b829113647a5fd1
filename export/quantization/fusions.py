"""What a runtime fuses before it selects int8 kernels, so that pairs between would cost more than they save.

TensorRT fuses a residual add with one of its convolutions. ONNX Runtime fuses MatMul and Add into Gemm, which
runs in int8 only if its bias is an int32 constant. So a bias that other exporters wrote as an Add is fused
first; a product with another addend stays in float, since it would run in float anyway. Only 2-D MatMul is
handled; other ranks are left unchanged.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ..onnx_graph.graph import Index, OnnxModel, replace_nodes
from ..onnx_graph.kernels import CONVOLUTIONS
from ..onnx_graph.walk import unique

IN_FLOAT = "ONNX Runtime fuses it with the following sum and computes both in float"


def join_biases(model: OnnxModel) -> OnnxModel:
    """Fuses each MatMul and a following Add of a per-channel bias into a Gemm with the MatMul's name."""
    used = set(model.index.constants)
    biases, made, gone = [], {}, set()
    for product, add, other, columns in _sums(model):
        bias = model.index.value(other)
        if bias is None or bias.size != columns or bias.shape[-1] != columns:
            continue
        name = unique(f"{product.name}_bias", used)
        biases.append(numpy_helper.from_array(bias.reshape(-1), name))
        gone.add(add.output[0])
        inputs = [*product.input, name]
        made[product.output[0]] = helper.make_node("Gemm", inputs, add.output[:1], name=product.name)
    if not gone:
        return model
    joined = model.copy()
    joined.graph.initializer.extend(biases)
    kept = [n for n in model.graph.node if not (n.op_type == "Add" and gone.intersection(n.output))]
    replace_nodes(joined.graph, [made.get(next(iter(node.output), ""), node) for node in kept])
    return joined


def summed_in_float(model: OnnxModel) -> frozenset[str]:
    """The products that ONNX Runtime fuses with another addend than a per-channel bias, so runs in float."""
    sizes = {name: [axis.dim_value for axis in kind.shape.dim] for name, kind in model.types.items()}
    found = set()
    for product, _, other, columns in _sums(model):
        constant = model.index.constants.get(other)
        shape = list(constant.dims) if constant is not None else sizes.get(other, [])
        by_channel = constant is not None and np.prod(shape) == columns
        if 0 < len(shape) <= 2 and shape[-1] in (0, columns) and not by_channel:
            found.add(product.name)
    return frozenset(found)


def _sums(model: OnnxModel) -> Iterator[tuple[onnx.NodeProto, onnx.NodeProto, str, int]]:
    """Each 2-D product whose only reader is an Add, that Add, its other addend, and the columns."""
    index, types = model.index, model.types
    for node in model.graph.node:
        if node.op_type != "MatMul" or len(node.input) != 2:
            continue
        add = index.read_only_by(node.output[0], ("Add",))
        axes = list(types[node.output[0]].shape.dim) if node.output[0] in types else []
        weight = index.constants.get(node.input[1])
        if add is None or len(axes) != 2 or (weight is not None and len(weight.dims) != 2):
            continue
        columns = weight.dims[1] if weight is not None else axes[1].dim_value
        other = add.input[1] if add.input[0] == node.output[0] else add.input[0]
        if columns and other != node.output[0]:
            yield node, add, other, int(columns)


def residual_branches(graph: onnx.GraphProto, index: Index, chosen: Collection[int]) -> set[tuple[int, int]]:
    """The skip side of each residual add: (position of the node, position of the input).

    Where both sides are convolutions, the one with fewer operators before it is the skip.
    """
    depth: dict[str, int] = {}
    for node in graph.node:
        below = 1 + max((depth.get(name, 0) for name in node.input if name), default=0)
        depth |= dict.fromkeys(filter(None, node.output), below)
    return {
        (position, 1 - max(branches, key=lambda place: depth[graph.node[position].input[place]]))
        for position, branches in residual_adds(graph, index, chosen)
    }


def residual_adds(
    graph: onnx.GraphProto, index: Index, chosen: Collection[int]
) -> Iterator[tuple[int, list[int]]]:
    """The adds with one of the convolutions at the positions `chosen`: (position, its sides with one).

    TensorRT fuses Conv + Add (+ ReLU) only without a pair in between; the other side, the skip, sets the
    precision of the sum. So the skip is rounded, and the convolution's side is not.
    """
    made = {name: position for position, node in enumerate(graph.node) for name in node.output}
    for position, node in enumerate(graph.node):
        if node.op_type != "Add" or len(index.computed(node)) != 2 or node.input[0] == node.input[1]:
            continue
        branches = [
            place_
            for place_, name in enumerate(node.input)
            if made.get(name) in chosen
            and index.producer[name].op_type in CONVOLUTIONS
            and index.read_only_by(name, ("Add",)) is not None
        ]
        if branches:
            yield position, branches
