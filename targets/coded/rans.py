"""Decoder of interleaved rANS, all lanes at once (Duda 2013; Giesen 2014, "Interleaved entropy coders").

Lane i has a state of 32 bits and codes the symbols i, i + lanes, i + 2 lanes ...; all lanes read from one
sequence of 16-bit words, in the lanes' order within a step. A step of the decoder is a dozen numpy calls for
`lanes` symbols, and a lane costs three bytes. A symbol's table may depend on its context, which must be known
before the stream is read.

An exact table of 256 frequencies takes some 300 bytes, more than the weights of many layers. So each symbol
has a level on a logarithmic scale, 0 for one that does not occur; the frequencies follow from the levels by
integer arithmetic, so they are equal on every machine. With 2 levels per octave a frequency is off by at most
19 %, which costs less than 0.01 bits per symbol; the encoder chooses the scale with the smallest result.
"""

from __future__ import annotations

from typing import Any, Optional, Sequence

import numpy as np

from .reading import Array, damaged

LOWEST = 1 << 16  # states stay in 2 ** 16 to 2 ** 32; encoding starts here and decoding must end here
LARGEST_TABLES = 1 << 18  # entries of all tables together, which should fit into the cache
OCTAVES = 16  # between the rarest and the most frequent symbol of a table
FINEST = 8  # levels per octave
_ROOTS = np.rint(256 * 2 ** (np.arange(FINEST) / FINEST)).astype(np.int64)


def most_level(steps: int) -> int:
    """The highest level with `steps` levels per octave."""
    return OCTAVES * steps


def cumulative(levels: Sequence[int], *, steps: int, bits: int) -> Array:
    """Cumulative frequencies, int64, one more than there are levels: from 0 to 2 ** bits.

    A symbol of a level above 0 has a frequency of at least 1; the caller ensures that at most 2 ** bits
    symbols have one. Without any, the result is all zeros.
    """
    level = np.asarray(levels, np.int64)
    occurs = level > 0
    above = np.maximum(level - 1, 0)
    weights = np.where(occurs, _ROOTS[above % steps * (FINEST // steps)] << above // steps, 0)
    sums = np.zeros(len(level) + 1, np.int64)
    np.cumsum(weights, out=sums[1:])
    if not sums[-1]:
        return sums
    ones = np.zeros_like(sums)
    np.cumsum(occurs, out=ones[1:])
    shared: Array = sums * ((1 << bits) - ones[-1]) // sums[-1] + ones
    return shared


def decode(
    tables: Array,
    *,
    bits: int,
    states: Array,
    words: Array,
    count: int,
    dtype: Any,
    contexts: Optional[Array] = None,
) -> Array:
    """`count` symbols.

    Args:
        tables: cumulative frequencies, int64 [tables, symbols + 1]; each row goes from 0 to 2 ** bits.
        states: the initial state of each lane, 32-bit numbers.
        words: 16-bit numbers.
        contexts: the row of `tables` for each symbol; by default row 0.
    """
    lanes, slots = len(states), 1 << bits
    symbol_at, frequency_at, offset_at = _by_slot(tables, slots, dtype)
    state = states.astype(np.int64)
    if not ((state >= LOWEST) & (state < 1 << 32)).all():
        raise damaged("a state of the entropy coder is out of range")
    # Words past the end read as zeros, so that an overrun is detected once, at the end.
    waiting = np.concatenate([words.astype(np.int64), np.zeros(lanes, np.int64)])
    decoded = np.empty(count, dtype)
    slot, factor = np.empty(lanes, np.int64), np.empty(lanes, np.int64)
    at = 0
    for start in range(0, count, lanes):
        width = min(lanes, count - start)
        x, place, numbers = state[:width], slot[:width], factor[:width]
        np.bitwise_and(x, slots - 1, out=place)
        if contexts is not None:
            numbers[:] = contexts[start : start + width]
            place += np.left_shift(numbers, bits, out=numbers)
        symbol_at.take(place, out=decoded[start : start + width], mode="clip")
        np.right_shift(x, bits, out=x)
        frequency_at.take(place, out=numbers, mode="clip")
        np.multiply(x, numbers, out=x)
        offset_at.take(place, out=numbers, mode="clip")
        np.add(x, numbers, out=x)
        low = (x < LOWEST).nonzero()[0]  # flatnonzero takes three times as long for few lanes
        if len(low):
            if at > len(words):
                break
            x[low] = (x[low] << 16) | waiting[at : at + len(low)]
            at += len(low)
    if at != len(words) or (state != LOWEST).any():
        raise damaged("the entropy coder does not end where its symbols do")
    return decoded


def _by_slot(tables: Array, slots: int, dtype: Any) -> Any:
    """For each slot of each table: the symbol, its frequency, and the place within it."""
    frequencies = np.diff(tables, axis=1)
    rows, symbols = frequencies.shape
    empty = frequencies.sum(axis=1) == 0
    frequencies[empty, 0] = slots  # never read: the caller refuses contexts without a table
    flat = frequencies.reshape(-1)
    symbol_at = np.repeat(np.tile(np.arange(symbols), rows), flat).astype(dtype)
    offset_at = np.tile(np.arange(slots), rows) - np.repeat(tables[:, :-1].reshape(-1), flat)
    return symbol_at, np.repeat(flat, flat), offset_at
