"""Protobuf's wire format, as far as an ONNX file is read without the onnx package: its fields' places.

A board and a CI gate have no onnx, and what cuts numbers out of a file must know their places in its bytes.
"""

from __future__ import annotations

from typing import Iterator, Optional, Tuple, Union

Buffer = Union[bytes, memoryview]


def fields(data: Buffer, start: int, end: int) -> Iterator[Tuple[int, Optional[int], int, int]]:
    """Of a message at [start, end): a field's number, its value where that is a varint, and its place.

    Raises:
        ValueError, IndexError: the bytes are no message, or are cut short.
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
            raise ValueError("cut short")
        yield key >> 3, number, at, stop
        at = stop


def varint(data: Buffer, at: int) -> Tuple[int, int]:
    """A number at a place, and the place behind it.

    Raises:
        ValueError, IndexError: there is none.
    """
    number = shift = 0
    while True:
        byte = data[at]
        at += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, at
        shift += 7
        if shift > 63:
            raise ValueError("no number")
