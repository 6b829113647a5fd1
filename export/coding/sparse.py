"""Where the weights are that were not pruned away: a bitmask, gaps or compressed rows, by counted bytes.

Gaps are the relative index of Han et al. 2016, "Deep Compression", section 2: a gap wider than the span takes
fillers. There each filler is a zero among the values too; here it is told in the gaps alone.
"""

from __future__ import annotations

import numpy as np

from ...targets.coded import records
from ..onnx_graph.graph import Array
from . import writing
from .entropy import encode_symbols
from .parts import part

SPANS = (3, 7, 15, 31, 63, 127, 255)


def places(kept: Array, rows: int) -> list[tuple[bytes, Array | None]]:
    """Each way to tell where `kept`, bool and flat, is true: its bytes, and the contexts of those places.

    Args:
        rows: the number of rows; it divides the number of places.
    """
    mask = kept.astype(np.uint8)
    coded, contexts = part(mask, mask, rows)
    around = None if contexts is None else contexts[kept]
    return [
        (bytes([records.MASK]) + coded, around),
        (gaps(kept, min(SPANS, key=lambda span: _bits(_symbols(kept, span)))), None),
        (compressed_rows(kept, rows), None),
    ]


def gaps(kept: Array, span: int) -> bytes:
    """Zeros before each place; a gap of `span` or more takes fillers of `span` zeros."""
    symbols = _symbols(kept, span)
    head = bytes([records.GAPS, span]) + writing.number(len(symbols))
    return head + encode_symbols(symbols)


def compressed_rows(kept: Array, rows: int) -> bytes:
    """How many there are in each row, and their columns."""
    grid = kept.reshape(rows, -1)
    column = np.nonzero(grid)[1]
    held = grid.sum(axis=1)
    return b"".join(
        (
            bytes([records.ROWS]),
            writing.number(rows),
            encode_symbols(_narrow(held)),
            encode_symbols(_narrow(column)),
        )
    )


def _symbols(kept: Array, span: int) -> Array:
    distance = np.diff(np.flatnonzero(kept), prepend=-1) - 1
    fillers, rest = np.divmod(distance, span)
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
