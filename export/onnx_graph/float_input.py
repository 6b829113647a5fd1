"""The float input of quantization: a user's network in one normalized form.

Exporters write the same layer in many forms: with weights that are inputs too (before IR 4), behind an
Identity, Transpose or Cast, as a local function, or in an opset without per-channel scales. The result
computes the same bit for bit; operators and tensors have the same names.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper, version_converter
from onnx.reference import ReferenceEvaluator

from ...targets.errors import ModelError
from .graph import QUANTIZED, OnnxModel, given_inputs, lift_constants, opset_of, replace_nodes
from .walk import all_graphs, name_nodes

BY_CHANNEL = 13  # the first opset in which a DequantizeLinear has an axis
OWN_INITIALIZERS = 4  # the first IR version in which an initializer need not be an input
# Operators between a constant and its reader that compute nothing.
MOVES = ("Identity", "Cast", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze")


def as_float(model: OnnxModel) -> OnnxModel:
    """The normalized model, in which every constant is an initializer; itself if it is normalized already.

    Raises:
        ModelError: the model has quantized operators already, or cannot be converted to opset 13.
    """
    for node in model.graph.node:
        if node.op_type in QUANTIZED or "QLinear" in node.op_type or "Integer" in node.op_type:
            raise ModelError(
                f"{model.path} is quantized already: {node.name or node.output[0]} is a {node.op_type}.",
                "Give the float model from which it was made.",
            )
    model = with_initializers(at_opset(model, BY_CHANNEL))
    # Graph editors omit the shapes of outputs, and runtimes do not need them; ONNX's checker does.
    if not any(map(_lacks_shape, model.graph.output)):
        return model
    shaped = model.copy()
    for value in shaped.graph.output:
        if _lacks_shape(value) and value.name in model.types:
            value.type.tensor_type.CopyFrom(model.types[value.name])
    return shaped


def _lacks_shape(value: onnx.ValueInfoProto) -> bool:
    return value.type.HasField("tensor_type") and not value.type.tensor_type.HasField("shape")


def with_initializers(model: OnnxModel) -> OnnxModel:
    """Turns every constant (Constant node, folded Cast/Transpose/Identity) into a plain initializer."""
    constants = model.index.constants
    moved = any(
        node.op_type == "Constant"
        or (node.op_type in MOVES and all(name in constants for name in node.input))
        for node in model.graph.node
    )
    listed = any(value.name in constants for value in model.graph.input)
    if not moved and not listed and model.proto.ir_version >= OWN_INITIALIZERS:
        return model
    plain = model.copy()
    # IR 3 lists initializers among the inputs too. If integers replace one, its input would remain.
    inputs = given_inputs(plain.graph)
    if len(inputs) < len(plain.graph.input):
        kept = onnx.GraphProto(input=inputs).input
        del plain.graph.input[:]
        plain.graph.input.extend(kept)
    plain.proto.ir_version = max(plain.proto.ir_version, OWN_INITIALIZERS)
    lift_constants(plain.graph)
    _fold_moves(plain.proto)
    return plain


def at_opset(model: OnnxModel, opset: int) -> OnnxModel:
    """The model in this opset or a newer one; a ModelError if ONNX's converter cannot convert it."""
    current = opset_of(model.proto)
    if current >= opset:
        return model
    source = model.copy().proto
    # In IR 3 the converter takes only initializers that are inputs; ONNX Runtime takes all.
    source.ir_version = max(source.ir_version, OWN_INITIALIZERS)
    try:
        converted = version_converter.convert_version(source, opset)
    except Exception as error:  # its errors share no public base class
        raise ModelError(
            f"{model.path} has opset {current}, which ONNX's converter cannot convert to {opset}: "
            f"{str(error).strip().splitlines()[0]}",
            f"Export it at opset {opset} or newer.",
        ) from error
    converted.ir_version = max(
        converted.ir_version, helper.find_min_ir_version_for(list(converted.opset_import), True)
    )
    name_nodes(converted.graph)
    return model.derived(converted)


def _fold_moves(model: onnx.ModelProto) -> None:
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    outputs = {value.name for value in graph.output}
    same: dict[str, str] = {}
    kept = []
    for node in graph.node:
        inputs = [same.get(name, name) for name in node.input]
        moves = node.op_type in MOVES and not node.domain and all(name in constants for name in inputs)
        if not moves or node.output[0] in outputs:
            kept.append(node)
        elif node.op_type == "Identity":  # one weight with two names remains one weight
            same[node.output[0]] = inputs[0]
        else:
            node.input[:] = inputs
            value = _evaluate(node, constants, model)
            if value is None:
                kept.append(node)
                continue
            constants[value.name] = value
            graph.initializer.append(value)
    if len(kept) == len(graph.node):
        return
    replace_nodes(graph, kept)
    for inner in all_graphs(graph):
        for node in inner.node:
            node.input[:] = [same.get(name, name) for name in node.input]


def _evaluate(
    node: onnx.NodeProto, constants: dict[str, onnx.TensorProto], model: onnx.ModelProto
) -> onnx.TensorProto | None:
    values = [onnx.ValueInfoProto(name=name) for name in (*node.input, node.output[0])]
    alone = helper.make_graph([node], "move", values[:-1], values[-1:])
    try:
        run = ReferenceEvaluator(helper.make_model(alone, opset_imports=list(model.opset_import)))
        (value,) = run.run(None, {name: numpy_helper.to_array(constants[name]) for name in node.input})
    except Exception:  # a broken node; ONNX Runtime reports the error
        return None
    return numpy_helper.from_array(np.asarray(value), node.output[0])
