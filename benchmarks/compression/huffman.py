"""Canonical Huffman codes of at most 15 bits in place of rANS: a coder to compare with (Huffman 1952).

The coder of Han et al. 2016. rANS is not bound to whole bits and takes no more time, so the product has rANS
alone. Lane i codes the symbols i, i + lanes, i + 2 lanes ... into bits of its own; the lanes' bits follow one
another without gaps, and their lengths stand before them. A step decodes the next code of every lane. A
stream's body is

    varint: symbols; their code lengths (levels)
    varint: lanes; for each lane a varint, its bits; the bits of all, filled up to whole bytes
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
from collections.abc import Iterator, Sequence
from typing import Any
from unittest import mock

import numpy as np

from deadweight.export.coding import entropy, parts, tables
from deadweight.export.onnx_graph.graph import Array
from deadweight.targets.coded import records, streams
from deadweight.targets.coded.reading import Reader, damaged
from deadweight.targets.protobuf import to_varint

KIND = 3  # of a stream
LONGEST = 15  # bits of a code


def codes_of(lengths: Sequence[int]) -> Array:
    """The canonical codes, int64, of code lengths; 0 is a symbol that does not occur.

    Raises:
        ArtifactError: the lengths are no full prefix code.
    """
    held = np.asarray(lengths, np.int64)
    codes = np.zeros(len(held), np.int64)
    code = 0
    for length in range(1, LONGEST + 1):
        own = np.flatnonzero(held == length)
        codes[own] = code + np.arange(len(own))
        code = (code + len(own)) << 1
    if code != 2 << LONGEST:
        raise damaged("its code lengths are no Huffman code")
    return codes


def decode(
    lengths: Sequence[int], *, starts: Array, stream: Array, end: int, count: int, dtype: Any
) -> Array:
    """`count` symbols.

    Args:
        starts: the bit of `stream` that each lane begins at, int64, and after the last its `end`.
        stream: bytes, uint8.

    Raises:
        ArtifactError: a lane does not end where the next begins.
    """
    codes = codes_of(lengths)
    held = np.asarray(lengths, np.int64)
    order = np.lexsort((codes, held))
    order = order[held[order] > 0]  # canonical: by length, then by code, fills the table from its start
    wide = 1 << (LONGEST - held[order])
    symbol_at = np.repeat(order, wide).astype(dtype)
    length_at = np.repeat(held[order], wide)
    padded = np.concatenate([stream, np.zeros(4, np.uint8)]).astype(np.int64)
    windows = padded[:-2] << 16 | padded[1:-1] << 8 | padded[2:]  # the 24 bits from each byte on
    lanes = len(starts)
    place = starts.astype(np.int64)
    found = np.empty(count, dtype)
    byte, bits = np.empty(lanes, np.int64), np.empty(lanes, np.int64)
    for start in range(0, count, lanes):
        width = min(lanes, count - start)
        at, where, seen = place[:width], byte[:width], bits[:width]
        np.right_shift(at, 3, out=where)
        windows.take(where, out=seen, mode="clip")
        np.bitwise_and(at, 7, out=where)
        np.subtract(24 - LONGEST, where, out=where)
        np.right_shift(seen, where, out=seen)
        np.bitwise_and(seen, (1 << LONGEST) - 1, out=seen)
        symbol_at.take(seen, out=found[start : start + width], mode="clip")
        length_at.take(seen, out=where, mode="clip")
        np.add(at, where, out=at)
    if not np.array_equal(place, np.append(starts[1:], end)):
        raise damaged("a Huffman code does not end where it should")
    return found


@contextlib.contextmanager
def in_place_of_rans() -> Iterator[None]:
    """Within it, `encode_symbols`, `pack` and what reads them use Huffman codes, which have no contexts."""
    with (
        mock.patch.object(entropy, "_rans", _written),
        mock.patch.object(parts, "LEAST", 1 << 62),
        mock.patch.object(streams, "read_symbols", _read),
        mock.patch.object(records, "read_symbols", _read),
    ):
        yield


def _written(flat: Array, wide: int, contexts: Array | None) -> bytes:
    lengths = code_lengths(np.bincount(flat))
    lanes = entropy.lanes_for(len(flat), float(np.asarray(lengths)[flat].sum()) / 8)
    sizes, stream = encode(flat, lengths, lanes=lanes)
    return b"".join(
        (
            bytes([KIND | wide << 4]),
            *map(to_varint, (len(flat), len(lengths))),
            tables.level_bytes(lengths),
            *map(to_varint, (lanes, *sizes)),
            stream,
        )
    )


_READ = streams.read_symbols


def _read(reader: Reader, *, most: int, contexts: Array | None = None) -> Array:
    if not reader.left or reader.data[reader.at] & 15 != KIND:
        return _READ(reader, most=most, contexts=contexts)
    dtype = np.dtype("<u2" if reader.byte("the kind of a stream") & 16 else "u1")
    count = reader.number("the number of symbols", most=most)
    symbols = reader.number("the number of different symbols", least=2, most=1 << 8 * dtype.itemsize)
    lengths = reader.levels(symbols, "code lengths", most=LONGEST)
    lanes = reader.number("the number of lanes", least=1, most=streams.MOST_LANES)
    longest = -(-count // lanes) * LONGEST
    bits = [reader.number("the bits of a lane", most=min(longest, 8 * reader.left)) for _ in range(lanes)]
    ends = np.cumsum(np.asarray(bits, np.int64))
    end = int(ends[-1])
    stream = np.frombuffer(reader.take(-(-end // 8), "Huffman codes"), np.uint8)
    starts = np.concatenate([[0], ends[:-1]])
    return decode(lengths, starts=starts, stream=stream, end=end, count=count, dtype=dtype)


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
