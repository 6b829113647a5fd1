"""What exporters really write, in one form: open sizes, true shapes, names, and constants in one place.

A part of `graph.load`. What the model computes is the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import (
    AttributeProto,
    GraphProto,
    NodeProto,
    SparseTensorProto,
    TensorProto,
    ValueInfoProto,
    numpy_helper,
)

from ...targets.errors import ModelError
from .external_data import INLINE_BYTES, SMALL, for_inference
from .walk import all_graphs, all_names, bodies, name_nodes, unique

STANDARD = ("", "ai.onnx", "ai.onnx.ml")


def normalise(model: onnx.ModelProto) -> None:
    """Changes a model as it was read.

    - A size below 0, which older converters write for "unknown", is open.
    - Sparse constants are dense, and nodes without outputs are dropped.
    - Large constants in the bodies of If, Loop and Scan become the graph's, where weights are looked for.
    - Every node has a name of its own.
    - Stored shapes that contradict the sizes of the inputs are dropped: somebody edited those.

    Raises:
        ModelError: a name is no text; a constant or an input has a type that this version of onnx does not
            know; an attribute has no value; a sparse constant is damaged or too large.
    """
    if not all(isinstance(text, str) for text in _texts(model)):  # protobuf gives what is not UTF-8 as bytes
        raise ModelError("A name in the file is not UTF-8 text.", "Export or copy the file again.")
    _refuse_unknown_types(model.graph)
    for graph in all_graphs(model.graph):
        for node in graph.node:
            _refuse_attributes_without_value(node)
        for value in (*graph.input, *graph.output, *graph.value_info):
            _open_negative(value)
        for at in reversed([at for at, node in enumerate(graph.node) if not any(node.output)]):
            del graph.node[at]
        _densify(graph)
    _lift(model.graph, model.graph, all_names(model.graph))
    name_nodes(model.graph)
    _correct_shapes(model)


def _texts(model: onnx.ModelProto) -> Iterator[object]:
    """The text of a model: its own, and all names."""
    for message in (model, model.graph):
        yield from (value for field, value in message.ListFields() if field.type == field.TYPE_STRING)
    for graph in all_graphs(model.graph):
        for node in graph.node:
            yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
            yield from (attribute.name for attribute in node.attribute)
        for value in (*graph.input, *graph.output, *graph.value_info):
            yield from (value.name, *(axis.dim_param for axis in value.type.tensor_type.shape.dim))
        yield from (tensor.name for tensor in graph.initializer)


def _refuse_unknown_types(graph: GraphProto) -> None:
    known = set(TensorProto.DataType.values()) - {TensorProto.UNDEFINED}
    for inner in all_graphs(graph):
        made = [attribute.t for node in inner.node for attribute in node.attribute if attribute.HasField("t")]
        for tensor in (*inner.initializer, *made):
            if tensor.data_type not in known:
                raise _untyped(f"The constant {tensor.name!r}", tensor.data_type)
        for value in (*inner.input, *inner.output, *inner.value_info):
            kind = value.type.tensor_type if value.type.HasField("tensor_type") else None
            if kind is not None and kind.elem_type not in known:
                if inner is graph and value in graph.input:
                    raise _untyped(f"The input {value.name!r}", kind.elem_type)
                kind.ClearField("elem_type")  # it follows from the nodes


def _refuse_attributes_without_value(node: NodeProto) -> None:
    for attribute in node.attribute:
        if attribute.ref_attr_name or attribute.type == AttributeProto.UNDEFINED:
            raise ModelError(
                f"The node {node.name or node.op_type!r} has no value for its attribute {attribute.name!r}.",
                "Export or copy the file again; only inside a function may it refer to the function's own.",
            )


def _untyped(what: str, number: int) -> ModelError:
    return ModelError(
        f"{what} has the data type {number}, which onnx {onnx.__version__} does not know.",
        "Export or copy the file again; for a newer type install a newer onnx.",
    )


def _open_negative(value: ValueInfoProto) -> None:
    for axis in value.type.tensor_type.shape.dim if value.type.HasField("tensor_type") else ():
        if axis.dim_value < 0:
            axis.ClearField("dim_value")


def _densify(graph: GraphProto) -> None:
    graph.initializer.extend(_dense(sparse, sparse.values.name) for sparse in graph.sparse_initializer)
    del graph.sparse_initializer[:]
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("sparse_tensor"):
                dense = _dense(attribute.sparse_tensor, node.output[0])
                attribute.CopyFrom(onnx.helper.make_attribute("value", dense))


def _dense(sparse: SparseTensorProto, name: str) -> TensorProto:
    """The same tensor with its zeros. Its indices are places, or a row of coordinates for each value."""
    shape, size = tuple(sparse.dims), math.prod(sparse.dims)
    cure = "Store it dense, or export the file again."
    if min(shape, default=0) < 0 or 8 * size > INLINE_BYTES:
        raise ModelError(f"The sparse constant {name!r} has the shape {list(shape)}.", cure)
    try:
        values, at = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
        full = np.zeros(size, values.dtype)
        full[at if at.ndim == 1 else np.ravel_multi_index(tuple(at.T), shape)] = values
    except (ValueError, IndexError, TypeError) as error:
        raise ModelError(f"The sparse constant {name!r} is damaged: {error}.", cure) from error
    return numpy_helper.from_array(full.reshape(shape), name)


def _lift(graph: GraphProto, to: GraphProto, used: set[str]) -> None:
    """Moves the large constants of a graph's bodies; a body's own output has to stay in it."""
    for node in graph.node:
        for body in bodies(node):
            _lift(body, to, used)
            stay = {value.name for value in (*body.input, *body.output)}
            large = [
                tensor
                for tensor in body.initializer
                if math.prod(tensor.dims) > SMALL and tensor.name not in stay
            ]
            new = {tensor.name: unique(f"{node.output[0]}/{tensor.name}", used) for tensor in large}
            for tensor in large:
                to.initializer.append(tensor)
                to.initializer[-1].name = new[tensor.name]
                body.initializer.remove(tensor)
            for inner in all_graphs(body):
                for one in inner.node:
                    one.input[:] = [new.get(name, name) for name in one.input]


def _correct_shapes(model: onnx.ModelProto) -> None:
    """Drops stored shapes that contradict the inputs', and gives outputs the sizes that follow from those."""
    light = for_inference(model)
    made = {name for node in model.graph.node if node.domain in STANDARD for name in node.output}
    kept = [value for value in model.graph.value_info if value.name not in made]
    del light.graph.value_info[:]
    light.graph.value_info.extend(kept)
    for value in light.graph.output:
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.ClearField("shape")
    try:
        found = onnx.shape_inference.infer_shapes(light).graph
    except onnx.shape_inference.InferenceError:  # damaged: the runtime names the fault
        return
    inferred = {value.name: value.type.tensor_type.shape.dim for value in (*found.value_info, *found.output)}
    stored = (*model.graph.value_info, *model.graph.output)
    wrong = [
        pair
        for value in stored
        if value.type.HasField("tensor_type")
        for pair in _contradicting(value.type.tensor_type.shape.dim, inferred.get(value.name, ()))
    ]
    for own, other in wrong:
        own.CopyFrom(other)
    if wrong:
        del model.graph.value_info[:]
        model.graph.value_info.extend(kept)


def _contradicting(stored: Sequence[Any], inferred: Sequence[Any]) -> list[tuple[Any, Any]]:
    """The sizes, as stored and as inferred, that are known and differ."""
    if len(stored) != len(inferred):
        return []
    pairs = zip(stored, inferred, strict=True)
    known = ((own, other) for own, other in pairs if own.HasField("dim_value") and other.WhichOneof("value"))
    return [(own, other) for own, other in known if own.dim_value != other.dim_value]
