"""The reader of update files: from an installed release, or from nothing, to a new one.

    bytes     what
    8         "DWPATCH" and the version of this format, 2
    32        SHA-256 of the rest
    3 frames  the new manifest, its signature, and the instructions: 32-bit length, then zlib
    ...       for each file in the order of their names, what is sent of it: xz, or a `.dwz`

The instructions are JSON: {"base": SHA-256 of the base's manifest or null, "files": {name: [coder, coded
bytes, [step, ...]]}}. A file is the concatenation of its steps' results: ["take", bytes] of what is sent;
["copy", bytes, file, at] of the base; ["add", bytes, file, at, width], the base's numbers of `width` bytes
plus the differences that are sent, zigzag, in planes of bytes.

The file itself needs no trust. Its manifest is signed, and is checked before an instruction is read; the
result's sizes are checked against that manifest before it is made, and its hashes before it is used.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, List, Mapping, Optional, Sequence, Tuple, Union

from ..artifact import json_of
from ..errors import ArtifactError, RefusedError
from .manifest import LARGEST, check_content
from .trust import Bundle, Signed, check_signed, opened, verify

MAGIC = b"DWPATCH\x02"
WIDTHS = (1, 2, 4, 8)
CODERS = ("xz", "dwz")
_HEAD = len(MAGIC) + 32
_LARGEST_INSTRUCTIONS = 16 << 20


@dataclass(frozen=True)
class Sent:
    """What is sent of a file: `coded` bytes of the update file from `at` on, and the steps to make it."""

    coder: str
    at: int
    coded: int
    steps: Sequence[Sequence[Any]]


@dataclass(frozen=True)
class Patch:
    """An update file with a valid manifest; `onto` gives the files."""

    path: Path
    signed: Signed
    base: Optional[str]
    """The hash of the base's manifest; None for a complete update."""
    files: Mapping[str, Sent]

    def onto(self, base: Optional[Bundle]) -> Patched:
        """The new release's files, made from the base's."""
        if self.base is not None and (base is None or base.signed.sha256 != self.base):
            raise RefusedError(
                f"The patch needs {self.base[:16]}, which is not installed here.",
                "Send the complete update (deadweight delta NEW --out FILE), or a patch from the installed "
                "release.",
            )
        return Patched(self, base)


@dataclass(frozen=True)
class Patched:
    """A release, read file by file from a patch and its base."""

    patch: Patch
    base: Optional[Bundle]

    @property
    def signed(self) -> Signed:
        """The new release's manifest."""
        return self.patch.signed

    def read(self, name: str) -> bytes:
        """A file's bytes, checked against the manifest."""
        entry, one = self.signed.files[name], self.patch.files[name]
        with opened(self.patch.path) as file:
            file.seek(one.at)
            sent = _exactly(file, one.coded)
        rest = decoded(one.coder, sent, sum(step[1] for step in one.steps if step[0] != "copy"))
        read, parts = ("", b""), []
        for operation, size, *where in one.steps:
            new, rest = (b"", rest) if operation == "copy" else (rest[:size], rest[size:])
            if operation != "take":
                if where[0] != read[0]:
                    read = (where[0], self._base().read(where[0]))
                old = read[1][where[1] : where[1] + size]
                if len(old) < size:
                    raise _wrong("a step reads past the end")
                new = old if operation == "copy" else added(old, new, width=where[2])
            parts.append(new)
        data = b"".join(parts)
        check_content(name, entry, size=len(data), sha256=hashlib.sha256(data).hexdigest(), head=data[:4])
        return data

    def _base(self) -> Bundle:
        if self.base is None:
            raise _wrong("a complete update copies from a base")
        return self.base


def open_patch(path: Path, *, root: Path = Path("/"), signers: Optional[Path] = None) -> Patch:
    """Checks an update file's hash, its manifest as `trust.check_signed`, and its instructions."""
    path = Path(path)
    with opened(path) as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise RefusedError(
                f"{path.name} is neither a bundle's directory nor an update file of this version.",
                "Make one: deadweight delta OLD NEW --out FILE",
            )
        stored, digest, end = file.read(32), hashlib.sha256(), _HEAD
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
            end += len(block)
        if digest.digest() != stored:
            raise RefusedError(f"{path.name} is damaged or truncated.", "Send or download it again.")
        file.seek(_HEAD)
        manifest, signature = _frame(file, LARGEST), _frame(file, LARGEST)
        signed = check_signed(manifest, signature, root=root, signers=signers)
        base, files = _instructions(_frame(file, _LARGEST_INSTRUCTIONS), signed)
        placed, at = {}, file.tell()
    for name, (coder, coded, steps) in sorted(files.items()):
        placed[name] = Sent(coder, at, coded, steps)
        at += coded
    if at != end:
        raise _wrong("what is sent does not end where the file does")
    return Patch(path, signed, base, placed)


def open_release(
    path: Path, *, root: Path = Path("/"), signers: Optional[Path] = None
) -> Union[Bundle, Patch]:
    """Checks a bundle's directory, every byte of it, or an update file."""
    return (open_patch if path.is_file() else verify)(path, root=root, signers=signers)


def added(old: bytes, difference: bytes, *, width: int) -> bytes:
    """The old numbers plus differences (zigzag, in planes of bytes), modulo 2 ** (8 * width)."""
    import numpy as np

    kind = np.dtype(f"<u{width}")
    zigzag = np.ascontiguousarray(np.frombuffer(difference, np.uint8).reshape(width, -1).T).view(kind).ravel()
    one = kind.type(1)
    return bytes((np.frombuffer(old, kind) + ((zigzag >> one) ^ (~(zigzag & one) + one))).tobytes())


def decoded(coder: str, data: bytes, size: int) -> bytes:
    """What is sent: exactly `size` bytes, and never more in memory."""
    if not size and not data:
        return b""
    try:
        if coder == "dwz":
            from ..coded.container import unpack

            plain = unpack(data, most=size)
        else:
            from ..coded.xz import Stream

            stream = Stream(data)
            plain = stream.take(size)
            stream.done()
    except ArtifactError as error:
        raise _wrong(error.what) from error
    if len(plain) != size:
        raise _wrong(f"{len(plain)} bytes are sent, not {size}")
    return plain


def _instructions(data: bytes, signed: Signed) -> Tuple[Optional[str], Mapping[str, List[Any]]]:
    """The instructions, checked: every step has a known form, and each file gets its size."""
    try:
        content = json_of(data)
        base, files = content["base"], content["files"]
        if set(files) != set(signed.files):
            raise ValueError("its files are not those that were signed")
        if base is not None and not (isinstance(base, str) and len(base) == 64):
            raise ValueError("its base is not a hash")
        for name, (coder, coded, steps) in files.items():
            if coder not in CODERS or not _counts(coded) or not all(map(_is_known, steps)):
                raise ValueError("a step of an unknown form")
            if sum(step[1] for step in steps) != signed.files[name].bytes:
                raise ValueError(f"{name} does not get the signed size")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _wrong(str(error)) from error
    return base, files


def _is_known(step: Any) -> bool:
    kind, size, *more = step
    if not _counts(size) or size == 0:
        return False
    if kind == "take":
        return not more
    file, at, *widths = more
    if not isinstance(file, str) or not _counts(at):
        return False
    return not widths if kind == "copy" else kind == "add" and widths[0] in WIDTHS and size % widths[0] == 0


def _counts(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _frame(file: BinaryIO, most: int) -> bytes:
    (size,) = struct.unpack("<I", _exactly(file, 4))
    if size > most:
        raise _wrong("a part of its head is too long")
    unpacker = zlib.decompressobj()
    try:
        content = unpacker.decompress(_exactly(file, size), most + 1)
    except zlib.error as error:
        raise _wrong(f"its head cannot be unpacked ({error})") from error
    if not unpacker.eof or len(content) > most or unpacker.unused_data:
        raise _wrong("a part of its head is incomplete or too large")
    return content


def _exactly(file: BinaryIO, size: int) -> bytes:
    data = file.read(size)
    if len(data) < size:
        raise _wrong("it is truncated")
    return data


def _wrong(why: str) -> RefusedError:
    return RefusedError(f"The update file is invalid: {why}.", "Do not use it; get it again.")
