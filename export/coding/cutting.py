"""The offsets of tensors in the bytes of an ONNX file.

The file is not parsed into objects and written again, which could give other bytes. Numbers are cut out of
the bytes, so that inserting them gives the same file.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...targets.errors import ModelError
from ...targets.protobuf import fields, varint
from ..onnx_graph.graph import Array

LEAST = 64  # bytes of a tensor; smaller ones stay in the graph
# Field numbers of onnx.proto, which never change.
_GRAPH = 7
_IN_GRAPH = {1: "node", 5: "tensor"}
_NODE_ATTRIBUTE = 5
_IN_ATTRIBUTE = {5: "tensor", 6: "graph", 10: "tensor", 11: "graph"}
_DIMS, _TYPE, _FLOATS, _NAME, _RAW, _DOUBLES, _LOCATION = 1, 2, 4, 8, 9, 10, 14
_EXTERNAL = 1
_WIDTHS = {1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 12: 4, 13: 8, 14: 8, 15: 8, 16: 2}
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
        found = [
            tensor
            for field, _, start, end in fields(data, 0, len(data))
            if field == _GRAPH
            for tensor in _graph(data, start, end)
        ]
    except (ValueError, IndexError, UnicodeDecodeError) as error:
        raise ModelError(
            f"{path} is a truncated or damaged ONNX file.", "Export or copy the model again."
        ) from error
    if not any(field == _GRAPH for field, _, _, _ in fields(data, 0, len(data))):
        raise ModelError(f"{path} is not an ONNX file: it has no graph.", "Give a model in ONNX.")
    return sorted(found, key=lambda tensor: tensor.start)


def _graph(data: bytes, start: int, end: int) -> Iterator[Tensor]:
    for field, _, at, stop in fields(data, start, end):
        if _IN_GRAPH.get(field) == "tensor":
            yield from _tensor(data, at, stop)
        elif _IN_GRAPH.get(field) == "node":
            for own, _, begin, close in fields(data, at, stop):
                if own == _NODE_ATTRIBUTE:
                    yield from _attribute(data, begin, close)


def _attribute(data: bytes, start: int, end: int) -> Iterator[Tensor]:
    for field, _, at, stop in fields(data, start, end):
        kind = _IN_ATTRIBUTE.get(field)
        if kind is not None and stop > at:
            yield from (_tensor if kind == "tensor" else _graph)(data, at, stop)


def _tensor(data: bytes, start: int, end: int) -> Iterator[Tensor]:
    shape: list[int] = []
    name, kind, where = "", 0, (0, 0)
    external = False
    for field, number, at, stop in fields(data, start, end):
        if field == _DIMS and number is not None:
            shape.append(number)
        elif field == _DIMS:
            place = at
            while place < stop:
                size, place = varint(data, place)
                shape.append(size)
        elif field == _TYPE:
            kind = number or 0
        elif field == _NAME:
            name = data[at:stop].decode()
        elif field in (_RAW, _FLOATS, _DOUBLES) and stop - at >= LEAST:
            where = (at, stop)
        elif field == _LOCATION:
            external = number == _EXTERNAL
    width = _WIDTHS.get(kind, 1)
    if external:
        yield Tensor(name, tuple(shape), 0, 0, width, None)
    elif where[1] and (where[1] - where[0]) % width == 0:
        whole = math.prod(shape) * width == where[1] - where[0]
        yield Tensor(name, tuple(shape) if whole else (), *where, width, _FLOAT_TYPES.get(kind))
