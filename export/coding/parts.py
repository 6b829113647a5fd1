"""A part of a record: a stream, and contexts for it where they save more than they cost.

A weight is the likelier to be small, or gone, the smaller the others of its row and of its column are: an
input that says nothing has no weights left, a channel with one scale for all uses its steps as it may. So
rows and columns are sorted into classes by the mean of what stands in them; the classes are told, and each
pair of them is a context. How many classes, and which pairs share a table, is decided by counted bytes.
"""

from __future__ import annotations

import numpy as np

from ...targets.coded import records
from ..onnx_graph.graph import Array
from . import writing
from .entropy import encode_symbols
from .tables import learned_bits

CLASSES = ((4, 4), (8, 8), (16, 1), (1, 16), (1, 4), (4, 1))
"""How many classes of rows and of columns are tried."""
WORTH = 0.99  # of the bytes without contexts: what a quick look must promise
LEAST = 512  # symbols: fewer do not pay for contexts


def part(symbols: Array, strength: Array, rows: int) -> tuple[bytes, Array | None]:
    """The bytes of a part, and the contexts that it told, if any.

    Args:
        symbols: what is coded, flat.
        strength: how far each is from a symbol that says nothing: a magnitude, 0 and 1 for a mask.
        rows: the number of rows; it divides the number of symbols.
    """
    plain = encode_symbols(symbols)
    best: tuple[bytes, Array | None] = (bytes([records.PLAIN]) + plain, None)
    if len(symbols) < LEAST or len(plain) < len(symbols) // 512:
        return best
    grid = strength.reshape(rows, -1)
    by_row, by_column = grid.mean(axis=1), grid.mean(axis=0)
    tried = []
    for along, across in CLASSES:
        row, column = _classes(by_row, along), _classes(by_column, across)
        told = bytes([records.EXPLICIT]) + writing.number(rows) + encode_symbols(row) + encode_symbols(column)
        contexts = _pairs(row, column)
        tried.append((len(told) + learned_bits(_counts(symbols, contexts)) / 8, told, contexts))
    promised, told, contexts = min(tried, key=lambda one: one[0])
    if promised > WORTH * len(plain):
        return best
    made = told + encode_symbols(symbols, contexts=contexts)
    return min(best, (made, contexts), key=lambda one: len(one[0]))


def _pairs(row: Array, column: Array) -> Array:
    """The context of each place: the pair of its classes, as a number."""
    width = np.uint8(int(column.max()) + 1)
    found: Array = (row[:, None] * width + column[None, :]).reshape(-1)
    return found


def _counts(symbols: Array, contexts: Array) -> Array:
    wide = int(symbols.max()) + 1
    place = contexts.astype(np.int64) * wide + symbols
    return np.bincount(place, minlength=(int(contexts.max()) + 1) * wide).reshape(-1, wide)


def within(symbols: Array, contexts: Array | None = None) -> bytes:
    """A part of the numbers that a mask left, with the mask's contexts where they help."""
    plain = bytes([records.PLAIN]) + encode_symbols(symbols)
    if contexts is None or len(symbols) < LEAST:
        return plain
    if learned_bits(_counts(symbols, contexts)) / 8 > WORTH * len(plain):
        return plain
    return min(plain, bytes([records.AROUND]) + encode_symbols(symbols, contexts=contexts), key=len)


def _classes(means: Array, count: int) -> Array:
    """Classes of about equal numbers of members, in the order of their means; equal means share one."""
    _, place, held = np.unique(means, return_inverse=True, return_counts=True)
    middle = (np.cumsum(held) - held / 2) / len(means)
    wanted = (count * middle).astype(np.int64)
    found: Array = np.unique(wanted, return_inverse=True)[1].reshape(-1)[place.reshape(-1)]
    return found.astype(np.uint8)
