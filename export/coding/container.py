"""The writer of the container `.dwz`: an ONNX file in the order that xz packs best.

Weights that share values become a code book and indices, pruned ones the gaps between what is left (the
relative index of Han et al. 2016, "Deep Compression", section 2), floats their byte planes. Packing is
lossless, and each file is unpacked again before it is written; lossy clustering changes the model before. The
format is described in `targets/coded/container.py`.
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ...targets.artifact import writing
from ...targets.coded.container import FILLER, HEAD, LARGEST, MAGIC, MOST_BOOK, unpack
from ...targets.errors import ModelError
from ..onnx_graph.graph import Array
from .cutting import Tensor, tensors_of

_LEAST_ZEROS = 0.2  # of a tensor: with fewer, zeros are coded like other numbers
_DICTIONARY_BYTES = 1 << 24  # what a reader needs of memory; larger ones gain little


def pack_file(path: Path, out: Path) -> int:
    """Packs an ONNX file; `out` appears whole or not at all. Returns its size in bytes.

    Raises:
        ModelError: it is not an ONNX file, has external weights, or is larger than 2 GB.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}.", "Check the path.") from error
    packed = pack(data, path)
    with writing(Path(out)) as beside:
        beside.write_bytes(packed)
    return len(packed)


def pack(data: bytes, path: Path) -> bytes:
    """The container of a model's bytes.

    Args:
        path: their source, for messages.

    Raises:
        ModelError: as `pack_file`.
    """
    if len(data) > LARGEST:
        raise ModelError(f"{path} has {len(data):,} bytes.", f"A .dwz file allows at most {LARGEST:,}.")
    listed, skeleton, numbers, place = [], [], [], 0
    for tensor in tensors_of(data, path):
        if not tensor.end:
            raise ModelError(
                f'{path} has the weights of "{tensor.name}" in another file, but a .dwz contains one file.',
                "Merge it into one file first: onnx.save(onnx.load(path), out) for a model under 2 GB.",
            )
        values = tensor.numbers(data)
        gaps, book, parts = min(_forms(tensor, values), key=lambda form: sum(map(_bits, form[2])))
        rotated = int(tensor.dtype is not None)
        listed.append([tensor.start - place, len(values), tensor.width, rotated, gaps, book])
        skeleton.append(data[place : tensor.start])
        numbers += [part.tobytes() for part in parts]
        place = tensor.end
    head = json.dumps(listed, separators=(",", ":")).encode()
    packed = xz(b"".join([HEAD.pack(MAGIC, len(data), len(head)), head, *skeleton, data[place:], *numbers]))
    if unpack(packed) != data:
        raise ModelError(
            f"{path} is not restored from its container.", "This is a bug in deadweight: report it."
        )
    return packed


def xz(data: bytes) -> bytes:
    """An xz stream that `targets/coded/xz.py` reads, for numbers as well as for text."""
    filters = [
        {
            "id": lzma.FILTER_LZMA2,
            "preset": 9 | lzma.PRESET_EXTREME,
            "pb": 0,  # numbers are bytes: nothing depends on the position
            "dict_size": _DICTIONARY_BYTES,
        }
    ]
    return lzma.compress(data, lzma.FORMAT_XZ, check=lzma.CHECK_SHA256, filters=filters)


def _forms(tensor: Tensor, values: Array) -> Iterator[tuple[int, int, Sequence[Array]]]:
    """The ways to write a tensor: how many gaps, the size of the code book, and the parts in order."""
    kept = values != 0
    some = [values]
    if kept.any() and 1 - kept.mean() > _LEAST_ZEROS:
        some.append(values[kept])
    for numbers in some:
        before = [_gaps(kept)] if len(numbers) < len(values) else []
        gaps = len(before[0]) if before else 0
        yield gaps, 0, [*before, *_planes(tensor, numbers)]
        few = _few(numbers)
        if few is not None:
            index = np.searchsorted(few, numbers).astype(np.uint8)
            yield gaps, len(few), [*before, *_planes(tensor, few), index]


def _gaps(kept: Array) -> Array:
    """Zeros before each kept number; `FILLER` zeros more for each byte of that value."""
    fillers, rest = np.divmod(np.diff(np.flatnonzero(kept), prepend=-1) - 1, FILLER)
    ends = np.cumsum(fillers + 1)
    gaps = np.full(int(ends[-1]), FILLER, np.uint8)
    gaps[ends - 1] = rest
    return gaps


def _few(values: Array) -> Array | None:
    """The sorted distinct numbers, if there are few enough for a code book."""
    if values.dtype.itemsize == 1 or len(values) < 16:
        return None
    if len(values) > 1 << 16 and len(np.unique(values[:: len(values) >> 14])) > MOST_BOOK:
        return None  # a sample shows that there are many
    distinct: Array = np.unique(values)
    return distinct if len(distinct) <= MOST_BOOK else None


def _planes(tensor: Tensor, values: Array) -> Array:
    """uint8[width, numbers]: the bytes of numbers, of floats rotated by a bit."""
    if tensor.dtype is not None:
        values = values << values.dtype.type(1) | values >> values.dtype.type(8 * tensor.width - 1)
    return np.ascontiguousarray(np.ascontiguousarray(values).view(np.uint8).reshape(-1, tensor.width).T)


def _bits(part: Array) -> float:
    """The size of bytes by their frequencies, in bits: what an entropy coder makes of them."""
    counts = np.bincount(part)
    counts = counts[counts > 0]
    return float(-(counts * np.log2(counts / max(counts.sum(), 1))).sum())
