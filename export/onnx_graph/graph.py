"""The ONNX model as a value: the graph, producers and readers of tensors, constants and types.

ONNX files are from users, so every reader uses `load`, which turns a truncated, foreign or oversized file
into an error with a cure. A step takes an `OnnxModel`, does not change it, and returns another one. The other
functions are shared by export, calibration and quantization.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
from onnx import numpy_helper

from ...targets.artifact import writing
from ...targets.errors import ArtifactError, ModelError, reported
from ...targets.onnx_file import damage
from .as_exported import normalise
from .external_data import array_of, drop_weights, fits, for_inference, read_apart, whole_copy, write_apart
from .walk import all_graphs

Array = np.ndarray[Any, Any]

MAXIMUM_BYTES = 2**31 - 1  # protobuf's limit of a message
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
QUANTIZED = ("QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True)
class Index:
    """The graph's edges. `readers` has (node, input position), in the order of the file, then those in the
    bodies of branches and loops."""

    producer: Mapping[str, onnx.NodeProto]
    readers: Mapping[str, tuple[tuple[onnx.NodeProto, int], ...]]
    constants: Mapping[str, onnx.TensorProto]
    outputs: frozenset[str]

    @classmethod
    def of(cls, graph: onnx.GraphProto) -> Index:
        readers: dict[str, list[tuple[onnx.NodeProto, int]]] = defaultdict(list)
        for inner in all_graphs(graph):
            for node in inner.node:
                for position, name in enumerate(node.input):
                    readers[name].append((node, position))
        return cls(
            {name: node for node in graph.node for name in node.output if name},
            {name: tuple(nodes) for name, nodes in readers.items()},
            {tensor.name: tensor for tensor in graph.initializer},
            frozenset(value.name for value in graph.output),
        )

    def value(self, name: str) -> Array | None:
        """The constant `name`, None when it is computed; a ModelError if its data do not fit its shape."""
        return array_of(self.constants[name]) if name in self.constants else None

    def computed(self, node: onnx.NodeProto) -> list[str]:
        """The inputs of `node` that depend on the network's input."""
        return [name for name in node.input if name and name not in self.constants]

    def read_only_by(self, name: str, operators: tuple[str, ...]) -> onnx.NodeProto | None:
        """The single reader of a tensor, if it is one of `operators` and the tensor is not an output."""
        readers = self.readers.get(name, ())
        if len(readers) == 1 and name not in self.outputs and readers[0][0].op_type in operators:
            return readers[0][0]
        return None


@dataclass(frozen=True, eq=False)
class OnnxModel:
    """A model; its index and types are computed on first use, once.

    Attributes:
        proto: shared, so it must not be changed: a step changes a copy.
        path: the file from which it was read or derived, for messages.
        file_bytes: of that file and its external weights.
    """

    proto: onnx.ModelProto
    path: Path
    file_bytes: int = 0

    @property
    def graph(self) -> onnx.GraphProto:
        """The graph of `proto`."""
        return self.proto.graph

    @cached_property
    def index(self) -> Index:
        """The edges of the graph."""
        return Index.of(self.graph)

    @cached_property
    def types(self) -> Mapping[str, onnx.TypeProto.Tensor]:
        """See `tensor_types`."""
        return tensor_types(self.proto)

    def copy(self) -> OnnxModel:
        """A model whose `proto` the caller may change, before its index or types are used."""
        return self.derived(whole_copy(self.proto))

    def derived(self, proto: onnx.ModelProto) -> OnnxModel:
        """The result of a step on this model."""
        return OnnxModel(proto, self.path)

    def not_float32(self) -> frozenset[str]:
        """The tensors, without constants, of which inference knows another type than float32."""
        other = (onnx.TensorProto.UNDEFINED, onnx.TensorProto.FLOAT)
        return frozenset(name for name, kind in self.types.items() if kind.elem_type not in other)

    def float_names(self) -> list[str]:
        """The float32 tensors that nodes compute and whose type inference knows, in the order of the graph.

        In quantized graphs this leaves out the integers.
        """
        made = [name for node in self.graph.node for name in node.output if name in self.types]
        return [name for name in made if self.types[name].elem_type == onnx.TensorProto.FLOAT]


def load(path: Path) -> OnnxModel:
    """Loads an ONNX model: local functions are inlined, and see `as_exported.normalise`.

    Raises:
        ArtifactError: the file or its external weights are missing, truncated, empty or not ONNX.
        ModelError: it is larger than 2 GB, without external weights; a sparse constant is damaged.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        model = onnx.load(path, load_external_data=False) if size <= MAXIMUM_BYTES else None
    except OSError as error:
        raise ArtifactError(
            f"{path} cannot be read: {error.strerror or error}.", "Check the path."
        ) from error
    except Exception as error:  # protobuf's errors have no public base class
        raise ArtifactError(*damage(path)) from error
    if model is None:
        raise ModelError(
            f"{path} has {size / 2**30:.1f} GB; an ONNX file has at most 2 GB.",
            "Save it with external weights (onnx.save with save_as_external_data=True).",
        )
    if model.functions:  # layers in the body of a function would be missed
        what = f"{path} has functions that do not fit their calls"
        unfit = (RuntimeError, ValueError, onnx.checker.ValidationError)
        with reported(ArtifactError, what, "Export it again.", *unfit):
            model = onnx.inliner.inline_local_functions(model)
    size += sum(file.stat().st_size for file in read_apart(model, path))
    if not model.graph.node or not model.graph.output:
        raise ArtifactError(
            f"{path} has no graph ({size} bytes): it is empty or truncated.", "Export or copy it again."
        )
    with reported(ModelError, f"{path} has sizes that no memory holds", "Export it again.", MemoryError):
        normalise(model)
    return OnnxModel(model, path, size)


def lift_constants(graph: onnx.GraphProto) -> None:
    """Replaces Constant nodes by initializers, since other exporters write weights as such nodes.

    Sparse constants and strings remain nodes.
    """
    kept = []
    for node in graph.node:
        value = _constant(node) if node.op_type == "Constant" else None
        if value is None:
            kept.append(node)
            continue
        value.name = node.output[0]
        graph.initializer.append(value)
    replace_nodes(graph, kept)


def _constant(node: onnx.NodeProto) -> onnx.TensorProto | None:
    types = {"float": np.float32, "floats": np.float32, "int": np.int64, "ints": np.int64}
    for attribute in node.attribute:
        if attribute.name == "value":
            value: onnx.TensorProto = attribute.t
            return value
        kind = types.get(attribute.name.removeprefix("value_"))
        if kind is not None:
            return numpy_helper.from_array(np.asarray(onnx.helper.get_attribute_value(attribute), kind))
    return None


def save(model: onnx.ModelProto, path: Path) -> int:
    """Checks the model and writes it, whole or not at all; returns the bytes. Equal models are equal bytes.

    Weights of more than 2 GB go into an external file (external_data.py).

    Raises:
        ModelError: the model breaks ONNX's rules.
    """
    whole = fits(model)
    try:
        onnx.checker.check_model(model if whole else for_inference(model), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        message = str(error).strip().splitlines()[0]
        raise ModelError(
            f"The graph for {path} breaks ONNX's rules: {message}",
            "Check that the network runs at batch 1 and 2; if it does, report this with the network.",
        ) from error
    if not whole:
        return write_apart(model, path)
    with writing(path) as beside:
        size = beside.write_bytes(model.SerializeToString(deterministic=True))
    drop_weights(Path(path))
    return size


def attribute_of(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    """An attribute's value, or `default` when the node does not set it."""
    for attribute in node.attribute:
        if attribute.name == name:
            return onnx.helper.get_attribute_value(attribute)
    return default


def opset_of(model: onnx.ModelProto) -> int:
    """The model's opset of ONNX's standard operators; 1 if missing."""
    return next((int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 1)


def given_inputs(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    """The model's inputs, without initializers."""
    constants = {tensor.name for tensor in graph.initializer}
    return [value for value in graph.input if value.name not in constants]


def number_outputs(graph: onnx.GraphProto) -> list[str]:
    """The names of the outputs that are tensors of numbers: no text, no sequence, no map."""
    tensors = [value for value in graph.output if value.type.HasField("tensor_type")]
    return [one.name for one in tensors if one.type.tensor_type.elem_type != onnx.TensorProto.STRING]


def tensor_types(model: onnx.ModelProto) -> dict[str, onnx.TypeProto.Tensor]:
    """Element type and shape of the tensors that are not constants, as far as inference knows them."""
    inferred = onnx.shape_inference.infer_shapes(for_inference(model)).graph
    given = [value.name for value in model.graph.input]
    constants = {tensor.name for tensor in model.graph.initializer}.difference(given)
    values = (*inferred.value_info, *inferred.input, *inferred.output)
    tensors = (value for value in values if value.type.HasField("tensor_type"))
    return {v.name: v.type.tensor_type for v in tensors if v.name not in constants}


def replace_nodes(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
    """Replaces the graph's nodes by `nodes`."""
    copies = onnx.GraphProto(node=nodes).node
    del graph.node[:]
    graph.node.extend(copies)


def drop_unused(graph: onnx.GraphProto) -> None:
    """Removes constants that nothing reads, and orders the others by their first reader."""
    order: dict[str, int] = {}
    for inner in all_graphs(graph):
        for node in inner.node:
            for name in node.input:
                order.setdefault(name, len(order))
        for value in inner.output:
            order.setdefault(value.name, len(order))
    read = [tensor for tensor in graph.initializer if tensor.name in order]
    read.sort(key=lambda tensor: order[tensor.name])
    copies = onnx.GraphProto(initializer=read).initializer
    del graph.initializer[:]
    graph.initializer.extend(copies)
