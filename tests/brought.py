"""ONNX files as users bring them: written node by node, not by our exporter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

op = helper.make_node


def numbers(*shape: int, size: float = 0.3, seed: int = 0) -> Any:
    """Gaussian float32 numbers."""
    return np.random.default_rng(seed).normal(0.0, size, shape).astype(np.float32)


def brought(
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
        "brought",
        [helper.make_tensor_value_info("x", kind, shape)],
        list(outputs) or [helper.make_tensor_value_info("y", kind, [None] * len(shape))],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    imports = [helper.make_opsetid("", opset)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=8), path)
    return path
