"""The offsets of tensors in the bytes of an ONNX file.

A file that is parsed and written again may have other bytes. So the numbers of each tensor are searched in
the bytes, in the order of the file, and cut out there: inserting them gives the same file.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import GraphProto, TensorProto

from ...targets.errors import ModelError
from ..onnx_graph.graph import Array
from ..onnx_graph.walk import all_graphs

LEAST = 64  # bytes of a tensor; smaller ones stay in the graph
_WIDTHS = {1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 12: 4, 13: 8, 14: 8, 15: 8, 16: 2}
"""Bytes of a number, by the number of its type in ONNX; 1 for types of other widths."""
_FLOAT_TYPES = {1: "<f4", 10: "<f2", 11: "<f8"}


@dataclass(frozen=True)
class Tensor:
    """Numbers in a file: bytes `start` to `end`, `width` bytes each; `dtype` where they are plain floats.

    `end` is 0 where the numbers are in another file.
    """

    name: str
    shape: tuple[int, ...]
    start: int
    end: int
    width: int
    dtype: str | None

    def numbers(self, data: bytes) -> Array:
        """The numbers, unsigned, flat."""
        return np.frombuffer(data, f"<u{self.width}", (self.end - self.start) // self.width, self.start)


def tensors_of(data: bytes, path: Path) -> list[Tensor]:
    """The tensors of a complete ONNX file whose numbers are contiguous, in order; a ModelError for others."""
    try:
        model = onnx.ModelProto.FromString(data)
    except Exception as error:  # protobuf's errors have no public base class
        raise ModelError(
            f"{path} is a truncated or damaged ONNX file.", "Export or copy the model again."
        ) from error
    if not model.HasField("graph"):
        raise ModelError(f"{path} is not an ONNX file: it has no graph.", "Give a model in ONNX.")
    found, place = [], 0
    for tensor in _tensors(model.graph):
        kind = tensor.data_type
        width = _WIDTHS.get(kind, 1)
        if tensor.data_location == TensorProto.EXTERNAL:
            found.append(Tensor(tensor.name, tuple(tensor.dims), 0, 0, width, None))
            continue
        numbers = tensor.raw_data or _typed(tensor)
        start = data.find(numbers, place)
        if len(numbers) < LEAST or len(numbers) % width or start < 0:
            continue
        place = start + len(numbers)
        shape = tuple(tensor.dims) if math.prod(tensor.dims) * width == len(numbers) else ()
        found.append(Tensor(tensor.name, shape, start, place, width, _FLOAT_TYPES.get(kind)))
    return sorted(found, key=lambda tensor: tensor.start)


def _tensors(graph: GraphProto) -> Iterator[TensorProto]:
    """The tensors of a graph and of those inside it, in the order in which a file has them."""
    graphs = list(all_graphs(graph))
    for one in [*graphs[1:], graphs[0]]:
        for node in one.node:
            for attribute in node.attribute:
                yield from ([attribute.t] if attribute.HasField("t") else attribute.tensors)
        yield from one.initializer


def _typed(tensor: TensorProto) -> bytes:
    """The bytes of the typed fields whose numbers are contiguous."""
    for values, kind in ((tensor.float_data, "<f4"), (tensor.double_data, "<f8")):
        if values:
            return np.array(values, kind).tobytes()
    return b""
