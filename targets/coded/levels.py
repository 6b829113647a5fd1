"""Tables of frequencies, from a few bits a symbol.

An exact table of 256 frequencies takes some 300 bytes, more than many a layer has weights. Here each symbol
has a level on a logarithmic scale, 0 for one that does not occur; the frequencies follow from the levels by
whole-number arithmetic, so every machine gets the same. With 2 levels an octave a frequency is off by at
most 19 %, which costs less than 0.01 bits a symbol; the encoder chooses the scale that takes the least.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Sequence

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

OCTAVES = 16  # between the rarest and the commonest symbol of a table
FINEST = 8  # levels an octave
_ROOTS = np.rint(256 * 2 ** (np.arange(FINEST) / FINEST)).astype(np.int64)


def most_level(steps: int) -> int:
    """The highest level where an octave has `steps` of them."""
    return OCTAVES * steps


def cumulative(levels: Sequence[int], *, steps: int, bits: int) -> Array:
    """Cumulative frequencies, int64, one more than there are levels: from 0 to 2 ** bits.

    A symbol of a level above 0 has a frequency of 1 at least, whatever the others are; the caller sees to it
    that no more than 2 ** bits symbols have one. Without any the result is all zeros.
    """
    held = np.asarray(levels, np.int64)
    occurs = held > 0
    above = np.maximum(held - 1, 0)
    weights = np.where(occurs, _ROOTS[above % steps * (FINEST // steps)] << above // steps, 0)
    sums = np.zeros(len(held) + 1, np.int64)
    np.cumsum(weights, out=sums[1:])
    if not sums[-1]:
        return sums
    ones = np.zeros_like(sums)
    np.cumsum(occurs, out=ones[1:])
    shared: Array = sums * ((1 << bits) - ones[-1]) // sums[-1] + ones
    return shared
