from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from deadweight.pipeline.sparse_bytes import from_bitmask, from_csr, stored_bytes, to_bitmask, to_csr
from deadweight.targets.errors import ArtifactError


def sparse(shape: tuple[int, ...], kept: float, seed: int = 0) -> NDArray[np.float32]:
    dice = np.random.default_rng(seed)
    values = dice.standard_normal(shape).astype(np.float32)
    return np.where(dice.random(shape) < kept, values, np.float32(0))


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


@pytest.mark.parametrize("cut", [0, 3, 10, 40, -1])
def test_bytes_that_were_cut_short_are_refused(cut: int) -> None:
    tensor = sparse((6, 16), 0.5)
    with pytest.raises(ArtifactError, match="damaged"):
        from_bitmask(to_bitmask(tensor)[:cut])
    with pytest.raises(ArtifactError, match="damaged"):
        from_csr(to_csr(tensor)[:cut])


def test_columns_beyond_a_row_are_refused() -> None:
    data = bytearray(to_csr(np.eye(4, dtype=np.float32)))
    data[9 + 16] = 200
    with pytest.raises(ArtifactError, match="damaged"):
        from_csr(bytes(data))
