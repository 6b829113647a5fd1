"""The writer of update files: a released bundle as a patch on the previous release, or complete.

The workstation finds the steps; the board (targets/release/patch.py) only copies, adds and takes bytes.
Weights of the same name and size are coded as differences, since one epoch changes an INT8 weight by little,
and each tensor in its smallest form. Other bytes are copied from the old files where possible, and the rest
is packed together.
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
from ...targets.release.manifest import MANIFEST, SIGNATURE, Manifest, parsed
from ...targets.release.patch import MAGIC, Patch, Patched, decoded
from ...targets.release.trust import Bundle, Signed
from ..coding.container import pack
from ..coding.cutting import Tensor, tensors_of
from ..coding.entropy import encode_symbols

_CLASSES = 16
_BLOCK = 32
_MOST_BLOCKS = 1 << 18
_LEAST = 256  # bytes: smaller tensors do not get their own section
Step = tuple[Any, ...]


@dataclass(frozen=True)
class Delta:
    """A written update file: its size and that of its result, and how many weights changed."""

    path: Path
    bytes: int
    unpacked_bytes: int
    tensors: int
    """Number of weights of 256 bytes or more."""
    tensors_changed: int


def delta(old: Path | None, new: Path, out: Path) -> Delta:
    """Writes the file that makes the bundle `new` from the bundle `old`, or from nothing.

    It is read back, and every resulting file is checked against the new manifest, before it is stored.

    Raises:
        ArtifactError: one of them is not a complete signed bundle, or they are releases of different networks
            or in the wrong order.
    """
    base, wanted = None if old is None else _bundle(old), _bundle(new)
    if base is not None:
        _in_order(base.manifest, wanted.manifest)
    plan = _Plan(base)
    for name in sorted(wanted.files):
        plan.files[name] = plan.steps(name, wanted.read(name))
    plan.close()
    instructions = {
        "base": base.signed.sha256 if base else None,
        "files": plan.files,
        "sections": plan.listed,
    }
    parts = (wanted.signed.manifest_bytes, wanted.signed.signature_bytes, json.dumps(instructions).encode())
    frames = [zlib.compress(part, 9) for part in parts]
    body = b"".join(struct.pack("<I", len(frame)) + frame for frame in frames)
    at = len(MAGIC) + 32 + len(body)
    body += b"".join(plan.coded)
    with writing(out) as beside:
        beside.write_bytes(MAGIC + hashlib.sha256(body).digest() + body)
        _read_back(beside, wanted, base, plan, at)
    return Delta(
        out,
        len(MAGIC) + 32 + len(body),
        sum(entry.bytes for entry in wanted.files.values()),
        plan.tensors,
        plan.tensors_changed,
    )


def sent_bytes(model: Path) -> int:
    """The size of a model in a complete update file: its sections and their steps.

    This excludes the bundle's other files: manifest, signature, golden samples, reports.

    Raises:
        ModelError: it is not an ONNX file.
    """
    plan = _Plan(None)
    plan.files[model.name] = plan.steps(model.name, model.read_bytes())
    plan.close()
    instructions = json.dumps({"files": plan.files, "sections": plan.listed}).encode()
    return sum(map(len, plan.coded)) + len(zlib.compress(instructions, 9))


@dataclass
class _Plan:
    """The steps and sections. Loose bytes of all files go into section 0, packed together."""

    base: Bundle | None
    files: dict[str, list[Step]] = field(default_factory=dict)
    listed: list[tuple[str, int, int]] = field(default_factory=lambda: [("plain", 0, 0)])
    coded: list[bytes] = field(default_factory=lambda: [b""])
    loose: bytearray = field(default_factory=bytearray)
    tensors: int = 0
    tensors_changed: int = 0

    def steps(self, name: str, data: bytes) -> list[Step]:
        """The steps for a file. A model is sent whole where that is smaller."""
        source, old = self._like(name, data)
        if old == data:
            return [("copy", source, 0, len(data))] if data else []
        sections, loose = len(self.listed), len(self.loose)
        steps = list(self._pieces(name, data, source, old))
        if name.endswith(".onnx"):
            whole = _smallest_section(data, ("xz", "dwz"))
            if len(whole[1]) < sum(map(len, self.coded[sections:])) + len(lzma.compress(self.loose[loose:])):
                del self.listed[sections:], self.coded[sections:], self.loose[loose:]
                return [("take", self._section(whole), 0, len(data))]
        return steps

    def _pieces(self, name: str, data: bytes, source: str, old: bytes) -> Iterator[Step]:
        before = {tensor.name: tensor for tensor in _weights_of(old, source)} if old else {}
        searched, done = Old(old), 0
        for own in _weights_of(data, name):
            yield from self._loosely(source, searched, data[done : own.start])
            yield self._weights(source, old, before.get(own.name), data[own.start : own.end], own)
            done = own.end
        yield from self._loosely(source, searched, data[done:])

    def close(self) -> None:
        """Packs the loose bytes, when all files are done."""
        self.listed[0], self.coded[0] = _smallest_section(bytes(self.loose), ("plain", "xz"))

    def _like(self, name: str, data: bytes) -> tuple[str, bytes]:
        """The base's file to start from: one with the same bytes, else the one with that name."""
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
        self.tensors += 1
        rows = max(own.shape[0], 1) if own.shape else 1
        whole = _smallest_section(data, rows=rows)
        old_bytes = old[before.start : before.end] if before is not None else b""
        if before is None or (len(old_bytes), before.width) != (len(data), own.width):
            self.tensors_changed += 1
            return ("take", self._section(whole), 0, len(data))
        if old_bytes == data:
            return ("copy", source, before.start, len(data))
        self.tensors_changed += 1
        change = _smallest_section(difference(old_bytes, data, width=own.width), rows=rows * own.width)
        if len(change[1]) < len(whole[1]):
            return ("add", source, before.start, len(data), own.width, self._section(change))
        return ("take", self._section(whole), 0, len(data))

    def _section(self, packed: tuple[tuple[str, int, int], bytes]) -> int:
        self.listed.append(packed[0])
        self.coded.append(packed[1])
        return len(self.listed) - 1


def _weights_of(data: bytes, name: str) -> list[Tensor]:
    """A model's large weights, in the file's order, without external ones."""
    if not name.endswith(".onnx"):
        return []
    return [tensor for tensor in tensors_of(data, Path(name)) if tensor.end - tensor.start >= _LEAST]


def difference(old: bytes, new: bytes, *, width: int) -> bytes:
    """The differences for `targets.release.patch.added`: modulo, zigzag, in planes of bytes."""
    kind = np.dtype(f"<u{width}")
    change = np.frombuffer(new, kind) - np.frombuffer(old, kind)
    zigzag = (change << kind.type(1)) ^ (~(change >> kind.type(8 * width - 1)) + kind.type(1))
    return bytes(zigzag.astype(kind).view(np.uint8).reshape(-1, width).T.tobytes())


def _smallest_section(
    data: bytes, coders: tuple[str, ...] = ("plain", "xz", "symbols", "rows"), *, rows: int = 1
) -> tuple[tuple[str, int, int], bytes]:
    """A section of these bytes by the coder with the smallest result, and its line in the list."""
    coded = {coder: _encode(coder, data, rows) for coder in coders if coder != "rows" or rows > 1}
    coder = min(coded, key=lambda each: len(coded[each]))
    assert decoded(coder, coded[coder], len(data)) == data
    return (coder, len(coded[coder]), len(data)), coded[coder]


def _encode(coder: str, data: bytes, rows: int) -> bytes:
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
    sizes = np.minimum(symbols, 0 - symbols).astype(np.int64)  # of signed numbers too
    sums = np.add.reduceat(sizes, np.arange(0, len(symbols), length))
    order = np.argsort(np.argsort(sums, kind="stable"), kind="stable")
    classes = (order * _CLASSES // len(order)).astype(np.uint8)
    class_bytes = encode_symbols(classes)
    head = struct.pack("<II", length, len(class_bytes))
    return head + class_bytes + encode_symbols(symbols, contexts=np.repeat(classes, length)[: len(symbols)])


def _bundle(folder: Path) -> Bundle:
    """Reads a signed bundle and checks its files; only the board checks the signer."""
    paths = [Path(folder) / name for name in (MANIFEST, SIGNATURE)]
    for path in paths:
        if not path.is_file():
            raise ArtifactError(
                f"{folder} is not a signed bundle: {path.name} is missing.",
                "Make one: deadweight bundle RUN --sign KEY",
            )
    data, signature = (path.read_bytes() for path in paths)
    bundle = Bundle(Path(folder), Signed(parsed(data), data, signature, ""))
    for name in bundle.files:
        bundle.check(name)
    return bundle


def _in_order(old: Manifest, new: Manifest) -> None:
    if old.name != new.name:
        raise ArtifactError(
            f"These are two networks, {old.name} and {new.name}, which a board installs separately.",
            "Give two releases of one, or send the complete update: deadweight delta NEW --out FILE",
        )
    if old.release >= new.release:
        raise ArtifactError(
            f"Release {new.release} is not newer than {old.release}: no board would accept the patch.",
            "Give the older one first, or make the new bundle with a higher --release.",
        )


def _read_back(path: Path, wanted: Bundle, base: Bundle | None, plan: _Plan, at: int) -> None:
    sections = []
    for coder, coded, plain in plan.listed:
        sections.append((coder, at, coded, plain))
        at += coded
    patch = Patch(path, wanted.signed, base.signed.sha256 if base else None, plan.files, sections)
    whole = Patched(patch, base, {})
    for name in wanted.files:
        whole.read(name)


@dataclass(frozen=True)
class Copied:
    """A range of the old file with the new one's next bytes."""

    at: int
    size: int


class Old:
    """The index of an old file: blocks at fixed distances, by their bytes.

    The new file is searched for them at every byte, and a match is extended both ways (rsync, Tridgell 1999,
    without checksums, since both files are here).
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._known: dict[bytes, int] = {}
        for at in range(0, len(data) - _BLOCK + 1, max(_BLOCK // 2, len(data) // _MOST_BLOCKS)):
            self._known.setdefault(data[at : at + _BLOCK], at)

    def parts(self, new: bytes) -> Iterator[Copied | bytes]:
        """All new bytes in order: ranges of the old file, or new bytes."""
        old, done, at = self._data, 0, 0
        while at + _BLOCK <= len(new):
            found = self._known.get(new[at : at + _BLOCK])
            if found is None:
                at += 1
                continue
            begin, source = at, found
            while begin > done and source > 0 and new[begin - 1] == old[source - 1]:
                begin, source = begin - 1, source - 1
            size = at + _BLOCK - begin + _common(old, found + _BLOCK, new, at + _BLOCK)
            if begin > done:
                yield new[done:begin]
            yield Copied(source, size)
            done = at = begin + size
        if done < len(new):
            yield new[done:]


def _common(old: bytes, at: int, new: bytes, start: int) -> int:
    most, same, step = min(len(old) - at, len(new) - start), 0, 1 << 16
    while step:
        end = same + step
        if end <= most and old[at + same : at + end] == new[start + same : start + end]:
            same = end
        else:
            step //= 2
    return same
