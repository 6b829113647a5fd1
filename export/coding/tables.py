"""The tables of the entropy coder, chosen for the smallest sum of tables and symbols.

Contexts with similar distributions share a table (merged pair by pair, as in Ward 1963, by the bytes that a
merger costs), and frequencies are on the scale of 1 to 8 levels per octave that makes table and symbols
together the smallest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import gammaln

from ...targets.coded import rans
from ...targets.coded.rans import cumulative, most_level
from ..onnx_graph.graph import Array

LEVEL_BITS = 3.0  # estimated size of a symbol in a table, before the tables are chosen
SCALES = (1, 2, 4, 8)


@dataclass(frozen=True)
class Tables:
    """Chosen tables.

    Attributes:
        rows: cumulative frequencies, int64 [tables, symbols + 1].
        table_of: the row for each context.
        bits: the frequencies of a row add up to 2 ** bits.
        steps: levels per octave.
        coded: their bytes.
        cost_bits: the size of the symbols with them, without the tables.
    """

    rows: Array
    table_of: list[int]
    bits: int
    steps: int
    coded: bytes
    cost_bits: float

    @property
    def size_bytes(self) -> float:
        """The size of tables and symbols."""
        return len(self.coded) + self.cost_bits / 8


def counted(symbols: Array, contexts: Array) -> Array:
    """How often each symbol occurs in each context, int64 [contexts, symbols]."""
    wide = int(symbols.max()) + 1
    place = contexts.astype(np.int64) * wide + symbols
    return np.bincount(place, minlength=(int(contexts.max()) + 1) * wide).reshape(-1, wide)


def learned_bits(counts: Array) -> float:
    """An estimate of the symbols' size with adaptive tables for each context.

    Counts are int64 [contexts, symbols]. Each occurring symbol starts with a count of a half (Krichevsky and
    Trofimov 1981).
    """
    occurring = counts[:, counts.sum(axis=0) > 0].astype(np.float64)
    half = 0.5 * occurring.shape[1]
    sums = occurring.sum(axis=1)
    nats = gammaln(sums + half) - gammaln(half)
    nats -= (gammaln(occurring + 0.5) - gammaln(0.5)).sum(axis=1)
    return float(nats.sum() / np.log(2))


def fitted(counts: Array) -> Tables:
    """The smallest tables for counts, int64 [contexts, symbols], of each symbol in each context.

    Raises:
        ValueError: there are more distinct symbols than entries of a table.
    """
    candidates = [np.zeros(len(counts), np.int64)]
    if len(counts) > 1:
        candidates.append(merged(counts))
    made = []
    for table_of in candidates:
        rows = np.zeros((int(table_of.max()) + 1, counts.shape[1]), np.int64)
        np.add.at(rows, table_of, counts)
        made += [_at_scale(rows, table_of, steps) for steps in SCALES]
    return min(made, key=lambda tables: tables.size_bytes)


def merged(counts: Array) -> Array:
    """The table of each context; tables are numbered in the order of their first contexts."""
    some = np.flatnonzero(counts.sum(axis=1))
    table_of = np.zeros(len(counts), np.int64)
    table_of[some] = _merge(counts[np.ix_(some, np.flatnonzero(counts.sum(axis=0)))])
    return table_of


def _merge(counts: Array) -> Array:
    group = np.arange(len(counts))
    sums_of = counts.astype(np.float64)
    cost = np.array([_bits(row) for row in sums_of])
    alive = np.ones(len(counts), bool)
    gain = np.full((len(counts), len(counts)), -np.inf)
    for one in range(len(counts) - 1):
        gain[one, one + 1 :] = _gains(sums_of[one], cost[one], sums_of[one + 1 :], cost[one + 1 :])
    while True:
        one, other = divmod(int(np.argmax(gain)), len(counts))
        if not gain[one, other] > 0:
            break
        sums_of[one] += sums_of[other]
        cost[one] = _bits(sums_of[one])
        group[group == other] = one
        alive[other] = False
        gain[other, :] = gain[:, other] = -np.inf
        fresh = np.where(alive, _gains(sums_of[one], cost[one], sums_of, cost), -np.inf)
        gain[one, one + 1 :] = fresh[one + 1 :]
        gain[:one, one] = fresh[:one]
    return np.asarray(np.unique(group, return_inverse=True)[1].reshape(-1))


def _gains(row: Array, cost: float, rows: Array, costs: Array) -> Array:
    """Bits saved by merging `row` with each of `rows`."""
    together = rows + row
    sums = together.sum(axis=1)
    logs = np.log2(np.where(together > 0, together, 1))
    ideal = sums * np.log2(np.where(sums > 0, sums, 1)) - (together * logs).sum(axis=1)
    return np.asarray(cost + costs - ideal - (LEVEL_BITS * (together > 0).sum(axis=1) + 8))


def _bits(row: Array) -> float:
    """The size in bits of symbols with these counts, and of their table."""
    some = row[row > 0]
    total = some.sum()
    return float(total * np.log2(max(total, 1)) - (some * np.log2(some)).sum() + LEVEL_BITS * len(some) + 8)


def _at_scale(rows: Array, table_of: Array, steps: int) -> Tables:
    levels = [_levels(row, steps) for row in rows]
    # A decoder expands the tables, which should not take longer than the symbols.
    room = min(max(int(rows.sum()) // 4, 1 << 11), rans.LARGEST_TABLES) // len(rows)
    most = max(int(np.count_nonzero(row)) for row in rows)
    bits = min(max(room.bit_length() - 1, most.bit_length() + 1), 15)
    if most > 1 << bits or len(rows) << bits > rans.LARGEST_TABLES:
        raise ValueError(f"{most} different symbols in {len(rows)} tables")
    made = np.stack([cumulative(row, steps=steps, bits=bits) for row in levels])
    cost = -float((rows * np.log2(np.where(rows > 0, np.diff(made, axis=1) / (1 << bits), 1))).sum())
    return Tables(made, table_of.tolist(), bits, steps, _coded(levels, table_of), cost)


def _levels(row: Array, steps: int) -> list[int]:
    some = row > 0
    if not some.any():
        return [0] * len(row)
    top = most_level(steps)
    least = max(float(row[some].min()), row.max() / 2 ** ((top - 1) / steps))
    scaled = np.rint(steps * np.log2(np.maximum(np.where(some, row, 1) / least, 1.0)))
    return [int(level) for level in np.where(some, np.minimum(scaled + 1, top), 0)]


def _coded(levels: list[list[int]], table_of: Array) -> bytes:
    made = level_bytes(table_of.tolist()) if len(table_of) > 1 else b""
    for before, row in zip([[0] * len(levels[0]), *levels[:-1]], levels, strict=True):
        made += level_bytes(row, before=before)
    return made


def level_bytes(values: Sequence[int], *, before: Sequence[int] | None = None) -> bytes:
    """Integers, 0 or more, with the Rice parameter and the prediction of the smallest result."""
    kinds = [(0, [_zigzag(value - last) for last, value in zip([0, *values[:-1]], values, strict=True)])]
    if before is not None:
        kinds.append((16, [_zigzag(value - old) for old, value in zip(before, values, strict=True)]))
    size, head, rice, codes = min(
        (sum((code >> rice) + 1 + rice for code in codes), head, rice, codes)
        for head, codes in kinds
        for rice in range(8)
    )
    bits = "".join(
        "1" * (code >> rice) + "0" + (f"{code & ((1 << rice) - 1):0{rice}b}" if rice else "")
        for code in codes
    )
    whole = -(-size // 8)
    return bytes([head | rice]) + int(bits.ljust(8 * whole, "0") or "0", 2).to_bytes(whole, "big")


def _zigzag(value: int) -> int:
    return value << 1 if value >= 0 else (-value << 1) - 1
