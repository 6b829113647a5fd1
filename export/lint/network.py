"""The network of the rules (an ONNX graph with its Q/DQ pairs, and the same graph without them) and findings.

Most rules about placement need the float network (which operators fuse, which tensors are concatenated) and
the positions of the pairs. So both are made once; the float one is that of `placement`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import onnx
from onnx import TensorProto

from ...targets.errors import ModelError
from ..onnx_graph.external_data import for_inference, whole_copy
from ..onnx_graph.graph import QUANTIZED, WEIGHTED, Array, Index, lift_constants, opset_of
from ..onnx_graph.walk import all_graphs
from ..quantization.placement import MOVES

Shape = tuple[int | None, ...]
STANDARD = ("", "ai.onnx")  # the domain of ONNX's own operators


Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """One fault of one node, and the cure.

    Attributes:
        rule: the rule's number.
        severity: "error" where TensorRT refuses the file, "warning" where it runs slowly, else "note".
        node: the node's name; "the file" for a fault of no node.
        what: what is wrong and why, with the values.
        cure: what to do; equal for equal faults, so that they can be grouped.
    """

    rule: int
    severity: Severity
    node: str
    what: str
    cure: str


@dataclass(frozen=True)
class Network:
    """An ONNX file, read for the rules.

    Attributes:
        model, index: the graph as it is, constants as initializers.
        opset: of the standard operators.
        shapes, types: of each tensor that inference knows; a dynamic axis is None; types are TensorProto's.
        plain, plain_index: the graph without QuantizeLinear and DequantizeLinear.
        nodes: the nodes of the graph by their position in `plain`.
        rounded: the tensors with dequantized values: outputs of DequantizeLinear, moved or concatenated.
        int8: positions in `plain` of the weighted operators with two rounded factors.
    """

    model: onnx.ModelProto
    index: Index
    opset: int
    shapes: Mapping[str, Shape]
    types: Mapping[str, int]
    plain: onnx.GraphProto
    plain_index: Index
    nodes: tuple[onnx.NodeProto, ...]
    rounded: frozenset[str]
    int8: frozenset[int]

    def every_node(self) -> Iterator[onnx.NodeProto]:
        """All nodes, including those in the bodies of If, Loop and Scan."""
        for graph in all_graphs(self.model.graph):
            yield from graph.node

    def quantizers(self) -> Iterator[onnx.NodeProto]:
        """The QuantizeLinear and DequantizeLinear nodes of the main graph."""
        return (node for node in self.model.graph.node if node.op_type in QUANTIZED)

    def weight(self, node: onnx.NodeProto) -> onnx.TensorProto | None:
        """The constant input of a QuantizeLinear or DequantizeLinear; None for an activation."""
        name = node.input[0]
        maker = self.index.producer.get(name)
        if maker is not None and maker.op_type == "QuantizeLinear" and node.op_type == "DequantizeLinear":
            name = maker.input[0]
        return self.index.constants.get(name)

    def constant(self, node: onnx.NodeProto, place: int) -> Array | None:
        """The constant at an input of a node; None where that input is computed or missing."""
        return self.index.value(node.input[place]) if len(node.input) > place and node.input[place] else None

    def readers(self, name: str) -> Iterator[onnx.NodeProto]:
        """The nodes that read a tensor."""
        return (node for node, _ in self.index.readers.get(name, ()))


def network_of(model: onnx.ModelProto) -> Network:
    """The network of a model, Constant nodes as initializers; a ModelError if an operator lacks inputs."""
    opset = opset_of(model)
    if any(node.op_type == "Constant" for graph in all_graphs(model.graph) for node in graph.node):
        model = whole_copy(model)
    for graph in all_graphs(model.graph):
        lift_constants(graph)
        for node in graph.node:
            _check_whole(node, opset)
    index = Index.of(model.graph)
    inner = {tensor.name: tensor for graph in all_graphs(model.graph) for tensor in graph.initializer}
    index = replace(index, constants={**inner, **index.constants})
    shapes, types = _inferred(model)
    nodes = tuple(node for node in model.graph.node if node.op_type not in QUANTIZED)
    plain = _without_roundings(model.graph, index)
    rounded = _rounded(model.graph)
    int8 = {
        position
        for position, node in enumerate(nodes)
        if node.op_type in WEIGHTED and all(name in rounded for name in node.input[:2])
    }
    return Network(
        model, index, opset, shapes, types, plain, Index.of(plain), nodes, frozenset(rounded), frozenset(int8)
    )


def _check_whole(node: onnx.NodeProto, opset: int) -> None:
    # Checked here, so that no rule has to.
    try:
        least = onnx.defs.get_schema(node.op_type, opset, "").min_input
    except onnx.defs.SchemaError:
        return
    if node.domain in STANDARD and (len(node.input) < least or not any(node.output)):
        raise ModelError(
            f"{node.op_type} {label(node)!r} has {len(node.input)} inputs and {len(node.output)} outputs; "
            f"ONNX requires {least} and 1.",
            "The file is damaged. Export or copy it again.",
        )


def type_name(kind: int) -> str:
    """ONNX's name of an element type, e.g. FLOAT."""
    try:
        return str(TensorProto.DataType.Name(kind))
    except ValueError:
        return f"type {kind}"


def label(node: onnx.NodeProto) -> str:
    """A name for a node; those in the body of a loop may have none."""
    return node.name or next(iter(node.output), "") or node.op_type


def _inferred(model: onnx.ModelProto) -> tuple[dict[str, Shape], dict[str, int]]:
    light = for_inference(model)  # weights may take gigabytes, and only their shape is needed
    try:
        graph = onnx.shape_inference.infer_shapes(light, data_prop=True).graph
    except Exception:  # Its errors have no public base class; then shapes are unknown.
        graph = light.graph
    shapes: dict[str, Shape] = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    types: dict[str, int] = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        found = value.type.tensor_type
        if found.elem_type != TensorProto.UNDEFINED:
            types.setdefault(value.name, found.elem_type)
        if found.HasField("shape"):
            axes = (axis.dim_value if axis.HasField("dim_value") else None for axis in found.shape.dim)
            shapes.setdefault(value.name, tuple(axes))
    return shapes, types


def _without_roundings(graph: onnx.GraphProto, index: Index) -> onnx.GraphProto:
    before: dict[str, str] = {}
    for node in graph.node:
        if node.op_type in QUANTIZED and node.input:
            for name in node.output:
                before[name] = before.get(node.input[0], node.input[0])
    plain = onnx.GraphProto(name=graph.name, input=graph.input)
    for tensor in index.constants.values():  # only their shapes are needed
        plain.initializer.add(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    for node in graph.node:
        if node.op_type not in QUANTIZED:
            copy = plain.node.add()
            copy.CopyFrom(node)
            copy.input[:] = [before.get(name, name) for name in node.input]
    for value in graph.output:
        plain.output.add(name=before.get(value.name, value.name))
    return plain


def _rounded(graph: onnx.GraphProto) -> set[str]:
    rounded: set[str] = set()
    for node in graph.node:
        moved = node.op_type in (*MOVES, "Resize", "Identity", "Split") and node.input[:1]
        joined = node.op_type == "Concat" and node.input
        if node.op_type == "DequantizeLinear" or all(name in rounded for name in moved or joined or [""]):
            rounded.update(name for name in node.output if name)
    return rounded
