"""The check of each single rounding in a Q/DQ file: stored weights and activations, with their float values.

Rounding to the nearest step has an error of at most half a step. A larger error is a fault: a transposed
weight, a wrong axis, a scale of another layer.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx

from ..onnx_graph.graph import Array, OnnxModel, attribute_of
from ..onnx_graph.kernels import is_by_channel
from ..onnx_graph.run import runner

# Limits of an activation's error, RMS as a share of its values. Methods that saturate on purpose clip up to
# 0.1; a scale too small by a factor of 2 clips far more. A tensor that shares the scale of a larger one may
# be rounded coarsely, but not to zero.
LARGEST_CUT = 0.25
LARGEST_NOISE = 0.9
HALF_A_STEP = 0.5 + 1e-3  # scales are float32


def first_bad_rounding(before: OnnxModel, after: OnnxModel, feeds: Mapping[str, Array]) -> str | None:
    """A sentence about the first wrong rounding; None if all are right.

    Args:
        before: the float model.
        after: the same model with QuantizeLinear / DequantizeLinear.
        feeds: a few samples.
    """
    return _bad_weight(before, after) or _bad_activation(after, feeds)


def _bad_weight(before: OnnxModel, after: OnnxModel) -> str | None:
    old, new = before.index, after.index
    originals = {node.name: node for node in before.graph.node}
    for node in after.graph.node:
        original = originals.get(node.name)
        if original is None:
            continue
        for place, name in enumerate(node.input):
            weight = old.value(original.input[place]) if place < len(original.input) else None
            maker = new.producer.get(name)
            if weight is None or maker is None or maker.op_type != "DequantizeLinear":
                continue
            integers, scale = new.value(maker.input[0]), new.value(maker.input[1])
            if integers is None or scale is None:
                continue
            if place == 2 and node.op_type == "Gemm" and is_by_channel(weight.shape) and integers.ndim == 1:
                weight = np.broadcast_to(weight.reshape(-1), integers.shape)
            where = f"the weight {original.input[place]!r} of {node.op_type} {node.name!r}"
            if integers.shape != weight.shape:
                return f"{where} has the shape {list(integers.shape)}, in float it is {list(weight.shape)}."
            steps = along(maker, scale, weight.ndim)
            if steps.size != 1 and np.broadcast_shapes(steps.shape, weight.shape) != weight.shape:
                return f"{where} has {scale.size} scales along axis {attribute_of(maker, 'axis', 1)}."
            off = np.abs(integers * steps.astype(np.float64) - weight)
            if (off > HALF_A_STEP * steps).any():
                worst = np.unravel_index(int(np.argmax(off / steps)), off.shape)
                return (
                    f"{where} is off by {float(off[worst]):.3g} at {[int(i) for i in worst]}, more than half "
                    f"of its step of {float(np.broadcast_to(steps, off.shape)[worst]):.3g}."
                )
    return None


def _bad_activation(after: OnnxModel, feeds: Mapping[str, Array]) -> str | None:
    index = after.index
    pairs = [
        (index.producer[node.input[0]].input[0], node)
        for node in after.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in index.producer
    ]
    tensors = dict.fromkeys(name for float_name, node in pairs for name in (float_name, node.output[0]))
    if not tensors:
        return None
    values = runner(after.proto, list(tensors), optimize=False)(feeds)
    for name, node in pairs:
        step = float(np.max(np.asarray(index.value(node.input[1]))))
        before = values[name].astype(np.float64)
        error = values[node.output[0]] - before
        signal = _root_mean_square(before)
        lost = _root_mean_square(np.where(np.abs(error) > HALF_A_STEP * step, error, 0.0))
        if lost > LARGEST_CUT * signal:
            return f"{name!r} is clipped at its range: {lost / signal:.2g} of it is lost."
        if _root_mean_square(error) > LARGEST_NOISE * signal:
            return f"{name!r} is rounded to zero: its step is {step:.3g}, its values are about {signal:.3g}."
    return None


def _root_mean_square(values: Array) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def along(dequantize: onnx.NodeProto, scale: Array, dimensions: int) -> Array:
    """The scales of a weight in a shape that broadcasts over its axes."""
    if not scale.ndim:
        return scale
    axis = int(attribute_of(dequantize, "axis", 1)) % dimensions
    return scale.reshape([-1 if place == axis else 1 for place in range(dimensions)])
