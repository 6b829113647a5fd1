"""Operators without an int8 kernel in a runtime, for which rounding costs time and saves none.

TensorRT: tensor cores multiply matrices: a product with a vector leaves them idle, and a narrow convolution
uses only a part. NVIDIA publishes no list of kernels; the best source is what its Model Optimizer leaves in
float. ONNX Runtime: what its optimizer leaves in float, tested with 1.32 on x86.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from .graph import Index, OnnxModel, attribute_of

CONVOLUTIONS = ("Conv", "ConvTranspose")
SINGLE_ROW = "it multiplies a single row, which tensor cores do not speed up"


def single_rows(model: OnnxModel) -> frozenset[str]:
    """The products of a single row at any batch, which do not use tensor cores.

    A dynamic axis, such as the batch of a linear layer, counts as many rows.
    """
    shapes = {name: kind.shape.dim for name, kind in model.types.items()}
    return frozenset(
        node.name
        for node in model.graph.node
        if node.op_type in ("Gemm", "MatMul")
        and len(axes := shapes.get(node.output[0], ())) > 1
        and axes[-2].dim_value == 1
    )


def without_int8_kernel(node: onnx.NodeProto, weight: Sequence[int], *, first: bool) -> str:
    """Why TensorRT has no fast int8 kernel for a weighted operator; empty where it has one.

    Args:
        weight: the shape of the weight.
        first: whether the operator reads an input of the network.
    """
    if node.op_type in ("Gemm", "MatMul"):
        columns = weight[0] if attribute_of(node, "transB", 0) else weight[-1]
        return "it multiplies by a vector, which tensor cores do not speed up" if columns == 1 else ""
    outputs, inputs, *kernel = weight
    if node.op_type != "Conv" or min(outputs, inputs) >= 16:
        return ""
    groups = attribute_of(node, "group", 1)
    if groups == 1:
        by_eight = outputs % 8 == 0 or inputs % 8 == 0
        served = by_eight and (first or max(outputs, inputs) >= 16) and len(set(kernel)) == 1
    else:
        served = outputs % 8 == 0 and min(kernel) >= 3
    if served:
        return ""
    shape = "x".join(str(size) for size in kernel)
    width = f"{outputs} channels from {inputs}" + (f" in each of {groups} groups" if groups > 1 else "")
    return f"it is too narrow for an int8 kernel ({width}, {shape})"


def float_in_onnx_runtime(node: onnx.NodeProto, index: Index) -> str:
    """Why ONNX Runtime runs a weighted operator in float even if rounded; empty where it does not."""
    if node.input[0] in index.constants:
        return "ONNX Runtime multiplies in float where the weight is on the left"
    bias = node.input[2] if len(node.input) > 2 else ""
    if not bias:
        return ""
    if bias not in index.constants:
        return "ONNX Runtime computes in float where the bias is computed"
    if node.op_type != "Gemm":
        return ""
    if not is_by_channel(index.constants[bias].dims):
        return "ONNX Runtime multiplies in float where each row has its own bias"
    plain = attribute_of(node, "alpha", 1.0) == attribute_of(node, "beta", 1.0) == 1.0
    return "" if plain else "ONNX Runtime multiplies in float where a product or its bias has a factor"


def is_by_channel(bias: Sequence[int]) -> bool:
    """Whether a bias of this shape is the same for all rows of a product."""
    return all(size == 1 for size in bias[:-1])
