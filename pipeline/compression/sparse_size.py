"""What single zeros save on disk: weights as a bitmask and values, or as compressed sparse rows.

Bytes are counted of what is written and can be read back: the shape in front, values as float32. The
positions cost: a bitmask one bit a weight, kept or not; sparse rows two bytes (four where a row is long) a
kept weight, so that they pay only where few are kept. 2:4 as tensor cores hold it takes as much as a bitmask.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

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


def to_csr(tensor: Array) -> bytes:
    """Shape, where each row ends (uint32), columns (uint16, or uint32 in long rows), values.

    A row is one output: a tensor of more axes is flattened behind its first.
    """
    rows = tensor.reshape(len(tensor), -1)
    row, column = np.nonzero(rows)
    ends = np.searchsorted(row, np.arange(len(rows)), side="right").astype(np.uint32)
    head = _head(tensor) + ends.tobytes() + column.astype(_column_type(rows.shape[1])).tobytes()
    return head + rows[row, column].tobytes()


def _head(tensor: Array) -> bytes:
    return struct.pack(f"<B{tensor.ndim}I", tensor.ndim, *tensor.shape)


def _column_type(columns: int) -> type[np.unsignedinteger[Any]]:
    return np.uint16 if columns <= 1 << 16 else np.uint32
