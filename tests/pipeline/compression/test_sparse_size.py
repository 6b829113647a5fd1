from __future__ import annotations

import math
import struct

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from deadweight.pipeline.compression.masks import stored_bytes, to_bitmask, to_csr


def sparse(shape: tuple[int, ...], kept: float, seed: int = 0) -> NDArray[np.float32]:
    dice = np.random.default_rng(seed)
    values = dice.standard_normal(shape).astype(np.float32)
    return np.where(dice.random(shape) < kept, values, np.float32(0))


def head(data: bytes) -> tuple[tuple[int, ...], int]:
    """The shape, and the place behind it."""
    return struct.unpack_from(f"<{data[0]}I", data, 1), 1 + 4 * data[0]


def from_bitmask(data: bytes) -> NDArray[np.float32]:
    """What a reader of `to_bitmask` makes of it."""
    shape, at = head(data)
    count = math.prod(shape)
    kept = np.unpackbits(np.frombuffer(data, np.uint8, -(-count // 8), at), count=count).astype(bool)
    tensor = np.zeros(count, np.float32)
    tensor[kept] = np.frombuffer(data[at + -(-count // 8) :], np.float32)
    return tensor.reshape(shape)


def from_csr(data: bytes) -> NDArray[np.float32]:
    """What a reader of `to_csr` makes of it."""
    shape, at = head(data)
    tensor = np.zeros((shape[0], math.prod(shape[1:])), np.float32)
    ends = np.frombuffer(data, np.uint32, shape[0], at)
    kind = np.uint16 if tensor.shape[1] <= 1 << 16 else np.uint32
    columns = np.frombuffer(data[at + ends.nbytes :], kind, ends[-1])
    row = np.searchsorted(ends, np.arange(len(columns)), side="right")
    tensor[row, columns] = np.frombuffer(data[at + ends.nbytes + columns.nbytes :], np.float32)
    return tensor.reshape(shape)


@given(
    st.lists(st.integers(1, 9), min_size=2, max_size=4),
    st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    st.integers(0, 99),
)
def test_what_was_stored_comes_back_to_the_bit(shape: list[int], kept: float, seed: int) -> None:
    tensor = sparse(tuple(shape), kept, seed)
    assert np.array_equal(from_bitmask(to_bitmask(tensor)), tensor)
    assert np.array_equal(from_csr(to_csr(tensor)), tensor)


def test_a_long_row_takes_wider_columns() -> None:
    tensor = sparse((2, 70_000), 0.001)
    assert np.array_equal(from_csr(to_csr(tensor)), tensor)


def test_sparse_rows_cost_more_than_dense_ones_until_few_are_left() -> None:
    half, few = sparse((300, 784), 0.8), sparse((300, 784), 0.1)
    for tensor, pays in ((half, False), (few, True)):
        found = stored_bytes({"a": tensor}, {"a"})
        assert (found.csr < found.dense) is pays
        assert found.bitmask < found.dense


def test_bytes_are_those_of_the_parts() -> None:
    tensor = sparse((4, 16), 0.5)
    kept, head = int((tensor != 0).sum()), 9
    found = stored_bytes({"a": tensor, "bias": np.ones(4, np.float32)}, {"a"})
    assert found.dense == head + 4 * 64 + 5 + 16
    assert found.bitmask == head + 8 + 4 * kept + 5 + 16
    assert found.csr == head + 4 * 4 + (2 + 4) * kept + 5 + 16
