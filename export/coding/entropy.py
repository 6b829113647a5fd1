"""The entropy coder: symbols to bytes in the smallest form, including tables, states and padding.

An entropy coder makes small arrays larger, by its table. So each array is coded in every suitable form and
the smallest is used; its first byte is the form (`targets/coded/streams.py`).
"""

from __future__ import annotations

import numpy as np

from ...targets.coded import streams
from ...targets.coded.rans import LOWEST
from ...targets.coded.streams import MOST_LANES
from ...targets.errors import ModelError
from ...targets.protobuf import to_varint
from ..onnx_graph.graph import Array
from .tables import counted, fitted, level_bytes

MOST_DIFFERENT = 4096  # symbols of one table: with more, the table costs more than it saves
MOST_IN_CONTEXT = 256  # the same where there may be a table for each context
LANE_BYTES = 768  # of coded symbols for each lane: its three bytes are then 0.4 %
WANTED_STEPS = 1 << 13  # for any size: a step costs the decoder as much as some hundred symbols


def encode_symbols(symbols: Array, *, contexts: Array | None = None) -> bytes:
    """The smallest stream from which `decode_symbols` restores these symbols.

    Args:
        symbols: uint8 or uint16, of any shape; it is coded flat, row by row.
        contexts: what the decoder knows of each symbol before it reads it, as integers 0 to 255: symbols in
            one context share a table. Contexts without information cost nothing.

    Raises:
        ModelError: symbols of another type, or contexts that do not fit them.
    """
    flat = np.ascontiguousarray(symbols).reshape(-1)
    if flat.dtype not in (np.dtype(np.uint8), np.dtype(np.uint16)):
        raise ModelError(
            f"Symbols of type {flat.dtype} cannot be coded.",
            "Give uint8 or uint16, e.g. array.view('uint8').",
        )
    known = None if contexts is None else _checked(contexts, len(flat))
    wide = flat.dtype.itemsize - 1
    head = bytes([streams.RAW | wide << 4]) + to_varint(len(flat))
    made = [head + flat.astype(flat.dtype.newbyteorder("<")).tobytes()]
    if len(flat) and (flat == flat[0]).all():
        made.append(_head(streams.CONSTANT, wide, len(flat)) + to_varint(int(flat[0])))
    elif len(flat) > 1:
        if len(np.unique(flat)) <= MOST_DIFFERENT:
            made.append(_rans(flat, wide, known))
        if wide:
            halves = flat.astype("<u2").view(np.uint8).reshape(-1, 2)
            parts = [encode_symbols(halves[:, half], contexts=known) for half in range(2)]
            made.append(_head(streams.PLANES, wide, len(flat)) + b"".join(parts))
    return min(made, key=len)


def _rans(flat: Array, wide: int, contexts: Array | None) -> bytes:
    symbols = int(flat.max()) + 1
    contexts = contexts if symbols <= MOST_IN_CONTEXT else None
    counts = np.bincount(flat)[None] if contexts is None else counted(flat, contexts)
    classes, tables = len(counts), fitted(counts)
    alone = len(tables.rows) == 1
    lanes = lanes_for(len(flat), tables.cost_bits / 8)
    rows = None if alone or contexts is None else np.asarray(tables.table_of)[contexts]
    states, words = encode_lanes(flat, tables.rows, bits=tables.bits, lanes=lanes, tables=rows)
    coded = tables.coded
    if alone and classes > 1:
        coded = coded[len(level_bytes(tables.table_of)) :]
        classes = 1
    return b"".join(
        (
            _head(streams.RANS, wide, len(flat)),
            bytes([tables.bits - 1 | (tables.steps.bit_length() - 1) << 4]),
            *map(to_varint, (classes, len(tables.rows), symbols)),
            coded,
            *map(to_varint, (lanes, len(words))),
            states.tobytes(),
            words.tobytes(),
        )
    )


def _head(kind: int, wide: int, count: int) -> bytes:
    return bytes([kind | wide << 4]) + to_varint(count)


def _checked(contexts: Array, count: int) -> Array:
    flat = np.ascontiguousarray(contexts).reshape(-1)
    if len(flat) != count or flat.dtype.kind not in "ui":
        raise ModelError(
            f"{len(flat)} contexts of type {flat.dtype} were given for {count} symbols.",
            "Give an integer for each.",
        )
    if count and (int(flat.min()) < 0 or int(flat.max()) >= streams.MOST_CONTEXTS):
        raise ModelError(
            f"Contexts from {flat.min()} to {flat.max()} were given.",
            f"Number them from 0 to {streams.MOST_CONTEXTS - 1}.",
        )
    return flat.astype(np.uint8)


def lanes_for(count: int, size_bytes: float) -> int:
    """The number of lanes that is worth its bytes."""
    return max(1, min(max(int(size_bytes) // LANE_BYTES, -(-count // WANTED_STEPS)), count, MOST_LANES))


def encode_lanes(
    symbols: Array, rows: Array, *, bits: int, lanes: int, tables: Array | None = None
) -> tuple[Array, Array]:
    """The lanes' states (uint32) and the words (uint16) that decode to `symbols`.

    Args:
        rows: cumulative frequencies, int64 [tables, symbols + 1]; every occurring symbol has one above 0.
        tables: the row for each symbol; by default row 0.
    """
    frequencies = np.diff(rows, axis=1).reshape(-1)
    begins = rows[:, :-1].reshape(-1)
    place = symbols.astype(np.int64)
    if tables is not None:
        place = place + tables.astype(np.int64) * (rows.shape[1] - 1)
    states = np.full(lanes, LOWEST, np.int64)
    words = []
    for start in range((len(place) - 1) // lanes * lanes, -1, -lanes):
        step = place[start : start + lanes]
        x, frequency = states[: len(step)], frequencies[step]
        full = (x >= frequency << (32 - bits)).nonzero()[0]
        words.append((x[full] & 0xFFFF).astype("<u2"))
        x[full] >>= 16
        whole, rest = np.divmod(x, frequency)
        x[:] = (whole << bits) + rest + begins[step]
    return states.astype("<u4"), np.concatenate(words[::-1]) if words else np.zeros(0, "<u2")
