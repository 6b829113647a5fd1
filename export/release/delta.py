"""An update in one file, made of a released bundle: against the release before, or whole.

What to do with each byte is found here, where onnx is and time is cheap; the board's side
(targets/release/patch.py) only copies, adds and takes. Weights of the same name and size are coded as
differences, since one epoch moves an INT8 weight by little, and each tensor in whatever form takes the fewest
bytes. All else is copied from where the old files have it, and what is left is packed together.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...targets.artifact import writing
from ...targets.errors import ArtifactError
from ...targets.release.manifest import MANIFEST, SIGNATURE, entries, parsed
from ...targets.release.patch import MAGIC, Patch, Patched, decoded
from ...targets.release.trust import Bundle, Signed
from ..coding.container import pack
from ..coding.cutting import Tensor, tensors_of
from ..coding.entropy import encode_symbols
from .matching import Copied, Old

_CLASSES = 16
_LEAST = 256  # bytes: smaller tensors are not worth a section of their own
Step = tuple[Any, ...]


@dataclass(frozen=True)
class Delta:
    """An update file that was written: its bytes and those of what it makes, and how the weights changed."""

    path: Path
    bytes: int
    unpacked_bytes: int
    tensors: int
    """Of the models' weights, those of 256 bytes and more."""
    tensors_changed: int


def delta(old: Path | None, new: Path, out: Path) -> Delta:
    """Writes the file that makes the bundle `new` of the bundle `old`, or of nothing.

    It is read back, and every file that comes out was held against the new manifest, before it is kept.

    Raises:
        ArtifactError: one of them is no whole signed bundle, or they are two releases of different networks
            or in the wrong order.
    """
    base, wanted = None if old is None else _bundle(old), _bundle(new)
    if base is not None:
        _in_order(base.manifest, wanted.manifest)
    made = _Made(base)
    for name in sorted(wanted.files):
        made.files[name] = made.steps(name, wanted.read(name))
    made.close()
    told = {"base": base.signed.sha256 if base else None, "files": made.files, "sections": made.listed}
    parts = (wanted.signed.manifest_bytes, wanted.signed.signature_bytes, json.dumps(told).encode())
    frames = [zlib.compress(part, 9) for part in parts]
    body = b"".join(struct.pack("<I", len(frame)) + frame for frame in frames)
    at = len(MAGIC) + 32 + len(body)
    body += b"".join(made.coded)
    with writing(out) as beside:
        beside.write_bytes(MAGIC + hashlib.sha256(body).digest() + body)
        _read_back(beside, wanted, base, made, at)
    return Delta(
        out,
        len(MAGIC) + 32 + len(body),
        sum(entry.size_bytes for entry in wanted.files.values()),
        made.tensors,
        made.tensors_changed,
    )


def sent_bytes(model: Path) -> int:
    """What a model takes in an update file that needs nothing to start from: its sections and their steps.

    What a bundle holds beside it comes on top: manifest, signature, golden samples, reports.

    Raises:
        ModelError: it is no ONNX file.
    """
    made = _Made(None)
    made.files[model.name] = made.steps(model.name, model.read_bytes())
    made.close()
    told = json.dumps({"files": made.files, "sections": made.listed}).encode()
    return sum(map(len, made.coded)) + len(zlib.compress(told, 9))


@dataclass
class _Made:
    """The steps and sections so far. Loose bytes of all files go into section 0, packed together."""

    base: Bundle | None
    files: dict[str, list[Step]] = field(default_factory=dict)
    listed: list[tuple[str, int, int]] = field(default_factory=lambda: [("plain", 0, 0)])
    coded: list[bytes] = field(default_factory=lambda: [b""])
    loose: bytearray = field(default_factory=bytearray)
    tensors: int = 0
    tensors_changed: int = 0

    def steps(self, name: str, data: bytes) -> list[Step]:
        """What makes the bytes of a file. A model goes whole where that takes fewer bytes."""
        source, old = self._like(name, data)
        if old == data:
            return [("copy", source, 0, len(data))] if data else []
        sections, loose = len(self.listed), len(self.loose)
        made = list(self._pieces(name, data, source, old))
        if name.endswith(".onnx"):
            whole = _packed(data, ("xz", "dwz"))
            taken = sum(map(len, self.coded[sections:])) + len(lzma.compress(self.loose[loose:]))
            if len(whole[1]) < taken:
                del self.listed[sections:], self.coded[sections:], self.loose[loose:]
                return [("take", self._section(whole), 0, len(data))]
        return made

    def _pieces(self, name: str, data: bytes, source: str, old: bytes) -> Iterator[Step]:
        """Its weights one by one, and what lies between them."""
        before = {tensor.name: tensor for tensor in _weights_of(old, source)} if old else {}
        searched, done = Old(old), 0
        for own in _weights_of(data, name):
            yield from self._loosely(source, searched, data[done : own.start])
            yield self._weights(source, old, before.get(own.name), data[own.start : own.end], own)
            done = own.end
        yield from self._loosely(source, searched, data[done:])

    def close(self) -> None:
        """Packs the loose bytes, once all are there."""
        self.listed[0], self.coded[0] = _packed(bytes(self.loose), ("plain", "xz"))

    def _like(self, name: str, data: bytes) -> tuple[str, bytes]:
        """The base's file to start from: one with the same bytes, else the one of that name."""
        if self.base is None:
            return "", b""
        sha256 = hashlib.sha256(data).hexdigest()
        same = [other for other, entry in self.base.files.items() if entry.sha256 == sha256]
        source = name if name in same or not same else same[0]
        return (source, self.base.read(source)) if source in self.base.files else ("", b"")

    def _loosely(self, source: str, old: Old, data: bytes) -> Iterator[Step]:
        for part in old.parts(data):
            if isinstance(part, Copied):
                yield ("copy", source, part.at, part.size)
            else:
                yield ("take", 0, len(self.loose), len(part))
                self.loose += part

    def _weights(self, source: str, old: bytes, before: Tensor | None, data: bytes, own: Tensor) -> Step:
        """One tensor, in the form that takes the fewest bytes."""
        self.tensors += 1
        rows = max(own.shape[0], 1) if own.shape else 1
        whole = _packed(data, rows=rows)
        held = old[before.start : before.end] if before is not None else b""
        if before is None or (len(held), before.width) != (len(data), own.width):
            self.tensors_changed += 1
            return ("take", self._section(whole), 0, len(data))
        if held == data:
            return ("copy", source, before.start, len(data))
        self.tensors_changed += 1
        change = _packed(difference(held, data, width=own.width), rows=rows * own.width)
        if len(change[1]) < len(whole[1]):
            return ("add", source, before.start, len(data), own.width, self._section(change))
        return ("take", self._section(whole), 0, len(data))

    def _section(self, packed: tuple[tuple[str, int, int], bytes]) -> int:
        self.listed.append(packed[0])
        self.coded.append(packed[1])
        return len(self.listed) - 1


def _weights_of(data: bytes, name: str) -> list[Tensor]:
    """A model's large weights, in the file's order; those in other files are files of their own."""
    if not name.endswith(".onnx"):
        return []
    return [tensor for tensor in tensors_of(data, Path(name)) if tensor.end - tensor.start >= _LEAST]


def difference(old: bytes, new: bytes, *, width: int) -> bytes:
    """What `targets.release.patch.added` adds: differences modulo, zigzag, by planes of bytes."""
    kind = np.dtype(f"<u{width}")
    change = np.frombuffer(new, kind) - np.frombuffer(old, kind)
    zigzag = (change << kind.type(1)) ^ (~(change >> kind.type(8 * width - 1)) + kind.type(1))
    return bytes(zigzag.astype(kind).view(np.uint8).reshape(-1, width).T.tobytes())


def _packed(
    data: bytes, coders: tuple[str, ...] = ("plain", "xz", "symbols", "rows"), *, rows: int = 1
) -> tuple[tuple[str, int, int], bytes]:
    """A section of these bytes in the coder that takes the fewest, and its line in the list."""
    made = {coder: _coded(coder, data, rows) for coder in coders if coder != "rows" or rows > 1}
    coder = min(made, key=lambda each: len(made[each]))
    assert decoded(coder, made[coder], len(data)) == data
    return (coder, len(made[coder]), len(data)), made[coder]


def _coded(coder: str, data: bytes, rows: int) -> bytes:
    if coder == "plain":
        return data
    if coder == "xz":
        return lzma.compress(data, lzma.FORMAT_XZ, check=lzma.CHECK_NONE, preset=9)
    if coder == "dwz":
        return pack(data, Path("model.onnx")).data
    symbols = np.frombuffer(data, np.uint8)
    if coder == "symbols":
        return encode_symbols(symbols)
    length = -(-len(data) // rows)
    sizes = np.minimum(symbols, 0 - symbols).astype(np.int64)  # also of signed numbers
    sums = np.add.reduceat(sizes, np.arange(0, len(symbols), length))
    order = np.argsort(np.argsort(sums, kind="stable"), kind="stable")
    classes = (order * _CLASSES // len(order)).astype(np.uint8)
    told = encode_symbols(classes)
    contexts = np.repeat(classes, length)[: len(symbols)]
    return struct.pack("<II", length, len(told)) + told + encode_symbols(symbols, contexts=contexts)


def _bundle(folder: Path) -> Bundle:
    """A signed bundle as it lies here. Who signed it is for the board to judge; whole it must be."""
    paths = [Path(folder) / name for name in (MANIFEST, SIGNATURE)]
    for path in paths:
        if not path.is_file():
            raise ArtifactError(
                f"{folder} is no signed bundle: {path.name} is missing.",
                "Make one: deadweight bundle RUN --sign KEY",
            )
    data, signature = (path.read_bytes() for path in paths)
    manifest = parsed(data)
    bundle = Bundle(Path(folder), Signed(manifest, data, signature, "", entries(manifest)))
    for name in bundle.files:
        bundle.check(name)
    return bundle


def _in_order(old: Any, new: Any) -> None:
    if old["name"] != new["name"]:
        raise ArtifactError(
            f"These are two networks, {old['name']} and {new['name']}: a board keeps them apart.",
            "Give two releases of one, or send the whole update: deadweight delta NEW --out FILE",
        )
    if old["release"] >= new["release"]:
        raise ArtifactError(
            f"Release {new['release']} is not newer than {old['release']}: no board would take the patch.",
            "Give the older one first; or make the new bundle with a higher --release.",
        )


def _read_back(path: Path, wanted: Bundle, base: Bundle | None, made: _Made, at: int) -> None:
    sections = []
    for coder, coded, plain in made.listed:
        sections.append((coder, at, coded, plain))
        at += coded
    patch = Patch(path, wanted.signed, base.signed.sha256 if base else None, made.files, sections)
    whole = Patched(patch, base, {})
    for name in wanted.files:
        whole.read(name)
