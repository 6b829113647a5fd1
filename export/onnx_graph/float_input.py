"""A float network as users bring it, in the one form that quantization reads.

Exporters write the same layer in many ways: with weights that are inputs too (before IR 4), behind an
Identity, Transpose or Cast, as a local function, or in an opset that knows no scale by channel. What is
rewritten here computes the same bit for bit; operators and tensors keep their names.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper, version_converter
from onnx.reference import ReferenceEvaluator

from ...targets.errors import ModelError
from .graph import (
    QUANTIZED,
    OnnxModel,
    all_graphs,
    given_inputs,
    lift_constants,
    name_nodes,
    opset_of,
    replace_nodes,
)

BY_CHANNEL = 13  # the first opset in which a DequantizeLinear has an axis
OWN_INITIALIZERS = 4  # the first IR version in which an initializer need not be an input
# What stands between a constant and its reader without computing anything.
MOVES = ("Identity", "Cast", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze")


def as_float(model: OnnxModel) -> OnnxModel:
    """The model as quantization reads it, with every constant an initializer; itself where it is so already.

    Raises:
        ModelError: the model holds quantized operators already, or cannot be said in opset 13.
    """
    for node in model.graph.node:
        if node.op_type in QUANTIZED or "QLinear" in node.op_type or "Integer" in node.op_type:
            raise ModelError(
                f"{model.path} is quantized already: {node.name or node.output[0]} is a {node.op_type}.",
                "Give the float model that it was made from.",
            )
    model = with_initializers(at_opset(model, BY_CHANNEL))
    # Editors of graphs leave the shapes of outputs out, runtimes do without; ONNX's checker does not.
    if all(value.type.tensor_type.HasField("shape") for value in model.graph.output):
        return model
    shaped = model.copy()
    for value in shaped.graph.output:
        if not value.type.tensor_type.HasField("shape") and value.name in model.types:
            value.type.tensor_type.CopyFrom(model.types[value.name])
    return shaped


def with_initializers(model: OnnxModel) -> OnnxModel:
    """The model with an initializer, and that alone, for every constant that is written in another way."""
    constants = model.index.constants
    moved = any(
        node.op_type == "Constant"
        or (node.op_type in MOVES and all(name in constants for name in node.input))
        for node in model.graph.node
    )
    listed = any(value.name in constants for value in model.graph.input)
    if not moved and not listed and model.proto.ir_version >= OWN_INITIALIZERS:
        return model
    settled = model.copy()
    # IR 3 lists initializers among the inputs too. One that is replaced by integers would leave its input
    # behind, for every caller to feed.
    inputs = given_inputs(settled.graph)
    if len(inputs) < len(settled.graph.input):
        kept = onnx.GraphProto(input=inputs).input
        del settled.graph.input[:]
        settled.graph.input.extend(kept)
    settled.proto.ir_version = max(settled.proto.ir_version, OWN_INITIALIZERS)
    lift_constants(settled.graph)
    _fold_moves(settled.proto)
    return settled


def at_opset(model: OnnxModel, opset: int) -> OnnxModel:
    """The model in an opset that is at least this new.

    Raises:
        ModelError: ONNX's converter cannot say it there.
    """
    found = opset_of(model.proto)
    if found >= opset:
        return model
    try:
        made = version_converter.convert_version(model.proto, opset)
    except Exception as error:  # its errors share no public base class
        raise ModelError(
            f"{model.path} has opset {found}, and ONNX's converter cannot say it in {opset}: "
            f"{str(error).strip().splitlines()[0]}",
            f"Export it at opset {opset} or newer.",
        ) from error
    made.ir_version = max(made.ir_version, helper.find_min_ir_version_for(list(made.opset_import), True))
    name_nodes(made.graph)
    return model.derived(made)


def _fold_moves(model: onnx.ModelProto) -> None:
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    outputs = {value.name for value in graph.output}
    same: dict[str, str] = {}
    kept = []
    for node in graph.node:
        given = [same.get(name, name) for name in node.input]
        moves = node.op_type in MOVES and not node.domain and all(name in constants for name in given)
        if not moves or node.output[0] in outputs:
            kept.append(node)
        elif node.op_type == "Identity":  # one weight with two names stays one weight
            same[node.output[0]] = given[0]
        else:
            node.input[:] = given
            value = _moved(node, constants, model)
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


def _moved(
    node: onnx.NodeProto, constants: dict[str, onnx.TensorProto], model: onnx.ModelProto
) -> onnx.TensorProto | None:
    values = [onnx.ValueInfoProto(name=name) for name in (*node.input, node.output[0])]
    alone = helper.make_graph([node], "move", values[:-1], values[-1:])
    try:
        run = ReferenceEvaluator(helper.make_model(alone, opset_imports=list(model.opset_import)))
        (value,) = run.run(None, {name: numpy_helper.to_array(constants[name]) for name in node.input})
    except Exception:  # a broken node; ONNX Runtime will say what is wrong with it
        return None
    return numpy_helper.from_array(np.asarray(value), node.output[0])
