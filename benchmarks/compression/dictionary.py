"""Blocks of weights as sums of a few atoms of a learned dictionary: a representation to compare with.

The atoms are learned alternately with their coefficients: orthogonal matching pursuit (Pati et al. 1993)
chooses at most so many atoms a block, then the atoms are solved for by least squares (the method of optimal
directions, Engan et al. 1999, which is K-SVD without its inner loop). Atoms and coefficients are then rounded
to 8 bits and multiply in whole numbers, so that every machine gets the same weights from them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
from onnx import numpy_helper

from deadweight.export.coding import container
from deadweight.export.coding import parts as sparse
from deadweight.export.coding.cutting import Tensor
from deadweight.export.coding.parts import within
from deadweight.export.onnx_graph.graph import Array, load, save
from deadweight.targets.coded import container as read_container
from deadweight.targets.coded import records
from deadweight.targets.coded.reading import damaged
from deadweight.targets.errors import ModelError
from deadweight.targets.protobuf import to_varint

ATOMS = records.SAME + 1
"""The kind of its records.

    atoms    varint: numbers in a block; varint: atoms; a record of the atoms (int8); a record of the blocks'
             coefficients (int8); the scale (float32): blocks are sums of atoms
"""
MOST_ATOMS = 1024  # 1024 products of two numbers of 8 bits are whole numbers that float32 still holds
ROUNDS = 8
_SAMPLE = 20_000  # blocks that the atoms are learned from
_AT_ONCE = 16_384  # blocks in memory


@dataclass(frozen=True)
class Dictionary:
    """A tensor as blocks: `coefficients` [blocks, atoms] times `atoms` [atoms, block], both int8."""

    atoms: Array
    coefficients: Array
    scale: np.float32
    shape: tuple[int, ...]

    def values(self) -> Array:
        """The tensor, float32, as a decoder computes it."""
        count = int(np.prod(self.shape))
        sums = self.coefficients.astype(np.float32) @ self.atoms.astype(np.float32)
        found: Array = (sums.reshape(-1)[:count] * self.scale).reshape(self.shape)
        return found

    def record(self) -> bytes:
        """Its record in a container."""
        kept = (self.coefficients != 0).reshape(-1)
        numbers = self.coefficients.reshape(-1)[kept].view(np.uint8)
        told = [
            places + _bytes(within(numbers, mask_contexts))
            for places, mask_contexts in sparse.places_of(kept, len(self.coefficients))
        ]
        return b"".join(
            (
                bytes([ATOMS]),
                *map(to_varint, (self.atoms.shape[1], len(self.atoms))),
                _bytes(within(self.atoms.reshape(-1).view(np.uint8))),
                min(told, key=len),
                np.float32(self.scale).astype("<f4").tobytes(),
            )
        )


def learned(tensor: Array, *, block: int = 8, atoms: int = 64, chosen: int = 2, seed: int = 0) -> Dictionary:
    """A dictionary for one tensor.

    Args:
        block: neighbouring weights of a block.
        chosen: how many atoms a block is the sum of, at most.

    Raises:
        ModelError: more atoms than blocks or than 1024, or more chosen than there are.
    """
    flat = np.asarray(tensor, np.float64).reshape(-1)
    blocks = np.pad(flat, (0, -len(flat) % block)).reshape(-1, block)
    if not (0 < chosen <= atoms <= min(len(blocks), MOST_ATOMS)):
        raise ModelError(
            f"A dictionary of {atoms} atoms, {chosen} for each of {len(blocks)} blocks, cannot be learned.",
            "Choose fewer atoms, or smaller blocks.",
        )
    some = blocks[np.abs(blocks).sum(axis=1) > 0]
    generator = np.random.default_rng(seed)
    some = some[generator.permutation(len(some))[:_SAMPLE]]
    book = some[generator.choice(len(some), atoms, replace=len(some) < atoms)]
    book = book + 1e-6 * np.abs(some).max() * generator.standard_normal(book.shape)
    for _ in range(ROUNDS):
        book /= np.linalg.norm(book, axis=1, keepdims=True)
        used = _pursued(some, book, chosen)
        book = np.linalg.lstsq(used, some, rcond=None)[0]
        lost = np.linalg.norm(book, axis=1) < 1e-9
        book[lost] = generator.standard_normal((int(lost.sum()), block))
    book /= np.linalg.norm(book, axis=1, keepdims=True)
    rounded = np.clip(np.rint(book / np.abs(book).max() * 127), -127, 127)
    norms = np.linalg.norm(rounded, axis=1)
    used = np.zeros((len(blocks), atoms), np.float32)
    for at in range(0, len(blocks), _AT_ONCE):
        part = _pursued(blocks[at : at + _AT_ONCE], rounded / norms[:, None], chosen)
        used[at : at + _AT_ONCE] = part / norms
    scale = np.float32(max(float(np.abs(used).max()) / 127, float(np.finfo(np.float32).tiny)))
    coefficients = np.clip(np.rint(used / float(scale)), -127, 127).astype(np.int8)
    return Dictionary(rounded.astype(np.int8), coefficients, scale, tuple(tensor.shape))


def dictionary_file(
    path: Path, out: Path, *, block: int = 8, atoms: int = 64, chosen: int = 2, seed: int = 0
) -> dict[str, bytes]:
    """Writes a model whose large float32 weights are such sums; returns their records for `stored`.

    Raises:
        ModelError: no weight has as many blocks as there are atoms.
    """
    model = load(path).proto
    told = {}
    for one in model.graph.initializer:
        tensor = numpy_helper.to_array(one) if one.data_type == 1 and len(one.dims) > 1 else np.zeros(0)
        if tensor.size < 4 * atoms * block:
            continue
        found = learned(tensor, block=block, atoms=atoms, chosen=chosen, seed=seed)
        one.CopyFrom(numpy_helper.from_array(found.values(), one.name))
        told[one.name] = found.record()
    if not told:
        raise ModelError(f"{path} has no weight large enough for {atoms} atoms.", "Choose fewer atoms.")
    save(model, out)
    return told


@contextlib.contextmanager
def stored(told: dict[str, bytes]) -> Iterator[None]:
    """Within it, `pack` gives these tensors these records, and `unpack` reads them."""
    smallest = container._smallest

    def known(tensor: Tensor, values: Array, books: Sequence[Array]) -> tuple[bytes, Array | None]:
        return (told[tensor.name], None) if tensor.name in told else smallest(tensor, values, books)

    with (
        mock.patch.object(container, "_smallest", known),
        mock.patch.object(container, "WAYS", (*container.WAYS, "atoms")),
        mock.patch.object(read_container, "Numbers", _Numbers),
    ):
        yield


class _Numbers(records.Numbers):
    """Reads records of atoms too."""

    def _record(self, count: int, width: int, *, nested: bool, mask_contexts: Array | None) -> Array:
        if nested or bytes(self.reader.data[self.reader.at :][:1]) != bytes([ATOMS]):
            return super()._record(count, width, nested=nested, mask_contexts=mask_contexts)
        self.reader.byte("the kind of a record")
        block = self.reader.number("the numbers of a block", least=1, most=4096)
        atoms = self.reader.number("the number of atoms", least=1, most=MOST_ATOMS)
        if width != 4:
            raise damaged("a dictionary is for float32 alone")
        blocks = -(-count // block)
        held = (
            self._record(atoms * block, 1, nested=True, mask_contexts=None)
            .view(np.int8)
            .reshape(atoms, block)
        )
        places, known = self._places(self.reader.byte("the kind of a record"), blocks * atoms)
        found = np.zeros(blocks * atoms, np.uint8)
        found[places] = self._record(len(places), 1, nested=True, mask_contexts=known)
        used = found.view(np.int8).reshape(blocks, atoms)
        scale = np.frombuffer(self.reader.take(4, "the scale of a dictionary"), "<f4")[0]
        sums = used.astype(np.float32) @ held.astype(np.float32)
        numbers: Array = (sums.reshape(-1)[:count] * scale).astype("<f4").view("<u4")
        return numbers


def _bytes(part: bytes) -> bytes:
    """A record of single bytes."""
    return bytes([records.PLANES, 0]) + part


def _pursued(blocks: Array, book: Array, chosen: int) -> Array:
    """Coefficients [blocks, atoms] by orthogonal matching pursuit, all blocks at once; atoms have norm 1."""
    rest = blocks.copy()
    places = np.zeros((len(blocks), 0), np.int64)
    values = np.zeros((len(blocks), 0))
    rows = np.arange(len(blocks))[:, None]
    for _ in range(chosen):
        match = np.abs(rest @ book.T)
        match[rows, places] = -1.0
        places = np.concatenate([places, match.argmax(axis=1)[:, None]], axis=1)
        own = book[places]  # [blocks, chosen so far, block]
        gram = own @ own.transpose(0, 2, 1) + 1e-9 * np.eye(places.shape[1])
        values = np.linalg.solve(gram, own @ blocks[:, :, None])[:, :, 0]
        rest = blocks - (values[:, None, :] @ own)[:, 0]
    found = np.zeros((len(blocks), len(book)))
    found[rows, places] = values
    return found
