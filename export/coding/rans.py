"""Encoder of interleaved rANS, all lanes at once: inverse of `targets/coded/rans.py`, last symbol first."""

from __future__ import annotations

import numpy as np

from ...targets.coded.rans import LOWEST
from ...targets.coded.streams import MOST_LANES
from ..onnx_graph.graph import Array

LANE_BYTES = 768  # of coded symbols for each lane: its three bytes are then 0.4 %
WANTED_STEPS = 1 << 13  # for any size: a step costs the decoder as much as some hundred symbols


def lanes_for(count: int, size_bytes: float) -> int:
    """The number of lanes that is worth its bytes."""
    return max(1, min(max(int(size_bytes) // LANE_BYTES, -(-count // WANTED_STEPS)), count, MOST_LANES))


def encode(
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
