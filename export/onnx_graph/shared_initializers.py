"""Merging of equal initializers, so that shared weights are stored once.

torch's exporter writes a tied weight once, and a simplifier merges large equal ones; without a simplifier,
and in files of other exporters, they remain twice. Equal means the same bits, type and shape, so the network
computes the same.
"""

from __future__ import annotations

import onnx

from .walk import all_graphs


def merge_initializers(model: onnx.ModelProto) -> tuple[dict[str, str], int]:
    """Makes readers of equal initializers read the first of them, in place; returns the removed ones and
    bytes.

    An initializer that is also an input or an output of the graph remains; so do all those whose name is also
    used in an inner graph (of If, Loop, Scan).
    """
    graph = model.graph
    fixed = {value.name for value in (*graph.input, *graph.output)}
    for inner in list(all_graphs(graph))[1:]:
        fixed |= {tensor.name for tensor in inner.initializer} | {value.name for value in inner.input}
        fixed |= {name for node in inner.node for name in node.output}
        fixed |= {value.name for value in inner.output}
    kept: dict[bytes, str] = {}
    replaced: dict[str, str] = {}
    saved_bytes = 0
    for tensor in graph.initializer:
        if tensor.name in fixed:
            continue
        first = kept.setdefault(_content(tensor), tensor.name)
        if first != tensor.name:
            replaced[tensor.name] = first
            saved_bytes += tensor.ByteSize()
    if replaced:
        for inner in all_graphs(graph):
            for node in inner.node:
                node.input[:] = [replaced.get(name, name) for name in node.input]
        left = [tensor for tensor in graph.initializer if tensor.name not in replaced]
        copies = onnx.GraphProto(initializer=left).initializer
        del graph.initializer[:]
        graph.initializer.extend(copies)
    return replaced, saved_bytes


def _content(tensor: onnx.TensorProto) -> bytes:
    """Type, shape and values, without the name."""
    bare = onnx.TensorProto()
    bare.CopyFrom(tensor)
    for field in ("name", "doc_string"):
        bare.ClearField(field)
    return bytes(bare.SerializeToString(deterministic=True))
