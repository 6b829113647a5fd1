"""The sizes of an ONNX file: shapes at a batch, parameters, multiply-adds, bytes, and operators in float.

`optimized` returns ONNX Runtime's graph after its optimizations. Only this shows whether a network runs in
INT8: a file with QuantizeLinear nodes may still run every convolution in float.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from .external_data import for_inference
from .graph import QUANTIZED, WEIGHTED, Index, attribute_of, load
from .walk import all_graphs, bodies

FLOAT_KERNELS = ("Conv", "FusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul", "FusedMatMul")
_RECURRENT_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


@dataclass(frozen=True)
class Shapes:
    """Known shapes and bytes per element of tensors, by name."""

    sizes: Mapping[str, tuple[int, ...]]
    items: Mapping[str, float]
    unknown: frozenset[str]

    @classmethod
    def of(cls, model: onnx.ModelProto, batch: int, given: Mapping[str, Sequence[int]] = {}) -> Shapes:
        """The shapes of a model when the dynamic first axes of its inputs have this size.

        Args:
            given: whole shapes of inputs, by name.
        """
        fixed = for_inference(model)  # only the shapes of weights are needed
        del fixed.graph.value_info[:]  # they may contain the dynamic batch
        constants = {tensor.name for tensor in model.graph.initializer}
        for domain in {node.domain for node in fixed.graph.node} - {
            each.domain for each in fixed.opset_import
        }:
            fixed.opset_import.append(onnx.helper.make_opsetid(domain, 1))  # otherwise nothing is inferred
        for value in fixed.graph.output:
            value.type.tensor_type.ClearField("shape")
        for value in fixed.graph.input:
            axes = value.type.tensor_type.shape.dim
            if value.name in given:
                for axis, size in zip(axes, given[value.name], strict=True):
                    axis.dim_value = size
            elif value.name not in constants and axes and not axes[0].HasField("dim_value"):
                axes[0].dim_value = batch
        try:
            found = onnx.shape_inference.infer_shapes(fixed, data_prop=True).graph
        except onnx.shape_inference.InferenceError:
            found = fixed.graph  # it is contradictory: only explicit shapes are known
        sizes, items = {}, {}
        for value in (*found.value_info, *found.input, *found.output):
            if value.name in constants:
                continue
            tensor = value.type.tensor_type
            if tensor.elem_type:
                items[value.name] = item_bytes(tensor.elem_type)
            if tensor.HasField("shape") and all(axis.HasField("dim_value") for axis in tensor.shape.dim):
                sizes[value.name] = tuple(axis.dim_value for axis in tensor.shape.dim)
        made = {name for node in fixed.graph.node for name in node.output if name}
        inputs = {value.name for value in fixed.graph.input}
        # What the bodies of branches and loops hold meanwhile is not known.
        inner = {node.output[0] for node in fixed.graph.node if any(body.node for body in bodies(node))}
        return cls(sizes, items, frozenset((made | inputs) - constants - set(sizes)) | inner)

    def elements(self, name: str) -> int:
        """The number of elements; 0 where the shape is unknown, so as not to raise a lower bound."""
        return math.prod(self.sizes[name]) if name in self.sizes else 0

    def bytes(self, name: str) -> int:
        """As `elements`, in bytes."""
        return math.ceil(self.elements(name) * self.items.get(name, 4))


def living(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The nodes that an output depends on."""
    wanted = {value.name for value in graph.output}
    living = []
    for node in reversed(graph.node):
        if wanted.intersection(node.output):
            living.append(node)
            for inner in all_graphs(onnx.GraphProto(node=[node])):
                wanted.update(name for each in inner.node for name in each.input)
    return living[::-1]


def item_bytes(kind: int) -> float:
    """Bytes of one element."""
    name = onnx.TensorProto.DataType.Name(kind)
    if name.endswith("INT4") or "FLOAT4" in name:
        return 0.5
    if name.endswith("INT2"):
        return 0.25
    return 1.0 if "FLOAT8" in name else float(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind)).itemsize)


def bytes_of(tensor: onnx.TensorProto) -> int:
    """Bytes of a constant."""
    size: float = math.prod(tensor.dims) * item_bytes(tensor.data_type)
    return math.ceil(size)


@dataclass(frozen=True)
class Counts:
    """The sizes of a network.

    Attributes:
        macs: multiply-adds at batch 1; None where the shapes of a layer are not fixed.
        file_bytes: with external weights.
    """

    parameters: int
    macs: int | None
    file_bytes: int


def count(path: Path, *, sizes: Mapping[str, Sequence[int]] | None = None) -> Counts:
    """Counts the parameters of an ONNX file and the multiply-adds of one sample.

    Parameters are the values of weights and biases, float or int8, each counted once; scales and zero points
    are not. A folded batch norm counts as the resulting bias.
    Multiply-adds are those of convolutions, matrix products and recurrent layers.

    Args:
        sizes: the shape of an example by input, for dynamic axes other than the batch.
    """
    loaded = load(path)
    model = loaded.proto
    for value in model.graph.input:
        axes = value.type.tensor_type.shape.dim
        for axis, size in list(zip(axes, (sizes or {}).get(value.name, ()), strict=False))[1:]:
            if not axis.HasField("dim_value"):
                axis.dim_value = size
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    shapes |= Shapes.of(model, 1).sizes
    macs = [_macs(node, shapes) for node in model.graph.node]
    total = None if None in macs else sum(filter(None, macs))
    return Counts(_parameters(model.graph), total, loaded.file_bytes)


def _parameters(graph: onnx.GraphProto) -> int:
    not_weights = {name for node in graph.node if node.op_type in QUANTIZED for name in node.input[1:]}
    dequantized = {node.input[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    kinds = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
    return sum(
        math.prod(tensor.dims)
        for tensor in graph.initializer
        if tensor.dims
        and tensor.name not in not_weights
        and (tensor.data_type in kinds or tensor.name in dequantized)
    )


def _macs(node: onnx.NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """The multiply-adds of a node; None where its shapes are not known."""
    if node.op_type not in WEIGHTED and node.op_type not in _RECURRENT_GATES:
        return 0
    wanted = [*node.input[:2], *(node.output[:1] if node.op_type in WEIGHTED else ())]
    if any(name not in shapes for name in wanted):
        return None
    first, weight = shapes[node.input[0]], shapes[node.input[1]]
    if node.op_type in _RECURRENT_GATES:  # x [sequence, batch, in], w [directions, gates * hidden, in]
        hidden = weight[1] // _RECURRENT_GATES[node.op_type]
        return first[0] * first[1] * weight[0] * weight[1] * (weight[2] + hidden)
    out = shapes[node.output[0]]
    if node.op_type == "Conv":  # each output number reads one filter, [out, in/groups, ...]
        return math.prod(out) * math.prod(weight[1:])
    if node.op_type == "ConvTranspose":  # each input number is spread by one filter, [in, out/groups, ...]
        return math.prod(first) * math.prod(weight[1:])
    inner = first[0] if node.op_type == "Gemm" and attribute_of(node, "transA", 0) else first[-1]
    return math.prod(out) * inner


def float_kernels(optimized: onnx.ModelProto) -> list[str]:
    """The nodes of an optimized graph with an int8 kernel that run in float; empty where all run in INT8."""
    index = Index.of(optimized.graph)
    return [
        node.name or node.output[0]
        for node in optimized.graph.node
        if node.op_type in FLOAT_KERNELS and index.computed(node)
    ]


def read_optimized(path: Path) -> onnx.ModelProto:
    """A graph that ONNX Runtime wrote after its optimizations, without external weights."""
    return onnx.load(path, load_external_data=False)
