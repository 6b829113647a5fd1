"""Outputs of which the data decide how many rows they have, as those behind non-maximum suppression.

After rounding other boxes may come first, or one more: nothing there can be laid beside what was there,
number by number. What a network computes ahead of the selection is compared where it is an output too.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx

from ..onnx_graph.external_data import for_inference
from ..onnx_graph.graph import Array, OnnxModel

SELECTING = ("NonMaxSuppression", "NonZero", "Unique", "Compress")
SIZES = ("Shape", "Size")  # say how large something is, not what it holds


def selected_outputs(model: OnnxModel, feeds: Mapping[str, Array]) -> dict[str, str]:
    """By output that holds as many rows as the data say, the operator that selects them.

    Behind such an operator the shape may be fixed again, as after a scatter: that output is one like others.

    Args:
        feeds: inputs, of which only the shapes are looked at.
    """
    behind: dict[str, str] = {}
    for node in model.graph.node:
        if node.op_type in SELECTING:
            found: str | None = node.op_type
        elif node.op_type in SIZES:
            continue
        else:
            found = next((behind[name] for name in node.input if name in behind), None)
        behind |= dict.fromkeys(node.output, found) if found else {}
    if not any(value.name in behind for value in model.graph.output):
        return {}
    fixed = for_inference(model.proto)
    del fixed.graph.value_info[:]
    for value in fixed.graph.input:
        if value.name in feeds:
            shape = value.type.tensor_type.shape
            del shape.dim[:]
            for size in feeds[value.name].shape:
                shape.dim.add().dim_value = size
    for value in fixed.graph.output:
        value.type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(fixed, data_prop=True).graph.output
    open_ = [value.name for value in inferred if not _is_known(value.type.tensor_type)]
    return {name: behind[name] for name in open_ if name in behind}


def _is_known(kind: onnx.TypeProto.Tensor) -> bool:
    return kind.HasField("shape") and all(axis.HasField("dim_value") for axis in kind.shape.dim)
