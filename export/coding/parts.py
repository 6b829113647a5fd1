"""The writer of parts: a stream, and contexts for it where they save more than they cost.

The smaller the other weights of a row and a column, the more likely a weight is small or pruned: an input
without information has no weights left, a channel with a shared scale uses only some of its steps. So rows
and columns are sorted into classes by their means; the classes are written, and each pair of classes is a
context. The number of classes, and which pairs share a table, are chosen by counted bytes.
"""

from __future__ import annotations

import numpy as np

from ...targets.coded import records
from ...targets.protobuf import to_varint
from ..onnx_graph.graph import Array
from .entropy import encode_symbols
from .tables import counted, learned_bits

CLASSES = ((4, 4), (8, 8), (16, 1), (1, 16), (1, 4), (4, 1))
"""Numbers of classes of rows and columns to try."""
WORTH = 0.99  # of the bytes without contexts: the most that an estimate may be
LEAST = 512  # symbols: with fewer, contexts do not pay


def part(symbols: Array, strength: Array, rows: int) -> tuple[bytes, Array | None]:
    """The bytes of a part, and its contexts, if any.

    Args:
        symbols: the symbols, flat.
        strength: the magnitude of each; 0 and 1 for a mask.
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
        class_bytes = bytes([records.EXPLICIT]) + to_varint(rows)
        class_bytes += encode_symbols(row) + encode_symbols(column)
        contexts = (row[:, None] * np.uint8(int(column.max()) + 1) + column[None, :]).reshape(-1)
        tried.append((len(class_bytes) + learned_bits(counted(symbols, contexts)) / 8, class_bytes, contexts))
    promised, class_bytes, contexts = min(tried, key=lambda one: one[0])
    if promised > WORTH * len(plain):
        return best
    coded = class_bytes + encode_symbols(symbols, contexts=contexts)
    return min(best, (coded, contexts), key=lambda one: len(one[0]))


def within(symbols: Array, contexts: Array | None = None) -> bytes:
    """A part of the numbers inside a mask, with the mask's contexts where they help."""
    plain = bytes([records.PLAIN]) + encode_symbols(symbols)
    if contexts is None or len(symbols) < LEAST:
        return plain
    if learned_bits(counted(symbols, contexts)) / 8 > WORTH * len(plain):
        return plain
    return min(plain, bytes([records.AROUND]) + encode_symbols(symbols, contexts=contexts), key=len)


def _classes(means: Array, count: int) -> Array:
    """Classes of about equal size, in the order of their means; equal means share one."""
    _, place, sizes = np.unique(means, return_inverse=True, return_counts=True)
    wanted = (count * ((np.cumsum(sizes) - sizes / 2) / len(means))).astype(np.int64)
    classes: Array = np.unique(wanted, return_inverse=True)[1].reshape(-1)[place.reshape(-1)]
    return classes.astype(np.uint8)
