"""Where the weights stand in an ONNX file: byte ranges by name, for whoever handles the file as bytes.

A range is a place where the file has exactly these bytes, behind the one before. For tensors of a few bytes
that may be another place than protobuf's; whoever copies or codes bytes need not care.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx
from onnx import helper

from ..targets.errors import ModelError

LEAST = 256
"""Smaller tensors are not worth a range of their own."""


@dataclass(frozen=True)
class WeightBytes:
    """A tensor of `rows` (its first axis) whose numbers take `width` bytes each, at `at` of the file."""

    at: int
    size: int
    width: int
    rows: int


def weight_bytes(data: bytes, name: str = "model.onnx") -> dict[str, WeightBytes]:
    """The weights that stand in a file as raw bytes, by name and in the file's order.

    Raises:
        ModelError: it is no ONNX file.
    """
    try:
        held = onnx.load_model_from_string(data)
    except Exception as error:  # protobuf's errors share no public base class
        raise ModelError(f"{name} is not a whole ONNX file: {error}.", "Make the bundle again.") from error
    found: dict[str, WeightBytes] = {}
    behind = 0
    for tensor in held.graph.initializer:
        size = len(tensor.raw_data)
        if size < LEAST:
            continue
        at = data.find(tensor.raw_data, behind)
        if at >= 0:
            width = helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
            width = width if size % width == 0 and width in (1, 2, 4, 8) else 1
            found[tensor.name] = WeightBytes(at, size, width, max(int(tensor.dims[0]), 1))
            behind = at + size
    return found
