"""ONNX files with given weights, small and quick to make."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def write_model(path: Path, weights: dict[str, Any], *, raw: bool = True) -> Path:
    """Writes such a model."""
    onnx.save(model_of(weights, raw=raw), path)
    return path


def model_of(weights: dict[str, Any], *, raw: bool = True) -> onnx.ModelProto:
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
