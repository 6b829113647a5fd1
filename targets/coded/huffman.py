"""Canonical Huffman codes, decoded for all lanes at a time (Huffman 1952; the coder of Han et al. 2016).

Lane i codes the symbols i, i + lanes, i + 2 lanes ... into bits of its own; the lanes' bits follow one
another without gaps, and their lengths stand before them. A step looks up the next 15 bits of every lane.
It is here to be compared with: rANS is not bound to whole bits and takes no more time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Sequence

import numpy as np

from .reading import damaged

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

LONGEST = 15  # bits of a code


def codes_of(lengths: Sequence[int]) -> Array:
    """The canonical codes, int64, of code lengths; 0 is a symbol that does not occur.

    Raises:
        ArtifactError: the lengths are no full prefix code.
    """
    held = np.asarray(lengths, np.int64)
    codes = np.zeros(len(held), np.int64)
    code = 0
    for length in range(1, LONGEST + 1):
        own = np.flatnonzero(held == length)
        codes[own] = code + np.arange(len(own))
        code = (code + len(own)) << 1
    if code != 2 << LONGEST:
        raise damaged("its code lengths are no Huffman code")
    return codes


def decode(
    lengths: Sequence[int], *, starts: Array, stream: Array, end: int, count: int, dtype: Any
) -> Array:
    """`count` symbols.

    Args:
        starts: the bit of `stream` that each lane begins at, int64, and after the last its `end`.
        stream: bytes, uint8.

    Raises:
        ArtifactError: a lane does not end where the next begins.
    """
    codes = codes_of(lengths)
    held = np.asarray(lengths, np.int64)
    order = np.lexsort((codes, held))
    order = order[held[order] > 0]  # canonical: by length, then by code, fills the table from its start
    wide = 1 << (LONGEST - held[order])
    symbol_at = np.repeat(order, wide).astype(dtype)
    length_at = np.repeat(held[order], wide)
    padded = np.concatenate([stream, np.zeros(4, np.uint8)]).astype(np.int64)
    windows = padded[:-2] << 16 | padded[1:-1] << 8 | padded[2:]  # the 24 bits from each byte on
    lanes = len(starts)
    place = starts.astype(np.int64)
    found = np.empty(count, dtype)
    byte, bits = np.empty(lanes, np.int64), np.empty(lanes, np.int64)
    for start in range(0, count, lanes):
        width = min(lanes, count - start)
        at, where, seen = place[:width], byte[:width], bits[:width]
        np.right_shift(at, 3, out=where)
        windows.take(where, out=seen, mode="clip")
        np.bitwise_and(at, 7, out=where)
        np.subtract(24 - LONGEST, where, out=where)
        np.right_shift(seen, where, out=seen)
        np.bitwise_and(seen, (1 << LONGEST) - 1, out=seen)
        symbol_at.take(seen, out=found[start : start + width], mode="clip")
        length_at.take(seen, out=where, mode="clip")
        np.add(at, where, out=at)
    if not np.array_equal(place, np.append(starts[1:], end)):
        raise damaged("a Huffman code does not end where it should")
    return found
