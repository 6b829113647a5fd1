"""The writer of the container `.dwz`: every tensor of an ONNX file in its smallest representation.

The packed file is restored byte for byte: each file is unpacked again before it is written. Packing is
lossless; lossy clustering changes the model before, and shows here as few different values. The format is
described in `targets/coded/container.py`.
"""

from __future__ import annotations

import functools
import hashlib
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...targets.artifact import writing as whole_file
from ...targets.coded import records
from ...targets.coded.container import DICTIONARY, LARGEST, MAGIC, MOST_BOOK, MOST_BOOKS, unpack
from ...targets.errors import ModelError
from ...targets.protobuf import to_varint
from ..onnx_graph.graph import Array
from .cutting import Tensor, tensors_of
from .parts import part, places_of, within

WAYS = ("planes", "book", "mask", "gaps", "rows", "same")
_FLOATS = {2: "<f2", 4: "<f4", 8: "<f8"}
_LEAST_ZEROS = 0.2  # of a tensor: with fewer, zeros are coded like other numbers


@dataclass(frozen=True)
class Packed:
    """A packed file.

    Attributes:
        tensors: for each its name, bytes before, bytes after, and the kind of its record.
        skeleton_bytes: the coded size of the graph without the numbers.
    """

    data: bytes
    tensors: tuple[tuple[str, int, int, str], ...]
    skeleton_bytes: int


def pack_file(path: Path, out: Path) -> Packed:
    """Packs an ONNX file; `out` appears whole or not at all.

    Raises:
        ModelError: it is not an ONNX file, has external weights, or is larger than 2 GB.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}.", "Check the path.") from error
    packed = pack(data, path)
    with whole_file(Path(out)) as beside:
        beside.write_bytes(packed.data)
    return packed


def pack(data: bytes, path: Path) -> Packed:
    """The container of a model's bytes.

    Args:
        path: their source, for messages.

    Raises:
        ModelError: as `pack_file`.
    """
    if len(data) > LARGEST:
        raise ModelError(f"{path} has {len(data):,} bytes.", f"A .dwz file allows at most {LARGEST:,}.")
    tensors = tensors_of(data, path)
    for tensor in tensors:
        if not tensor.end:
            raise ModelError(
                f'{path} has the weights of "{tensor.name}" in another file, but a .dwz contains one file.',
                "Merge it into one file first: onnx.save(onnx.load(path), out) for a model under 2 GB.",
            )
    numbers = [tensor.numbers(data) for tensor in tensors]
    books = [values for values in map(_few, numbers) if values is not None]
    shared = _union(books)
    choices = [[], [shared]] if shared is not None and len(books) > 1 else [[]]
    candidates = [_pack_with(data, tensors, numbers, books=chosen) for chosen in choices]
    best = min(candidates, key=lambda packed: len(packed.data))
    if unpack(best.data) != data:
        raise ModelError(
            f"{path} is not restored from its container.", "This is a bug in deadweight: report it."
        )
    return best


def _pack_with(
    data: bytes, tensors: Sequence[Tensor], numbers: Sequence[Array], *, books: Sequence[Array]
) -> Packed:
    """Packs with these shared code books; a tensor may add its own."""
    all_books = list(books)
    entries, facts, kept, place = [], [], [], 0
    before: dict[tuple[int, bytes], int] = {}  # by the hash of its numbers
    for index, (tensor, values) in enumerate(zip(tensors, numbers, strict=True)):
        earlier = before.setdefault((tensor.width, hashlib.sha256(values.data).digest()), index)
        if earlier < index:
            record, own = bytes([records.SAME]) + to_varint(earlier), None
        else:
            record, own = _smallest(tensor, values, all_books)
        if own is not None:
            all_books.append(own)
        entries.append(to_varint(tensor.start - place) + _size(len(values), tensor.width) + record)
        kept.append(data[place : tensor.start])
        place = tensor.end
        cost = len(entries[-1]) + (0 if own is None else len(_book(own)))
        facts.append((tensor.name, tensor.end - tensor.start, cost, WAYS[record[0]]))
    skeleton = b"".join([*kept, data[place:]])
    deflated = _deflated(skeleton)
    body = b"".join(
        (
            to_varint(len(data)),
            to_varint(len(skeleton)),
            to_varint(len(deflated)),
            deflated,
            to_varint(len(all_books)),
            *(_book(book) for book in all_books),
            to_varint(len(entries)),
            *entries,
        )
    )
    return Packed(MAGIC + hashlib.sha256(body).digest() + body, tuple(facts), len(deflated))


def _smallest(tensor: Tensor, values: Array, books: Sequence[Array]) -> tuple[bytes, Array | None]:
    """The record of a tensor's numbers, and the code book that it adds, if any."""
    rows = tensor.shape[0] if len(tensor.shape) > 1 else 1
    strength = _magnitude(tensor, values)
    candidates = _by_number(tensor, values, books, lambda symbols: part(symbols, strength, rows)[0])
    kept = values != 0
    if 1 - kept.mean() > _LEAST_ZEROS and len(values) > 64:
        some = values[kept]
        for places, around in places_of(kept, rows):
            inner = _by_number(tensor, some, books, functools.partial(within, contexts=around))
            candidates += [(places + record, own) for record, own in inner]
    return min(candidates, key=lambda made: len(made[0]) + (0 if made[1] is None else len(_book(made[1]))))


def _by_number(
    tensor: Tensor, values: Array, books: Sequence[Array], part_of: Callable[[Array], bytes]
) -> list[tuple[bytes, Array | None]]:
    """Records of single numbers: indices into a code book, if there are few values, or their bytes."""
    few = _few(values)
    made: list[tuple[bytes, Array | None]] = []
    if few is None or len(few) > len(values) // 8:
        made.append((_planes(tensor, values, part_of), None))
    if few is not None and len(books) < MOST_BOOKS:
        for number, book, own in _choices(few, books):
            index = np.searchsorted(book, values).astype(np.uint8 if len(book) <= 256 else np.uint16)
            made.append((bytes([records.BOOK]) + to_varint(number) + part_of(index), own))
    return made


def _choices(values: Array, books: Sequence[Array]) -> list[tuple[int, Array, Array | None]]:
    """Suitable code books: a shared one with all values, or a new one."""
    fitting = [
        (number, book, None)
        for number, book in enumerate(books)
        if book.dtype == values.dtype and np.isin(values, book).all()
    ]
    return [*fitting[:1], (len(books), values, values)]


def _planes(tensor: Tensor, values: Array, part_of: Callable[[Array], bytes]) -> bytes:
    """By byte plane; floats are rotated by a bit, so that an exponent is one byte."""
    rotated = int(tensor.dtype is not None)
    if rotated:
        values = values << values.dtype.type(1) | values >> values.dtype.type(8 * tensor.width - 1)
    planes = np.ascontiguousarray(values).view(np.uint8).reshape(-1, tensor.width)
    return bytes([records.PLANES, rotated]) + b"".join(map(part_of, np.ascontiguousarray(planes.T)))


def _magnitude(tensor: Tensor, values: Array) -> Array:
    if tensor.dtype:
        with np.errstate(invalid="ignore", over="ignore"):
            return np.nan_to_num(np.abs(values.view(tensor.dtype).astype(np.float64)), posinf=0.0)
    return np.asarray(np.abs(values.view(f"<i{tensor.width}").astype(np.float64)))


def _few(values: Array) -> Array | None:
    """The sorted distinct numbers, if there are few enough for a code book."""
    if values.dtype.itemsize == 1 or len(values) < 16:
        return None
    if len(values) > 1 << 16 and len(np.unique(values[:: len(values) >> 14])) > 1 << 12:
        return None  # a sample shows that there are many
    distinct: Array = np.unique(values)
    return distinct if len(distinct) <= min(MOST_BOOK, 1 << 12, len(values) // 2) else None


def _union(books: Sequence[Array]) -> Array | None:
    """One code book for all tensors of the largest code book's width, if it is not too large."""
    if not books:
        return None
    widest = max(books, key=len)
    alike = [book for book in books if book.dtype == widest.dtype]
    distinct: Array = np.unique(np.concatenate(alike))
    return distinct if len(distinct) < 0.9 * sum(map(len, alike)) and len(distinct) <= 1 << 12 else None


def _book(values: Array) -> bytes:
    width = values.dtype.itemsize
    plain = Tensor("", (), 0, 0, width, _FLOATS.get(width))
    return _size(len(values), width) + _planes(plain, values, within)


def _size(count: int, width: int) -> bytes:
    return to_varint(count) + bytes([width])


def _deflated(skeleton: bytes) -> bytes:
    made = []
    for level in (9, 6):
        deflating = zlib.compressobj(level, zlib.DEFLATED, -15, 9, zlib.Z_DEFAULT_STRATEGY, DICTIONARY)
        made.append(deflating.compress(skeleton) + deflating.flush())
    return min(made, key=len)
