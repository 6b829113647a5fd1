"""Parts of a new file that the old one has."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deadweight.export.release.delta import Copied, Old


def joined(old: bytes, new: bytes) -> tuple[bytes, int]:
    """What the parts give, and how many bytes of it are the new file's own."""
    parts = list(Old(old).parts(new))
    made = [old[part.at : part.at + part.size] if isinstance(part, Copied) else part for part in parts]
    return b"".join(made), sum(len(part) for part in parts if isinstance(part, bytes))


def test_a_byte_put_in_the_middle_costs_itself() -> None:
    old = os.urandom(10_000)
    new = old[:5000] + b"!" + old[5000:]
    assert joined(old, new) == (new, 1)


def test_parts_that_changed_places_are_copied() -> None:
    old = os.urandom(6000)
    new = old[4000:] + old[:3000]
    made, own = joined(old, new)
    assert made == new
    assert own == 0


def test_where_nothing_is_alike_all_is_inserted() -> None:
    old, new = os.urandom(3000), os.urandom(3000)
    assert joined(old, new) == (new, 3000)


@pytest.mark.parametrize(("old", "new"), [(b"", b""), (b"", b"abc"), (b"abc", b""), (b"a" * 31, b"a" * 31)])
def test_files_smaller_than_a_block_are_inserted(old: bytes, new: bytes) -> None:
    assert joined(old, new) == (new, len(new))


def test_a_file_of_equal_bytes_is_found_and_takes_no_time() -> None:
    assert joined(bytes(100_000), bytes(70_001)) == (bytes(70_001), 0)


@given(st.binary(max_size=300), st.lists(st.integers(0, 299), max_size=8), st.binary(max_size=50))
def test_what_comes_out_is_always_the_new_file(piece: bytes, cuts: list[int], more: bytes) -> None:
    old = piece * 3
    new = more.join(old[cut : cut + 100] for cut in cuts) + more
    assert joined(old, new)[0] == new


def test_a_large_file_is_searched_in_fewer_blocks() -> None:
    old = np.random.default_rng(0).bytes(12 << 20)
    new = old[1 << 20 : 3 << 20] + b"between" + old[5 << 20 : 6 << 20]
    made, own = joined(old, new)
    assert made == new
    assert own < 100
