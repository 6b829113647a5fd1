"""The segments of a network: each weighted operator with what a runtime fuses behind it, as its own file.

A segment begins at a convolution or matrix product with constants and has everything that follows it, up to
the next one: activations, sums, norms, attention. What only unpacks a value for its readers (a constant's
operators, DequantizeLinear) belongs to each reader, as runtimes fuse it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import onnx

from .counts import Shapes
from .graph import WEIGHTED, Index, OnnxModel

_RECURRENT = ("LSTM", "GRU", "RNN")


@dataclass(frozen=True, eq=False)
class Segment:
    """A part of a network; `model` has its nodes, constants, and its borders as inputs and outputs."""

    name: str
    model: onnx.ModelProto

    def key(self) -> str:
        """A hash of its operators and sizes, without names and values: equal keys take equal time."""
        graph, seen = self.model.graph, dict[str, int]()
        words = [f"{opset.domain}{opset.version}" for opset in self.model.opset_import]
        for tensor in graph.initializer:
            words.append(f"{seen.setdefault(tensor.name, len(seen))}:{tensor.data_type}{list(tensor.dims)}")
        for value in graph.input:
            kind = value.type.tensor_type.SerializeToString()
            words.append(f"{seen.setdefault(value.name, len(seen))}:{kind.hex()}")
        for node in graph.node:
            names = [seen.setdefault(name, len(seen)) for name in (*node.input, *node.output)]
            settings = sorted(each.SerializeToString().hex() for each in node.attribute)
            words.append(f"{node.op_type}{names}{settings}")
        return hashlib.sha256("\n".join(words).encode()).hexdigest()[:20]


def segments(model: OnnxModel, *, batch: int = 1) -> list[Segment]:
    """The segments in the order of the graph; together they compute what the network computes."""
    index, order = model.index, list(model.graph.node)
    owner: dict[str, int] = {}  # by tensor, the place of the segment that makes it
    owned: dict[int, list[onnx.NodeProto]] = {}
    names: list[str] = []
    carried = [node for node in order if _is_carried(node, index)]
    unpacked = {name for node in carried for name in node.output}
    made_by = {name: node for node in carried for name in node.output}
    for node in order:
        if node.output and node.output[0] in unpacked:
            continue
        read = [owner.get(_source(name, made_by), 0) for name in index.computed(node)]
        if _is_anchor(node, index, unpacked):
            names.append(node.name or node.output[0])
            place = len(names) - 1
        else:
            place = max(read, default=0)
        owned.setdefault(place, []).append(node)
        owner.update(dict.fromkeys(node.output, place))
    sizes = Shapes.of(model.proto, batch)
    return [
        Segment(names[place] if names else "network", _cut_out(model, nodes, made_by, sizes))
        for place, nodes in sorted(owned.items())
    ]


def _is_anchor(node: onnx.NodeProto, index: Index, unpacked: set[str]) -> bool:
    constant = any(name in index.constants or name in unpacked for name in node.input[1:])
    return node.op_type in _RECURRENT or (node.op_type in WEIGHTED and constant)


def _is_carried(node: onnx.NodeProto, index: Index) -> bool:
    """Whether it belongs to its readers: DequantizeLinear, or an operator on constants alone."""
    return node.op_type == "DequantizeLinear" or (bool(node.input) and not index.computed(node))


def _source(name: str, made_by: Mapping[str, onnx.NodeProto]) -> str:
    while name in made_by:
        name = made_by[name].input[0]
    return name


def _cut_out(
    model: OnnxModel, nodes: list[onnx.NodeProto], made_by: Mapping[str, onnx.NodeProto], sizes: Shapes
) -> onnx.ModelProto:
    whole: list[onnx.NodeProto] = []
    present: set[str] = set()

    def take(node: onnx.NodeProto) -> None:
        for name in node.input:
            if name in made_by and name not in present:
                take(made_by[name])
        whole.append(node)
        present.update(node.output)

    for node in nodes:
        take(node)
    index, types = model.index, model.types
    read = dict.fromkeys(name for node in whole for name in node.input if name)
    inside = {id(node) for node in whole}
    borders = [name for name in read if name not in present and name not in index.constants]
    results = [name for node in nodes for name in node.output if _leaves(name, index, inside)]
    graph = onnx.helper.make_graph(
        whole,
        "segment",
        [onnx.helper.make_tensor_value_info(n, types[n].elem_type, sizes.sizes.get(n)) for n in borders],
        [onnx.helper.make_tensor_value_info(n, types[n].elem_type, sizes.sizes.get(n)) for n in results],
        [index.constants[name] for name in read if name in index.constants],
    )
    return onnx.helper.make_model(
        graph, opset_imports=model.proto.opset_import, ir_version=model.proto.ir_version
    )


def _leaves(name: str, index: Index, inside: set[int]) -> bool:
    """Whether a tensor is read outside of a segment with these nodes, or is an output of the network."""
    return name in index.outputs or any(id(reader) not in inside for reader, _ in index.readers.get(name, ()))
