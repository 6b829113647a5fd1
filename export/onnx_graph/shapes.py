"""The shapes and bytes of every tensor of an ONNX graph at a batch, and its live nodes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from .external_data import for_inference
from .walk import all_graphs, bodies


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
