"""The reader of streams: one array of symbols with its kind of coding.

    byte     kind (low four bits), and bytes per symbol less one (bit 4)
    varint   number of symbols
    raw      the symbols, little endian
    constant varint: the only symbol
    rans     byte: table bits less one (low four bits), log2 of levels per octave (bits 4 and 5)
             varints: contexts, tables, symbols
             where contexts > 1, the table of each context (levels)
             each table: the levels of its symbols
             varints: lanes, words; the lanes' states, 32 bits each; the words, 16 bits each
    planes   two streams of bytes: all low bytes, then all high bytes

`export/coding/entropy.py` writes them.
"""

from __future__ import annotations

from typing import Any, Optional

import numpy as np

from . import rans
from .reading import Array, Bytes, Reader, damaged, outdated

RAW, CONSTANT, RANS, _HUFFMAN, PLANES = range(5)
MOST_CONTEXTS = 256
MOST_LANES = 1 << 13
MOST_STEPS = 1 << 15  # symbols of a lane: a small file cannot keep a board busy for long
MOST_SYMBOLS = MOST_LANES * MOST_STEPS


def decode_symbols(data: Bytes, *, most: int = MOST_SYMBOLS, contexts: Optional[Array] = None) -> Array:
    """The flat array, uint8 or uint16, that `encode_symbols` encoded.

    Args:
        most: the maximum number of symbols; more are refused before memory is allocated.
        contexts: those of the encoder, if any: integers from 0, one per symbol.

    Raises:
        ArtifactError: the bytes are damaged or have more than `most` symbols.
    """
    reader = Reader(data)
    symbols = read_symbols(reader, most=most, contexts=contexts)
    reader.done("a stream of symbols")
    return symbols


def read_symbols(reader: Reader, *, most: int, contexts: Optional[Array] = None) -> Array:
    """As `decode_symbols`, from the reader's position in other data."""
    kind = reader.byte("the kind of a stream")
    if kind & ~31 or kind & 15 > PLANES:
        raise damaged(f"there is no stream of kind {kind}")
    dtype = np.dtype("<u2" if kind & 16 else "u1")
    count = reader.number("the number of symbols", most=most)
    if contexts is not None and len(contexts) != count:
        raise damaged(f"it has {count} symbols, but {len(contexts)} contexts")
    kind &= 15
    if kind == RAW:
        return np.frombuffer(reader.take(count * dtype.itemsize, "raw symbols"), dtype).copy()
    if kind == CONSTANT:
        return np.full(count, reader.number("a symbol", most=(1 << 8 * dtype.itemsize) - 1), dtype)
    if kind == PLANES:
        if dtype.itemsize != 2:
            raise damaged("planes of single bytes")
        halves = [read_symbols(reader, most=count, contexts=contexts) for _ in range(2)]
        if any(half.dtype.itemsize != 1 or len(half) != count for half in halves):
            raise damaged("its planes have different lengths")
        return np.stack(halves, axis=1).reshape(-1).view(dtype)
    if kind == _HUFFMAN:
        raise outdated("Huffman codes")
    return _rans(reader, count, dtype, contexts)


def _rans(reader: Reader, count: int, dtype: Any, contexts: Optional[Array]) -> Array:
    head = reader.byte("the scale of tables")
    bits, steps = (head & 15) + 1, 1 << (head >> 4)
    if head >> 6:
        raise damaged(f"the scale of tables is {head}")
    classes = reader.number("the number of contexts", least=1, most=MOST_CONTEXTS)
    rows = reader.number("the number of tables", least=1, most=min(classes, rans.LARGEST_TABLES >> bits))
    symbols = reader.number("the number of different symbols", least=1, most=1 << 8 * dtype.itemsize)
    if rows * symbols > 8 * reader.left:
        raise damaged(f"{rows} tables of {symbols} symbols cannot be in {reader.left} bytes")
    table_of = reader.levels(classes, "the tables of contexts", most=rows - 1) if classes > 1 else [0]
    tables = read_tables(reader, rows, symbols, steps=steps, bits=bits)
    lanes = reader.number("the number of lanes", least=max(1, -(-count // MOST_STEPS)), most=MOST_LANES)
    length = reader.number("the number of words", most=reader.left // 2)
    states = np.frombuffer(reader.take(4 * lanes, "the states"), "<u4")
    words = np.frombuffer(reader.take(2 * length, "the words"), "<u2")
    chosen = None
    if classes > 1:
        if contexts is None or (count and int(contexts.max()) >= classes):
            raise damaged("it was coded with other contexts")
        chosen = np.asarray(table_of, np.uint8)[contexts]
    used = np.unique(chosen) if chosen is not None else [0]
    if count and any(not tables[row, -1] for row in used):
        raise damaged("a required table is empty")
    return rans.decode(
        tables, bits=bits, states=states, words=words, count=count, dtype=dtype, contexts=chosen
    )


def read_tables(reader: Reader, rows: int, symbols: int, *, steps: int, bits: int) -> Array:
    """Cumulative frequencies, int64 [rows, symbols + 1]; levels may be relative to the previous table."""
    tables = np.zeros((rows, symbols + 1), np.int64)
    before = [0] * symbols
    for row in range(rows):
        before = reader.levels(symbols, "a table", most=rans.most_level(steps), before=before)
        if sum(level > 0 for level in before) > 1 << bits:
            raise damaged(f"a table of {bits} bits has too many symbols")
        tables[row] = rans.cumulative(before, steps=steps, bits=bits)
    return tables
