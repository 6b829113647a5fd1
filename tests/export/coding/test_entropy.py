from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deadweight.export.coding.entropy import encode_symbols
from deadweight.targets.coded import decode_symbols, streams
from deadweight.targets.errors import ArtifactError, ModelError


def laplacian(count: int, width: float, seed: int = 0) -> Any:
    drawn = np.random.default_rng(seed).laplace(0, width, count)
    return (np.clip(np.rint(drawn), -127, 127) + 128).astype(np.uint8)


def entropy_bytes(symbols: Any) -> float:
    counts = np.unique(symbols, return_counts=True)[1]
    return float(-(counts * np.log2(counts / counts.sum())).sum() / 8)


@st.composite
def symbol_arrays(draw: st.DrawFn) -> Any:
    """Arrays of any length, width and spread, flat, constant or full of runs."""
    dtype = draw(st.sampled_from([np.uint8, np.uint16]))
    count = draw(st.one_of(st.integers(0, 40), st.integers(0, 3000)))
    different = draw(st.integers(1, 1 << 8 * np.dtype(dtype).itemsize))
    skew = draw(st.sampled_from([0.0, 1.0, 6.0]))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shares = np.arange(1, different + 1) ** -skew
    drawn = generator.choice(different, size=count, p=shares / shares.sum())
    return generator.permutation(1 << 8 * np.dtype(dtype).itemsize)[drawn].astype(dtype)


def comes_back(symbols: Any, contexts: Any = None) -> None:
    found = decode_symbols(encode_symbols(symbols, contexts=contexts), contexts=contexts)
    assert found.dtype == symbols.dtype
    assert np.array_equal(found, symbols.reshape(-1))


@settings(max_examples=30, deadline=None)
@given(symbol_arrays())
def test_what_was_coded_comes_back(symbols: Any) -> None:
    comes_back(symbols)


@pytest.mark.slow
@settings(max_examples=1000, deadline=None)
@given(symbol_arrays())
def test_a_thousand_arrays_come_back(symbols: Any) -> None:
    comes_back(symbols)


@settings(max_examples=15, deadline=None)
@given(symbol_arrays(), st.integers(1, 256), st.integers(0, 2**32 - 1))
def test_what_was_coded_in_contexts_comes_back(symbols: Any, classes: int, seed: int) -> None:
    contexts = np.random.default_rng(seed).integers(0, classes, len(symbols)).astype(np.uint8)
    comes_back(symbols, contexts)


@pytest.mark.parametrize("width", [0.2, 1.0, 12.0])
def test_tables_states_and_padding_cost_under_two_per_cent_of_a_layer(width: float) -> None:
    symbols = laplacian(100_000, width)
    assert len(encode_symbols(symbols)) < 1.02 * entropy_bytes(symbols)


def test_contexts_pay_where_they_say_something_and_cost_a_few_bytes_where_not() -> None:
    narrow, wide = laplacian(20_000, 1.0), laplacian(20_000, 20.0, seed=1)
    symbols = np.concatenate([narrow, wide])
    telling = np.repeat(np.arange(2, dtype=np.uint8), 20_000)
    empty = np.tile(telling[::20_000], 20_000)
    plain = len(encode_symbols(symbols))
    apart = len(encode_symbols(narrow)) + len(encode_symbols(wide))
    assert len(encode_symbols(symbols, contexts=telling)) < min(0.95 * plain, apart + 50)
    assert len(encode_symbols(symbols, contexts=empty)) <= plain + 8


def test_a_symbol_may_take_far_less_than_a_bit() -> None:
    symbols = (np.random.default_rng(0).random(50_000) < 0.01).astype(np.uint8)
    assert len(encode_symbols(symbols)) < 1.08 * entropy_bytes(symbols) < 50_000 / 8 / 10


def test_noise_is_stored_as_it_is() -> None:
    symbols = np.random.default_rng(0).integers(0, 256, 5000).astype(np.uint8)
    assert encode_symbols(symbols)[0] == streams.RAW
    assert len(encode_symbols(symbols)) == 5003


def test_every_flip_of_a_byte_is_refused_or_gives_as_many_symbols() -> None:
    """A stream has no checksum of its own; what it must never do is fail, hang or grow."""
    data = encode_symbols(laplacian(200, 3.0))
    refused = 0
    for place in range(len(data)):
        wrong = bytearray(data)
        wrong[place] ^= (1, 0x80, 0xFF)[place % 3]
        try:
            assert len(decode_symbols(bytes(wrong), most=1000)) <= 1000
        except ArtifactError:
            refused += 1
    assert refused > len(data) // 4


def test_every_truncation_is_refused() -> None:
    data = encode_symbols(laplacian(200, 3.0))
    for length in range(len(data)):
        with pytest.raises(ArtifactError):
            decode_symbols(data[:length])


def test_other_contexts_than_it_was_coded_with_are_refused() -> None:
    symbols = np.concatenate([laplacian(5000, 1.0), laplacian(5000, 20.0)])
    contexts = np.repeat(np.arange(2, dtype=np.uint8), 5000)
    data = encode_symbols(symbols, contexts=contexts)
    for wrong in (None, contexts[:-1], contexts + 1, 1 - contexts):
        with pytest.raises(ArtifactError):
            decode_symbols(data, contexts=wrong)


def test_what_cannot_be_coded_is_refused_with_a_cure() -> None:
    with pytest.raises(ModelError, match="float32"):
        encode_symbols(np.zeros(3, np.float32))
    with pytest.raises(ModelError, match="2 contexts"):
        encode_symbols(np.zeros(3, np.uint8), contexts=np.zeros(2, np.uint8))
    with pytest.raises(ModelError, match="0 to 300"):
        encode_symbols(np.zeros(2, np.uint8), contexts=np.array([0, 300]))
