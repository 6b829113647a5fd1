"""Data-dependent outputs: their number of rows depends on the data, as after non-maximum suppression.

After rounding the selected boxes may have another order or number, so the values cannot be compared. What a
network computes before the selection is compared if it is an output too.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx

from ..onnx_graph.external_data import for_inference
from ..onnx_graph.graph import Array, OnnxModel

SELECTING = ("NonMaxSuppression", "NonZero", "Unique", "Compress")
SIZES = ("Shape", "Size")  # they depend only on a size


def selected_outputs(model: OnnxModel, feeds: Mapping[str, Array]) -> dict[str, str]:
    """The selecting operator by data-dependent output.

    After such an operator the shape may be fixed again, as after a scatter: that output is not selected.

    Args:
        feeds: inputs, of which only the shapes matter.
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
