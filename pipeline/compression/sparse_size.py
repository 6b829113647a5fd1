"""Size on disk of sparse weights: as a bitmask with values, or as compressed sparse rows (CSR).

Bytes are counted of data that can be decoded: the shape first, values as float32. Positions cost one bit per
weight in a bitmask, and two bytes per kept weight in CSR (four in long rows), so CSR pays only where few
weights are kept. 2:4 in the format of tensor cores takes as much as a bitmask.
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
    """Bytes of the same tensors in three formats."""

    dense: int
    bitmask: int
    csr: int


def stored_bytes(tensors: Mapping[str, NDArray[Any]], sparse: set[str]) -> Stored:
    """Stored size of tensors; those not in `sparse` (biases, norms) are dense in every format."""
    values = {name: np.asarray(tensor, np.float32) for name, tensor in tensors.items()}
    dense = {name: len(_head(tensor)) + tensor.nbytes for name, tensor in values.items()}
    rest = sum(size for name, size in dense.items() if name not in sparse)
    return Stored(
        sum(dense.values()),
        rest + sum(len(to_bitmask(values[name])) for name in sparse),
        rest + sum(len(to_csr(values[name])) for name in sparse),
    )


def to_bitmask(tensor: Array) -> bytes:
    """Shape, one bit per value, and the values that are not zero."""
    kept = tensor.reshape(-1) != 0
    return b"".join((_head(tensor), np.packbits(kept).tobytes(), tensor.reshape(-1)[kept].tobytes()))


def to_csr(tensor: Array) -> bytes:
    """Shape, row ends (uint32), column indices (uint16, or uint32 in long rows), values.

    A row is one output: a tensor of more axes is flattened after its first.
    """
    rows = tensor.reshape(len(tensor), -1)
    row, column = np.nonzero(rows)
    ends = np.searchsorted(row, np.arange(len(rows)), side="right").astype(np.uint32)
    kind = np.uint16 if rows.shape[1] <= 1 << 16 else np.uint32
    return _head(tensor) + ends.tobytes() + column.astype(kind).tobytes() + rows[row, column].tobytes()


def _head(tensor: Array) -> bytes:
    return struct.pack(f"<B{tensor.ndim}I", tensor.ndim, *tensor.shape)
