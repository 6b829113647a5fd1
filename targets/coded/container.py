"""The reader of the container `.dwz`: a compressed ONNX file, restored byte for byte without onnx.

    bytes    what
    4        "DWZ1"
    32       SHA-256 of the rest
    varint   bytes of the ONNX file
    varint   bytes of its skeleton: the file without its tensors' numbers
    varint   bytes of the skeleton, deflated (RFC 1951, with the dictionary of `skeleton.dat`); those bytes
    varint   code books; for each: varint: numbers; byte: bytes of a number; a record
    varint   tensors; for each: varint: bytes of the skeleton before it; varint: numbers; byte: bytes of a
             number; a record

A tensor's numbers are inserted at their offset, so no protobuf is parsed on a board. Records are described in
`records.py`, streams in `streams.py`. A result larger than the limit, or than 4096 times its file, is refused
before it is decoded, and each size inside is checked against that of the whole.
"""

from __future__ import annotations

import hashlib
import pkgutil
import zlib
from pathlib import Path

from ..artifact import writing
from ..errors import ArtifactError, reported
from .reading import Bytes, Reader, damaged
from .records import WIDTHS, Numbers

MAGIC = b"DWZ1"
LARGEST = 1 << 31
MOST_RATIO = 4096
ALWAYS = 1 << 24  # result size in bytes that is allowed for any file
MOST_BOOKS = 4096
MOST_BOOK = 1 << 16
DICTIONARY = pkgutil.get_data(__name__, "skeleton.dat") or b""
"""Preset (RFC 1950, 2.2): the names that every exporter writes, of which a small network's graph mostly
consists. The most frequent are last, where references are shortest. A change makes another format and needs
another magic number."""


def unpack(data: Bytes, *, most: int = LARGEST) -> bytes:
    """The packed ONNX file.

    Args:
        most: its maximum size in bytes; a larger one is refused before memory is allocated.

    Raises:
        ArtifactError: the data is not such a container, is damaged, or exceeds the limit.
    """
    reader = Reader(data)
    if bytes(reader.data[:4]) != MAGIC:
        raise ArtifactError(
            f"This is not a .dwz file: it begins with {bytes(reader.data[:4])!r}.",
            "Make one: deadweight pack MODEL.",
        )
    reader.take(4, "the head")
    if hashlib.sha256(reader.data[36:]).digest() != bytes(reader.take(32, "the checksum")):
        raise damaged("its SHA-256 is wrong")
    limit = min(most, max(ALWAYS, MOST_RATIO * len(reader.data)))
    total = reader.number("the size of the model", most=LARGEST * 8)
    if total > limit:
        raise ArtifactError(
            f"The model has {total:,} bytes, but {limit:,} are allowed for this file.",
            "Unpack it with a higher limit, if you trust its source.",
        )
    size = reader.number("the size of the skeleton", most=total)
    deflated = reader.take(reader.number("the size of the skeleton", most=reader.left), "the skeleton")
    inflating = zlib.decompressobj(wbits=-15, zdict=DICTIONARY)
    try:
        skeleton = inflating.decompress(bytes(deflated), size + 1)
    except zlib.error as error:
        raise damaged(f"the skeleton: {error}") from error
    if len(skeleton) != size or not inflating.eof or inflating.unused_data:
        raise damaged(f"the skeleton has {len(skeleton)} bytes, not {size}")
    numbers = Numbers(reader)
    left = total - len(skeleton)
    for _ in range(reader.number("the number of code books", most=MOST_BOOKS)):
        count, width = _size(reader, MOST_BOOK)
        numbers.books.append(numbers.read(count, width))
    parts = []
    place = 0
    for _ in range(reader.number("the number of tensors", most=total)):
        gap = reader.number("the place of a tensor", most=len(skeleton) - place)
        count, width = _size(reader, left)
        if count * width > left:
            raise damaged("its tensors are larger than the model")
        left -= count * width
        numbers.tensors.append(numbers.read(count, width))
        parts += [skeleton[place : place + gap], numbers.tensors[-1].tobytes()]
        place += gap
    reader.done("the last tensor")
    if left:
        raise damaged(f"{left} bytes of the model are missing")
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


def _size(reader: Reader, most: int) -> "tuple[int, int]":
    count = reader.number("the numbers of a tensor", least=1, most=most)
    width = reader.byte("the bytes of a number")
    if width not in WIDTHS:
        raise damaged(f"numbers of {width} bytes")
    return count, width
