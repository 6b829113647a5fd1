"""Small ONNX files: written node by node, as users bring them, or with given weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

op = helper.make_node


def numbers(*shape: int, size: float = 0.3, seed: int = 0) -> Any:
    """Gaussian float32 numbers."""
    return np.random.default_rng(seed).normal(0.0, size, shape).astype(np.float32)


def write_network(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    constants: Mapping[str, Any],
    shape: Sequence[int | str | None],
    *,
    outputs: Sequence[onnx.ValueInfoProto] = (),
    kind: int = TensorProto.FLOAT,
    opset: int = 17,
) -> Path:
    """Writes a network from the input x to the outputs, by default to y, of as many axes as x."""
    graph = helper.make_graph(
        list(nodes),
        "network",
        [helper.make_tensor_value_info("x", kind, shape)],
        list(outputs) or [helper.make_tensor_value_info("y", kind, [None] * len(shape))],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    imports = [helper.make_opsetid("", opset)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=8), path)
    return path


def write_weights(path: Path, weights: dict[str, Any], *, raw: bool = True) -> Path:
    """Writes such a model."""
    onnx.save(weights_model(weights, raw=raw), path)
    return path


def weights_model(weights: dict[str, Any], *, raw: bool = True) -> onnx.ModelProto:
    """A model of one Identity whose constants are these arrays; without `raw`, in the typed fields."""
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    tensors = []
    for name, array in weights.items():
        if raw:
            tensors.append(numpy_helper.from_array(np.asarray(array), name))
        else:
            kind = helper.np_dtype_to_tensor_dtype(np.asarray(array).dtype)
            tensors.append(helper.make_tensor(name, kind, array.shape, array.reshape(-1).tolist()))
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "graph", [value], [out], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


def read_weights(path: Path) -> dict[str, Any]:
    """The constants of a model by name."""
    return {one.name: numpy_helper.to_array(one) for one in onnx.load(path).graph.initializer}


def sparse_weight(rows: int, columns: int, kept: float, *, values: int | None = None, seed: int = 0) -> Any:
    """A float32 matrix of which a share is not zero, perhaps of few different values."""
    generator = np.random.default_rng(seed)
    weight = generator.normal(0, 0.1, (rows, columns))
    if values:
        weight = np.linspace(-0.3, 0.3, values)[generator.binomial(values - 1, 0.5, (rows, columns))]
    density = kept * 2 * generator.random(columns)
    return np.where(generator.random((rows, columns)) < density, weight, 0).astype(np.float32)


def save_mlp(path: Path, *widths: int, batch: int | str = "batch") -> Path:
    """A multilayer perceptron with ReLU between the layers: input `x`, output `y`, both float32."""
    generator = np.random.default_rng(0)
    nodes, weights, value = [], [], "x"
    for layer, (inputs, outputs) in enumerate(pairwise(widths)):
        weight = generator.standard_normal((inputs, outputs)) / inputs**0.5
        weights.append(numpy_helper.from_array(weight.astype(np.float32), f"w{layer}"))
        last = layer == len(widths) - 2
        nodes.append(helper.make_node("MatMul", [value, f"w{layer}"], ["y" if last else f"m{layer}"]))
        if not last:
            nodes.append(helper.make_node("Relu", [f"m{layer}"], [f"r{layer}"]))
            value = f"r{layer}"
    graph = helper.make_graph(
        nodes,
        "mlp",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, widths[0]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, widths[-1]])],
        weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), str(path))
    return path
