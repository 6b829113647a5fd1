"""Frequency tables of the entropy coder, in a few bits per symbol.

An exact table of 256 frequencies takes some 300 bytes, more than the weights of many layers. Here each symbol
has a level on a logarithmic scale, 0 for one that does not occur; the frequencies follow from the levels by
integer arithmetic, so they are equal on every machine. With 2 levels per octave a frequency is off by at most
19 %, which costs less than 0.01 bits per symbol; the encoder chooses the scale with the smallest result.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Sequence

import numpy as np

if TYPE_CHECKING:
    from .reading import Array

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
