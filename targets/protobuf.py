"""Protobuf's wire format: the fields of a message and their offsets, and varints.

A board and a CI gate have no onnx package, and the coder needs the offsets of tensors in the file.
"""

from __future__ import annotations

from typing import Iterator, Optional, Tuple, Union

Buffer = Union[bytes, memoryview]


def fields(data: Buffer, start: int, end: int) -> Iterator[Tuple[int, Optional[int], int, int]]:
    """The fields of a message at [start, end): number, value of a varint (else None), start and end.

    Raises:
        ValueError, IndexError: the bytes are not a message, or are truncated.
    """
    at = start
    while at < end:
        key, at = varint(data, at)
        kind = key & 7
        number = None
        if kind == 0:
            number, stop = varint(data, at)
        elif kind == 2:
            size, at = varint(data, at)
            stop = at + size
        elif kind in (1, 5):
            stop = at + (8 if kind == 1 else 4)
        else:
            raise ValueError(f"wire type {kind}")
        if stop > end:
            raise ValueError("truncated")
        yield key >> 3, number, at, stop
        at = stop


def varint(data: Buffer, at: int) -> Tuple[int, int]:
    """The number at an offset, and the offset after it."""
    number = shift = 0
    while True:
        byte = data[at]
        at += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, at
        shift += 7
        if shift > 63:
            raise ValueError("not a number")
