"""Cross-layer equalization: scaling between neighbouring layers until their channels have equal ranges.

Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (ICCV 2019), section
4.1. A ReLU commutes with a positive factor, so a channel may be made smaller in one layer and larger in
the next without changing the network's function. Where one scale serves channels of very different size
(activations always, weights without per-channel scales) the small ones gain. ReLU6 does not commute and stops
it, as does a tensor with a second reader.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

from ..onnx_graph.float_input import as_float
from ..onnx_graph.graph import Array, Index, OnnxModel, attribute_of

PASSES_ON = ("Relu", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool")
SWEEPS = 40
SETTLED = 1e-3  # the largest change of a factor in the last sweep
LARGEST = 1e4  # of the product of a channel's factors, which is unbounded for a channel near 0


@dataclass
class _Layer:
    """A weighted operator; its weight as [outputs, inputs, rest], for any layout in the file."""

    node: onnx.NodeProto
    weight: Array
    bias: Array | None

    @property
    def groups(self) -> int:
        return int(attribute_of(self.node, "group", 1)) if self.node.op_type == "Conv" else 1

    def reach_of_outputs(self) -> Array:
        return np.asarray(np.abs(self.weight).max(axis=(1, 2)))

    def reach_of_inputs(self, channels: int) -> Array:
        return np.asarray(np.abs(self._by_input(channels)).max(axis=(1, 3)).reshape(-1))

    def scale_outputs(self, factor: Array) -> None:
        self.weight *= factor[:, None, None]
        if self.bias is not None:
            self.bias *= factor

    def scale_inputs(self, factor: Array) -> None:
        view = self._by_input(len(factor))
        view *= factor.reshape(self.groups, 1, -1, 1)

    def _by_input(self, channels: int) -> Array:
        # [groups, outputs of a group, input channels of a group, rest]; behind a Flatten a channel is a
        # block of columns.
        groups = self.groups
        return self.weight.reshape(groups, len(self.weight) // groups, channels // groups, -1)


def equalize(model: OnnxModel) -> tuple[OnnxModel, tuple[str, ...]]:
    """The network with its weights equalized; the class of this hop is "float".

    Returns:
        The network, and the pairs of layers, as "a -> b".

    Raises:
        ModelError: the model is quantized already.
    """
    model = as_float(model)
    layers = {layer.node.name: layer for layer in _layers(model.graph, model.index)}
    pairs = [(layers[a], layers[b]) for a, b in _pairs(model, layers)]
    if not pairs:
        return model, ()
    total = {first.node.name: np.ones(len(first.weight)) for first, _ in pairs}
    for _ in range(SWEEPS):
        moved = 0.0
        for first, second in pairs:
            # Equation 11: after it a channel has equal ranges in both layers. Dead channels are unchanged.
            one, two = first.reach_of_outputs(), second.reach_of_inputs(len(first.weight))
            alive = (one > 0) & (two > 0)
            factor = np.where(alive, np.sqrt(one / np.where(alive, two, 1.0)), 1.0)
            bounded = np.clip(total[first.node.name] * factor, 1 / LARGEST, LARGEST)
            factor = bounded / total[first.node.name]
            total[first.node.name] = bounded
            first.scale_outputs(1 / factor)
            second.scale_inputs(factor)
            moved = max(moved, float(np.abs(factor - 1).max()))
        if moved < SETTLED:
            break
    made = model.copy()
    _write_back(made.graph, [layer for pair in pairs for layer in pair])
    return made, tuple(f"{first.node.name} -> {second.node.name}" for first, second in pairs)


def _layers(graph: onnx.GraphProto, index: Index) -> Iterator[_Layer]:
    for node in graph.node:
        value = index.value(node.input[1]) if node.op_type in ("Conv", "Gemm") else None
        if value is None or value.dtype != np.float32 or attribute_of(node, "transA", 0):
            continue
        bias = index.value(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        computed = len(node.input) > 2 and node.input[2] and bias is None
        shared = any(len(index.readers[name]) > 1 for name in node.input[1:] if name)
        turned = node.op_type == "Gemm" and not attribute_of(node, "transB", 0)
        weight = (value.T if turned else value).astype(np.float64)
        if computed or shared or (bias is not None and bias.size != len(weight)):
            continue
        weight = np.array(weight.reshape(len(weight), weight.shape[1], -1), order="C")
        yield _Layer(node, weight, None if bias is None else bias.astype(np.float64).reshape(-1))


def _pairs(model: OnnxModel, layers: dict[str, _Layer]) -> Iterator[tuple[str, str]]:
    index, types = model.index, model.types
    sizes = {name: math.prod(axis.dim_value for axis in kind.shape.dim[1:]) for name, kind in types.items()}
    for node in model.graph.node:
        if node.name not in layers:
            continue
        flat, reached = node.op_type == "Gemm", node
        while True:
            follower = index.read_only_by(
                reached.output[0], (*PASSES_ON, "Flatten", "Reshape", "Conv", "Gemm")
            )
            if follower is None or reached.output[0] != follower.input[0]:
                break
            if follower.name in layers:
                channels = len(layers[node.name].weight)
                inputs = layers[follower.name].weight.shape[1] * layers[follower.name].groups
                whole = inputs == channels or (flat and inputs % channels == 0)
                if whole and (flat or follower.op_type == "Conv"):
                    yield node.name, follower.name
                break
            if follower.op_type not in PASSES_ON and not _flattens(follower, index, sizes):
                break
            flat = flat or follower.op_type not in PASSES_ON
            reached = follower


def _flattens(node: onnx.NodeProto, index: Index, sizes: dict[str, int]) -> bool:
    """Whether a node flattens each sample to a row with contiguous channels."""
    if node.op_type == "Flatten":
        return bool(attribute_of(node, "axis", 1) == 1)
    shape = index.value(node.input[1]) if node.op_type == "Reshape" else None
    return shape is not None and shape.size == 2 and int(shape[1]) in (-1, sizes.get(node.input[0]))


def _write_back(graph: onnx.GraphProto, layers: list[_Layer]) -> None:
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for layer in {layer.node.name: layer for layer in layers}.values():
        node, weight = layer.node, layer.weight
        if node.op_type == "Gemm":
            weight = weight[:, :, 0] if attribute_of(node, "transB", 0) else weight[:, :, 0].T
        values = [weight] if layer.bias is None else [weight, layer.bias]
        for name, value in zip(node.input[1:], values, strict=False):
            shaped = np.ascontiguousarray(value, np.float32).reshape(list(constants[name].dims))
            constants[name].CopyFrom(numpy_helper.from_array(shaped, name))
