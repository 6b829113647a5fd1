"""Small ONNX files that take all memory, or never end."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_X = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8])
_Y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 8])


def _save(path: Path, nodes: list[onnx.NodeProto], **constants: np.ndarray) -> Path:
    # A layer that can be quantized comes first.
    nodes = [helper.make_node("MatMul", ["x", "weight"], ["layer"]), *nodes]
    constants["weight"] = np.eye(8, dtype=np.float32)
    made = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "hostile", [_X], [_Y], made)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    path.write_bytes(model.SerializeToString())
    return path


def endless(path: Path) -> Path:
    """A Loop whose condition is always true."""
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Relu", ["now"], ["next"])],
        "body",
        [value("at", TensorProto.INT64, []), value("go", TensorProto.BOOL, []), value("now", 1, None)],
        [value("on", TensorProto.BOOL, []), value("next", 1, None)],
    )
    node = helper.make_node("Loop", ["", "true", "layer"], ["y"], body=body)
    return _save(path, [node], true=np.array(True))


def insatiable(path: Path) -> Path:
    """A ConstantOfShape of 4 TB."""
    nodes = [
        helper.make_node("ConstantOfShape", ["sizes"], ["huge"]),
        helper.make_node("ReduceSum", ["huge"], ["sum"], keepdims=0),
        helper.make_node("Add", ["layer", "sum"], ["y"]),
    ]
    return _save(path, nodes, sizes=np.array([10**6, 10**6]))
