"""What single zeros save on disk: weights as a bitmask and values, or as compressed sparse rows.

Bytes are counted of what is really written and can be read back: the shape in front, values as float32. The
positions cost: a bitmask one bit a weight, kept or not; sparse rows two bytes (four where a row is long) a
kept weight, so that they pay only where few are kept. 2:4 as tensor cores hold it takes as much as a bitmask.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..targets.errors import ArtifactError

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Stored:
    """Bytes of the same tensors, stored in three ways."""

    dense: int
    bitmask: int
    csr: int


def stored_bytes(tensors: Mapping[str, NDArray[Any]], sparse: set[str]) -> Stored:
    """How much tensors take; those not in `sparse` (biases, norms) are dense in every way."""
    values = {name: np.asarray(tensor, np.float32) for name, tensor in tensors.items()}
    dense = {name: len(_head(tensor)) + tensor.nbytes for name, tensor in values.items()}
    rest = sum(size for name, size in dense.items() if name not in sparse)
    return Stored(
        sum(dense.values()),
        rest + sum(len(to_bitmask(values[name])) for name in sparse),
        rest + sum(len(to_csr(values[name])) for name in sparse),
    )


def to_bitmask(tensor: Array) -> bytes:
    """Shape, one bit a value, and the values that are not zero."""
    kept = tensor.reshape(-1) != 0
    return b"".join((_head(tensor), np.packbits(kept).tobytes(), tensor.reshape(-1)[kept].tobytes()))


def from_bitmask(data: bytes) -> Array:
    """The inverse of `to_bitmask`.

    Raises:
        ArtifactError: the bytes are cut short or too many.
    """
    shape, at = _shape(data)
    count = math.prod(shape)
    bits = _read(data, at, -(-count // 8), np.uint8)
    kept = np.unpackbits(bits, count=count).astype(bool)
    tensor = np.zeros(count, np.float32)
    tensor[kept] = _values(data, at + bits.size, int(kept.sum()))
    return tensor.reshape(shape)


def to_csr(tensor: Array) -> bytes:
    """Shape, where each row ends (uint32), columns (uint16, or uint32 in long rows), values.

    A row is one output: a tensor of more axes is flattened behind its first.
    """
    rows = tensor.reshape(len(tensor), -1)
    row, column = np.nonzero(rows)
    ends = np.searchsorted(row, np.arange(len(rows)), side="right").astype(np.uint32)
    head = _head(tensor) + ends.tobytes() + column.astype(_column_type(rows.shape[1])).tobytes()
    return head + rows[row, column].tobytes()


def from_csr(data: bytes) -> Array:
    """The inverse of `to_csr`.

    Raises:
        ArtifactError: the bytes are cut short or too many.
    """
    shape, at = _shape(data)
    tensor = np.zeros((shape[0], math.prod(shape[1:])), np.float32)
    ends = _read(data, at, shape[0], np.uint32).astype(np.int64)
    if (np.diff(ends) < 0).any():
        raise _damaged()
    at, kind, count = at + 4 * shape[0], _column_type(tensor.shape[1]), int(ends[-1])
    columns = _read(data, at, count, kind)
    if count and int(columns.max()) >= tensor.shape[1]:
        raise _damaged()
    row = np.searchsorted(ends, np.arange(count), side="right")
    tensor[row, columns] = _values(data, at + columns.nbytes, count)
    return tensor.reshape(shape)


def _head(tensor: Array) -> bytes:
    return struct.pack(f"<B{tensor.ndim}I", tensor.ndim, *tensor.shape)


def _shape(data: bytes) -> tuple[tuple[int, ...], int]:
    try:
        axes = data[0]
        return struct.unpack_from(f"<{axes}I", data, 1), 1 + 4 * axes
    except (IndexError, struct.error) as error:
        raise _damaged() from error


def _values(data: bytes, at: int, count: int) -> Array:
    """The values that end the bytes."""
    if len(data) != at + 4 * count:
        raise _damaged()
    return np.frombuffer(data, np.float32, offset=at) if count else np.zeros(0, np.float32)


def _read(data: bytes, at: int, count: int, kind: type[np.unsignedinteger[Any]]) -> NDArray[Any]:
    if len(data) < at + count * np.dtype(kind).itemsize:
        raise _damaged()
    return np.frombuffer(data, kind, count, at) if count else np.zeros(0, kind)


def _column_type(columns: int) -> type[np.unsignedinteger[Any]]:
    return np.uint16 if columns <= 1 << 16 else np.uint32


def _damaged() -> ArtifactError:
    return ArtifactError("A sparse tensor is cut short or damaged.", "Write it again.")
