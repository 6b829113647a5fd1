"""Positions of unpruned weights: a bitmask, gaps or compressed rows, the smallest by counted bytes.

Gaps are the relative index of Han et al. 2016, "Deep Compression", section 2: a gap wider than the span needs
fillers. There each filler is also a zero among the values; here it is only in the gaps.
"""

from __future__ import annotations

import numpy as np

from ...targets.coded import records
from ...targets.protobuf import to_varint
from ..onnx_graph.graph import Array
from .entropy import encode_symbols
from .parts import part

SPANS = (3, 7, 15, 31, 63, 127, 255)


def places(kept: Array, rows: int) -> list[tuple[bytes, Array | None]]:
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
