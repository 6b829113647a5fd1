"""A product and the sum behind it, of which ONNX Runtime makes one Gemm before it looks for int8.

That Gemm runs in int8 only where its bias is a constant in int32. So a bias that other exporters wrote as an
Add goes into the product first; what adds anything else stays in float, for it would run so all the same.
Only products of two axes are meant; of others nothing is made.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ..onnx_graph.graph import OnnxModel, replace_nodes, unique

IN_FLOAT = "ONNX Runtime joins it with the sum behind it and computes both in float"


def join_biases(model: OnnxModel) -> OnnxModel:
    """Makes a Gemm of each MatMul and the Add of a bias by channel behind it; it keeps the MatMul's name."""
    taken = set(model.index.constants)
    biases, made, gone = [], {}, set()
    for product, add, other, columns in _sums(model):
        bias = model.index.value(other)
        if bias is None or bias.size != columns or bias.shape[-1] != columns:
            continue
        name = unique(f"{product.name}_bias", taken)
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
    """The products that ONNX Runtime joins with what is no bias by channel, and so runs in float."""
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
    """Each product of two axes whose only reader is an Add, that Add, what it adds, and the columns."""
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
