"""What the fake's parser reads in an ONNX file: objections, tensors, and which outputs depend on the data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx

UNKNOWN = ("NonMaxSuppressionOfOurs",)
STANDARD = {"RoiAlign": "ROIAlign"}
"""Operators that TensorRT's own plugin library has, with the plugin's name."""
OURS = ("NormOfOurs",)
"""Operators that only a plugin library of a test brings; ONNX Runtime then computes the identity."""
DEPENDENT = ("NonZero", "NonMaxSuppression", "Unique")
_TYPED = {"Add": "SUM", "Sub": "SUB", "Mul": "PROD", "Div": "DIV"}
_NAMES: dict[int, str] = {onnx.TensorProto.FLOAT: "Float", onnx.TensorProto.FLOAT16: "Half"}

Objection = tuple[int, int, str, str, str]
"""The code, the node's index, the words, the node's name and its operator."""


def objections(model: Any, *, registered: Iterable[str], strong: bool) -> list[Objection]:
    """What the parser refuses: operators without a plugin, and mixed types in a strongly typed network."""
    found: list[Objection] = []
    known = set(registered)
    types = _types(model)
    for index, node in enumerate(model.graph.node):
        if node.op_type in (*UNKNOWN, *OURS) and node.op_type not in known:
            words = 'creator && "Plugin not found, are the plugin name, version, and namespace correct?"'
            found.append((6, index, words, node.name, node.op_type))
        elif node.op_type in STANDARD and node.op_type not in known:
            words = f"{STANDARD[node.op_type]} plugin was not found in the plugin registry!"
            found.append((8, index, words, node.name, node.op_type))
        kinds = [_NAMES[types[each]] for each in node.input if types.get(each) in _NAMES]
        if strong and node.op_type in _TYPED and len(set(kinds)) > 1:
            # As TensorRT-RTX 1.7.1 was seen to write it.
            words = (
                f"Invalid Node - {node.name}\nITensor::getDimensions: Error Code 4: API Usage Error "
                f"({node.name}: ElementWiseOperation {_TYPED[node.op_type]} must have same input types. But "
                f"they are of types {kinds[0]} and {kinds[1]}. In validateTypes at elementWiseNode.cpp:40)"
            )
            found.append((6, index, words, node.name, node.op_type))
    return found


def _types(model: Any) -> dict[str, int]:
    """The element types of tensors by name, as far as the file has them."""
    held = {item.name: item.data_type for item in model.graph.initializer}
    items = (*model.graph.input, *model.graph.value_info, *model.graph.output)
    return {**held, **{item.name: item.type.tensor_type.elem_type for item in items}}


def runnable(model: Any) -> Any:
    """The model as ONNX Runtime can run it: the tests' own operators are the identity."""
    for node in model.graph.node:
        if node.op_type in OURS:
            node.op_type, node.domain = "Identity", ""
    return model


def inputs_of(model: Any) -> list[dict[str, Any]]:
    """The model's inputs: name, shape with -1 for what is dynamic, and dtype."""
    held = {item.name for item in model.graph.initializer}
    return [_tensor(item) for item in model.graph.input if item.name not in held]


def outputs_of(model: Any) -> list[dict[str, Any]]:
    """The model's outputs; `dependent` where the size of one depends on the data."""
    makers = {each: node for node in model.graph.node for each in node.output}
    sizes = {dim.dim_param for item in model.graph.input for dim in item.type.tensor_type.shape.dim}
    return [{**_tensor(item), "dependent": _depends(item, makers, sizes)} for item in model.graph.output]


def _depends(item: Any, makers: Mapping[str, Any], sizes: Iterable[str]) -> bool:
    if all(dim.HasField("dim_value") or dim.dim_param in sizes for dim in item.type.tensor_type.shape.dim):
        return False
    names, seen = [item.name], set()
    while names:
        node = makers.get(names.pop())
        if node is not None and id(node) not in seen:
            if node.op_type in DEPENDENT:
                return True
            seen.add(id(node))
            names += node.input
    return False


def _tensor(item: Any) -> dict[str, Any]:
    tensor = item.type.tensor_type
    shape = [d.dim_value if d.HasField("dim_value") else -1 for d in tensor.shape.dim]
    dtype = str(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)))
    return {"name": item.name, "shape": shape, "dtype": dtype}
