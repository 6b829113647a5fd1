"""Canonical Huffman codes of at most 15 bits, written in lanes for `targets/coded/huffman.py`."""

from __future__ import annotations

import heapq
import itertools

import numpy as np

from ...targets.coded.huffman import LONGEST, codes_of
from ..graph import Array


def code_lengths(counts: Array) -> list[int]:
    """The bits of each symbol's code; 0 for one that does not occur. At least two symbols must occur.

    Where a code would be longer than 15 bits, rare symbols are counted as less rare until none is.
    """
    held = counts.astype(np.int64)
    while True:
        lengths = _plain_lengths(held)
        if max(lengths) <= LONGEST:
            return lengths
        held = np.where(held > 0, (held >> 1) + 1, 0)


def encode(symbols: Array, lengths: list[int], *, lanes: int) -> tuple[list[int], bytes]:
    """The bits of each lane, and the lanes' codes one after another."""
    codes = codes_of(lengths)
    long = np.asarray(lengths, np.int64)
    sizes, parts = [], []
    for lane in range(lanes):
        own = symbols[lane::lanes]
        length = long[own]
        # Every code as 15 bits, of which the last `length` count.
        bits = (codes[own][:, None] >> np.arange(LONGEST - 1, -1, -1)) & 1
        wanted = np.arange(LONGEST - 1, -1, -1)[None, :] < length[:, None]
        parts.append(bits[wanted].astype(np.uint8))
        sizes.append(len(parts[-1]))
    return sizes, np.packbits(np.concatenate(parts)).tobytes()


def _plain_lengths(counts: Array) -> list[int]:
    order = itertools.count()
    waiting: list[tuple[int, int, list[int]]] = [
        (int(count), next(order), [symbol]) for symbol, count in enumerate(counts) if count
    ]
    heapq.heapify(waiting)
    lengths = [0] * len(counts)
    while len(waiting) > 1:
        low, _, left = heapq.heappop(waiting)
        high, _, right = heapq.heappop(waiting)
        for symbol in itertools.chain(left, right):
            lengths[symbol] += 1
        heapq.heappush(waiting, (low + high, next(order), left + right))
    return lengths
