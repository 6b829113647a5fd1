"""The writer of update files: a released bundle as a patch on the previous release, or complete.

Weights of the same name and size are sent as differences, since one epoch changes an INT8 weight by little;
so is the graph around them. A file that the base has under any name is copied, all others are sent whole. The
board (targets/release/patch.py) only copies, adds and unpacks.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...targets.artifact import writing
from ...targets.errors import ArtifactError
from ...targets.release.manifest import MANIFEST, SIGNATURE, Manifest, parsed
from ...targets.release.patch import MAGIC, Patch, Patched, Sent
from ...targets.release.trust import Bundle, Signed
from ..coding.container import pack, xz
from ..coding.cutting import tensors_of

Step = Sequence[Any]


@dataclass(frozen=True)
class Delta:
    """A written update file: its size, and that of its result."""

    path: Path
    bytes: int
    unpacked_bytes: int


@dataclass(frozen=True)
class _File:
    """What is sent of a file: the coder, the coded bytes, and the steps that make it."""

    coder: str
    coded: bytes
    steps: Sequence[Step]


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
    files = {name: _file(name, wanted.read(name), base) for name in sorted(wanted.files)}
    listed = {name: (one.coder, len(one.coded), one.steps) for name, one in files.items()}
    instructions = {"base": base.signed.sha256 if base else None, "files": listed}
    parts = (wanted.signed.manifest_bytes, wanted.signed.signature_bytes, json.dumps(instructions).encode())
    frames = [zlib.compress(part, 9) for part in parts]
    body = b"".join(struct.pack("<I", len(frame)) + frame for frame in frames)
    sent, at = {}, len(MAGIC) + 32 + len(body)
    for name, one in files.items():
        sent[name] = Sent(one.coder, at, len(one.coded), one.steps)
        at += len(one.coded)
    body += b"".join(one.coded for one in files.values())
    with writing(out) as beside:
        beside.write_bytes(MAGIC + hashlib.sha256(body).digest() + body)
        patch = Patch(beside, wanted.signed, base.signed.sha256 if base else None, sent)
        for name in files:
            Patched(patch, base).read(name)
    return Delta(out, at, sum(entry.bytes for entry in wanted.files.values()))


def sent_bytes(model: Path) -> int:
    """The size of a model in a complete update file.

    This excludes the bundle's other files: manifest, signature, golden samples, reports.

    Raises:
        ModelError: it is not an ONNX file.
    """
    return len(_whole(model.name, model.read_bytes()).coded)


def _file(name: str, data: bytes, base: Bundle | None) -> _File:
    """A file in the fewest bytes: a copy, its differences from the base's file of that name, or whole."""
    if base is None:
        return _whole(name, data)
    sha256 = hashlib.sha256(data).hexdigest()
    for other, entry in base.files.items():
        if entry.sha256 == sha256 and data:
            return _File("xz", b"", [("copy", len(data), other, 0)])
    whole = _whole(name, data)
    if name not in base.files or not name.endswith(".onnx"):
        return whole
    return min(whole, _changes(name, base.read(name), data), key=lambda one: len(one.coded))


def _whole(name: str, data: bytes) -> _File:
    coded = {"xz": xz(data)}
    if name.endswith(".onnx"):
        coded["dwz"] = pack(data, Path(name))
    coder = min(coded, key=lambda each: len(coded[each]))
    return _File(coder, coded[coder], [("take", len(data))] if data else [])


def _changes(name: str, old: bytes, new: bytes) -> _File:
    """A model's differences from the old one, tensor by tensor, and between the tensors."""
    before = {key: (start, end, width) for key, start, end, width in _pieces(old, name)}
    steps: list[Step] = []
    sent = []
    for key, start, end, width in _pieces(new, name):
        was, data = before.get(key, (0, 0, 0)), new[start:end]
        if (was[1] - was[0], was[2]) != (end - start, width):
            steps.append(("take", end - start))
            sent.append(data)
        elif old[was[0] : was[1]] == data:
            steps.append(("copy", end - start, name, was[0]))
        else:
            steps.append(("add", end - start, name, was[0], width))
            sent.append(difference(old[was[0] : was[1]], data, width=width))
    return _File("xz", xz(b"".join(sent)), steps)


def _pieces(data: bytes, name: str) -> list[tuple[str, int, int, int]]:
    """A model in pieces: (name, start, end, bytes of a number) of its tensors and of what is before each."""
    pieces, place = [], 0
    for tensor in tensors_of(data, Path(name)):
        if tensor.end:  # not in another file
            pieces.append((f"before {tensor.name}", place, tensor.start, 1))
            pieces.append((tensor.name, tensor.start, tensor.end, tensor.width))
            place = tensor.end
    pieces.append(("", place, len(data), 1))
    return [piece for piece in pieces if piece[1] < piece[2]]


def difference(old: bytes, new: bytes, *, width: int) -> bytes:
    """The differences for `targets.release.patch.added`: modulo, zigzag, in planes of bytes."""
    kind = np.dtype(f"<u{width}")
    change = np.frombuffer(new, kind) - np.frombuffer(old, kind)
    zigzag = (change << kind.type(1)) ^ (~(change >> kind.type(8 * width - 1)) + kind.type(1))
    return bytes(zigzag.astype(kind).view(np.uint8).reshape(-1, width).T.tobytes())


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
