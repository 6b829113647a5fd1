"""The reader of the container `.dwz`: a packed ONNX file, restored byte for byte without onnx.

A `.dwz` is an xz stream with SHA-256 as its check. Its content is the ONNX file in another order, in which
xz finds more to save:

    bytes   what
    4       "DWZ2"
    8       bytes of the ONNX file
    4       bytes of the list of tensors; then the list, JSON
    ...     the skeleton: the ONNX file without its tensors' numbers
    ...     the numbers of each tensor

The list has for each tensor [skeleton bytes since the tensor before it, numbers, bytes of a number, rotated,
gaps, book]. Its numbers are

    gaps > 0    so many bytes, the zeros before each number that is not 0: 0 to 254, or 255 for that many
                zeros without a number after them; then come only the numbers that are not 0
    book > 0    the numbers of a code book, then for each number a byte: its index there
    book = 0    the numbers

Numbers are in byte planes, first the lowest byte of each; with `rotated`, for floats, the bits of a number
are rotated left by one, so that an exponent is one byte. A board parses no protobuf. Each size is checked
against that of the whole before memory is allocated.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any, List

import numpy as np

from ..artifact import json_of, writing
from ..errors import ArtifactError, reported
from .xz import Stream, damaged

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAGIC = b"DWZ2"
HEAD = struct.Struct("<4sQI")
LARGEST = 1 << 31
MOST_BOOK = 256
FILLER = 255
"""A gap that no number ends."""
_MOST_RATIO = 4096
_ALWAYS = 1 << 24  # result size in bytes that is allowed for any file
_WIDTHS = (1, 2, 4, 8)


def unpack(data: bytes, *, most: int = LARGEST) -> bytes:
    """The packed ONNX file.

    Args:
        most: its maximum size in bytes; a larger one, or one of more than 4096 times its packed size, is
            refused before memory is allocated.

    Raises:
        ArtifactError: the data is not such a container, is damaged, or exceeds the limit.
    """
    if data[:6] != b"\xfd7zXZ\0":
        again = "Unpack it with that version. " if data[:4] == b"DWZ1" else ""
        what = "of a deadweight before 0.3" if again else f"not a .dwz file: it begins with {data[:4]!r}"
        raise ArtifactError(f"This is {what}.", f"{again}Make one: deadweight pack MODEL.")
    stream = Stream(data)
    magic, total, size = HEAD.unpack(stream.take(HEAD.size))
    limit = min(most, max(_ALWAYS, _MOST_RATIO * len(data)))
    if magic != MAGIC:
        raise damaged("it is the xz of something else")
    if total > limit:
        raise ArtifactError(
            f"The model has {total:,} bytes, but {limit:,} are allowed for this file.",
            "Unpack it with a higher limit, if you trust its source.",
        )
    if size > total + 1024:
        raise damaged(f"a list of {size} bytes")
    tensors = _tensors(stream.take(size), total)
    skeleton = stream.take(total - sum(count * width for _, count, width, *_ in tensors))
    parts, place = [], 0
    for gap, *form in tensors:
        parts += [skeleton[place : place + gap], _numbers(stream, *form).tobytes()]
        place += gap
    stream.done()
    return b"".join([*parts, skeleton[place:]])


def unpack_file(path: Path, out: Path, *, most: int = LARGEST) -> Path:
    """Writes the ONNX file of a `.dwz` file, whole or not at all."""
    with reported(ArtifactError, f"{path} cannot be read", "Check the path."):
        data = Path(path).read_bytes()
    try:
        model = unpack(data, most=most)
    except ArtifactError as error:
        raise type(error)(f"{path}: {error.what}", error.cure) from error
    with writing(Path(out)) as beside:
        beside.write_bytes(model)
    return Path(out)


def _tensors(listed: bytes, total: int) -> List[List[int]]:
    """The list of tensors, checked: together they are not larger than the file."""
    try:
        tensors = json_of(listed)
        for tensor in tensors:
            if not all(isinstance(one, int) and 0 <= one <= total for one in tensor):
                raise ValueError("a size is out of range")
            _, count, width, rotated, gaps, book = tensor
            if width not in _WIDTHS or rotated > (width > 1) or gaps > count or book > MOST_BOOK:
                raise ValueError("a tensor of an unknown form")
        if sum(count * width for _, count, width, *_ in tensors) > total:
            raise ValueError("the tensors are larger than the model")
    except (ValueError, TypeError) as error:
        raise damaged(f"its list of tensors: {error}") from error
    return [[*map(int, tensor)] for tensor in tensors]


def _numbers(stream: Stream, count: int, width: int, rotated: int, gaps: int, book: int) -> "NDArray[Any]":
    """The `count` numbers of a tensor, unsigned."""
    places = None
    if gaps:
        zeros = np.frombuffer(stream.take(gaps), np.uint8)
        ends = np.cumsum(zeros.astype(np.int64) + (zeros < FILLER))
        places = ends[zeros < FILLER] - 1
        if ends[-1] > count:
            raise damaged("the gaps end outside the tensor")
    kept = count if places is None else len(places)
    if book:
        values = _planes(stream, book, width, rotated)
        index = np.frombuffer(stream.take(kept), np.uint8)
        if kept and int(index.max()) >= book:
            raise damaged("an index is outside its code book")
        numbers = values[index]
    else:
        numbers = _planes(stream, kept, width, rotated)
    if places is None:
        return numbers
    whole = np.zeros(count, numbers.dtype)
    whole[places] = numbers
    return whole


def _planes(stream: Stream, count: int, width: int, rotated: int) -> "NDArray[Any]":
    planes = np.frombuffer(stream.take(count * width), np.uint8).reshape(width, count)
    numbers = np.ascontiguousarray(planes.T).view(f"<u{width}").reshape(count)
    if rotated:
        numbers = numbers >> numbers.dtype.type(1) | numbers << numbers.dtype.type(8 * width - 1)
    return numbers
