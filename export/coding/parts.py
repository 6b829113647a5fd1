"""The writer of parts: a stream, and contexts for it where they save more than they cost.

The smaller the other weights of a row and a column, the more likely a weight is small or pruned: an input
without information has no weights left, a channel with a shared scale uses only some of its steps. So rows
and columns are sorted into classes by their means; the classes are written, and each pair of classes is a
context. The number of classes, and which pairs share a table, are chosen by counted bytes.

Positions of unpruned weights are a bitmask, gaps or compressed rows, the smallest by counted bytes. Gaps are
the relative index of Han et al. 2016, "Deep Compression", section 2: a gap wider than the span needs fillers.
There each filler is also a zero among the values; here it is only in the gaps.
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
SPANS = (3, 7, 15, 31, 63, 127, 255)
"""Numbers of zeros that one gap can have, to try."""
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


def places_of(kept: Array, rows: int) -> list[tuple[bytes, Array | None]]:
    """Each coding of where `kept`, bool and flat, is true: its bytes, and the contexts there.

    Args:
        rows: the number of rows; it divides the number of elements.
    """
    mask = kept.astype(np.uint8)
    coded, contexts = part(mask, mask, rows)
    return [
        (bytes([records.MASK]) + coded, None if contexts is None else contexts[kept]),
        (gaps(kept, min(SPANS, key=lambda span: _bits(_symbols(kept, span)))), None),
        (compressed_rows(kept, rows), None),
    ]


def gaps(kept: Array, span: int) -> bytes:
    """Zeros before each kept weight; a gap of `span` or more needs fillers of `span` zeros."""
    symbols = _symbols(kept, span)
    return bytes([records.GAPS, span]) + to_varint(len(symbols)) + encode_symbols(symbols)


def compressed_rows(kept: Array, rows: int) -> bytes:
    """The number of kept weights in each row, and their columns."""
    grid = kept.reshape(rows, -1)
    lengths, column = grid.sum(axis=1), np.nonzero(grid)[1]
    coded = encode_symbols(_narrow(lengths)) + encode_symbols(_narrow(column))
    return bytes([records.ROWS]) + to_varint(rows) + coded


def _symbols(kept: Array, span: int) -> Array:
    fillers, rest = np.divmod(np.diff(np.flatnonzero(kept), prepend=-1) - 1, span)
    ends = np.cumsum(fillers + 1)
    symbols = np.full(int(ends[-1]) if len(ends) else 0, span, np.uint8)
    symbols[ends - 1] = rest
    return symbols


def _bits(symbols: Array) -> float:
    counts = np.bincount(symbols)
    counts = counts[counts > 0]
    return float(-(counts * np.log2(counts / max(counts.sum(), 1))).sum())


def _narrow(values: Array) -> Array:
    return values.astype(np.uint8 if not len(values) or int(values.max()) < 256 else np.uint16)
