"""Bias correction: the mean rounding error of each output channel is subtracted from its bias.

Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (ICCV 2019), section
4.2, with the expectation taken over calibration data. A channel with few weights (a depthwise filter has
nine) may round them all in one direction, which shifts its output by far more than its noise. The error of
each operator is measured on the float network's activations, all operators in one pass: an earlier operator
whose mean is corrected does not shift a later one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ...targets.errors import WorkloadError
from ..onnx_graph.float_input import as_float
from ..onnx_graph.graph import Array, Index, OnnxModel, attribute_of, drop_unused, opset_of
from ..onnx_graph.readback import Product, products
from ..onnx_graph.run import pieces, runner, samples_in


def correct_biases(
    model: OnnxModel, quantized: OnnxModel, batches: Iterable[Mapping[str, Any]]
) -> tuple[OnnxModel, dict[str, float]]:
    """The float network with biases that compensate the rounding in `quantized`.

    Args:
        model: the float network of `quantized`; quantize the result with the same ranges.
        batches: as for `calibrate`.

    Returns:
        The network, and by operator the largest correction of a channel, as a share of the RMS of the whole
        output: a channel's RMS may be near 0.

    Raises:
        WorkloadError: there are no batches, or they do not fit.
        ModelError: ONNX Runtime refuses the model.
    """
    before = as_float(model)
    places = [
        (product, holder)
        for product in products(before, quantized)
        if (holder := _bias_holder(before.index, product.node)) is not None
    ]
    if not places:
        return before, {}
    shifts, sizes = _errors(before, [product for product, _ in places], batches)
    made = before.copy()
    copies = {node.output[0]: node for node in made.graph.node}
    corrections: dict[str, float] = {}
    for (product, (holder, place)), shift, size in zip(places, shifts, sizes, strict=True):
        _subtract(made.graph, copies[holder.output[0]], place, before.index, shift)
        corrections[product.node.name] = float(np.abs(shift).max(initial=0.0)) / size if size else 0.0
    drop_unused(made.graph)
    return made, corrections


def _bias_holder(index: Index, node: onnx.NodeProto) -> tuple[onnx.NodeProto, int] | None:
    """The node and the input position of an operator's per-channel bias, existing or possible."""
    if node.op_type in ("Conv", "ConvTranspose", "Gemm"):
        given = node.input[2] if len(node.input) > 2 else ""
        constant = not given or given in index.constants
        by_row = constant and given and any(size != 1 for size in index.constants[given].dims[:-1])
        return None if not constant or by_row or attribute_of(node, "beta", 1.0) != 1.0 else (node, 2)
    add = index.read_only_by(node.output[0], ("Add",))
    if add is None:
        return None
    for place, name in enumerate(add.input):
        if name in index.constants and len(index.constants[name].dims) == 1:
            return add, place
    return None


def _errors(
    before: OnnxModel, found: list[Product], batches: Iterable[Mapping[str, Any]]
) -> tuple[list[Array], list[float]]:
    """By operator: the mean error of each output channel, and the root mean square of all values."""
    model = before.copy().proto
    names = [_twin(model.graph, product, place, opset_of(model)) for place, product in enumerate(found)]
    run = runner(model, [name for two in names for name in two], optimize=False)
    sums = [[np.zeros(())] * 2 for _ in found]
    samples = 0
    for feeds in pieces(before.proto, batches):
        count = samples_in(feeds)
        values = run(feeds)
        for place, two in enumerate(names):
            sums[place] = [old + count * values[name] for old, name in zip(sums[place], two, strict=True)]
        samples += count
    if not samples:
        raise WorkloadError("There is no calibration data.", "Give at least one batch.")
    means = [[total.astype(np.float64).reshape(-1) / samples for total in two] for two in sums]
    return [error for error, _ in means], [float(np.sqrt(square.mean())) for _, square in means]


def _twin(graph: onnx.GraphProto, product: Product, place: int, opset: int) -> list[str]:
    """Adds a copy of the operator with rounded factors; returns the names of two means over a channel.

    They are the means of its error and of the float output's square.
    """
    node, mark = product.node, f"deadweight:{place}"
    constants = {
        f"{mark}:scale": np.asarray(product.scale, np.float32),
        f"{mark}:zero": product.zero.reshape(()),
        f"{mark}:weight": product.rounded,
    }
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    rounding = [f"{mark}:scale", f"{mark}:zero"]
    twin = onnx.NodeProto()
    twin.CopyFrom(node)
    twin.name = f"{mark}:twin"
    twin.input[0], twin.input[1] = f"{mark}:data", f"{mark}:weight"
    twin.output[0] = f"{mark}:out"
    graph.node.extend(
        [
            helper.make_node("QuantizeLinear", [node.input[0], *rounding], [f"{mark}:int8"]),
            helper.make_node("DequantizeLinear", [f"{mark}:int8", *rounding], [f"{mark}:data"]),
            twin,
            helper.make_node("Sub", [f"{mark}:out", node.output[0]], [f"{mark}:error"]),
            helper.make_node("Mul", [node.output[0], node.output[0]], [f"{mark}:square"]),
        ]
    )
    means: list[str] = []
    for name in (f"{mark}:error", f"{mark}:square"):
        means.append(f"{mark}:mean:{len(means)}")
        axes = [0]
        if node.op_type == "MatMul":  # the last axis is the channel's
            graph.node.append(helper.make_node("Flatten", [name], [f"{means[-1]}:rows"], axis=-1))
            name = f"{means[-1]}:rows"
        elif node.op_type != "Gemm":
            axes += range(2, product.weight.ndim)
        if opset >= 18:
            graph.initializer.append(numpy_helper.from_array(np.array(axes, np.int64), f"{means[-1]}:axes"))
            mean = helper.make_node("ReduceMean", [name, f"{means[-1]}:axes"], [means[-1]], keepdims=0)
        else:
            mean = helper.make_node("ReduceMean", [name], [means[-1]], axes=axes, keepdims=0)
        graph.node.append(mean)
    return means


def _subtract(graph: onnx.GraphProto, node: onnx.NodeProto, place: int, index: Index, shift: Array) -> None:
    old = index.value(node.input[place] if len(node.input) > place else "")
    new = (np.zeros(len(shift)) if old is None else old.astype(np.float64).reshape(-1)) - shift
    # A new name: another operator may read the same bias.
    graph.initializer.append(numpy_helper.from_array(new.astype(np.float32), f"{node.name}:bias"))
    node.input[:] = [*node.input[:place], f"{node.name}:bias", *node.input[place + 1 :]]
