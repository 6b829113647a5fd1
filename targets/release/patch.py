"""The reader of update files: from an installed release, or from nothing, to a new one.

    bytes     what
    8         "DWPATCH" and the version of this format, 1
    32        SHA-256 of the rest
    3 frames  the new manifest, its signature, and the instructions: 32-bit length, then zlib
    ...       the sections, concatenated

The instructions are JSON: {"base": SHA-256 of the base's manifest or null, "files": {name: [step, ...]},
"sections": [[coder, coded bytes, bytes], ...]}. A file is the concatenation of its steps' results:
["copy", file, at, bytes] of the base; ["take", section, at, bytes]; ["add", file, at, bytes, width,
section], the base's numbers of `width` bytes plus the section's differences, zigzag, in planes of bytes.
Coders: "plain", "xz", "dwz" (`coded/container.py`), "symbols" (`coded/streams.py`), and "rows": two 32-bit
numbers (bytes per row, bytes of the stream of the rows' classes), that stream, and a stream whose contexts
are the classes.

The file itself needs no trust. Its manifest is signed, and is checked before an instruction is read; the
result's sizes are checked against that manifest before it is made, and its hashes before it is used.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Dict, List, Mapping, Optional, Sequence, Tuple, Union

from ..artifact import json_of
from ..errors import ArtifactError, RefusedError
from .manifest import LARGEST, check_content
from .trust import Bundle, Signed, check_signed, opened, verify

MAGIC = b"DWPATCH\x01"
WIDTHS = (1, 2, 4, 8)
CODERS = ("plain", "xz", "symbols", "rows", "dwz")
_HEAD = len(MAGIC) + 32
_LARGEST_INSTRUCTIONS = 16 << 20
_XZ_MEMORY = 128 << 20


@dataclass(frozen=True)
class Patch:
    """An update file with a valid manifest; `onto` gives the files."""

    path: Path
    signed: Signed
    base: Optional[str]
    """The hash of the base's manifest; None for a complete update."""
    files: Mapping[str, Sequence[Sequence[Any]]]
    sections: Sequence[Tuple[str, int, int, int]]
    """Coder, offset in the file, coded bytes, bytes."""

    def onto(self, base: Optional[Bundle]) -> Patched:
        """The new release's files, made from the base's."""
        if self.base is not None and (base is None or base.signed.sha256 != self.base):
            raise RefusedError(
                f"The patch needs {self.base[:16]}, which is not installed here.",
                "Send the complete update (deadweight delta NEW --out FILE), or a patch from the installed "
                "release.",
            )
        return Patched(self, base, {})


@dataclass(frozen=True)
class Patched:
    """A release, read file by file from a patch and its base."""

    patch: Patch
    base: Optional[Bundle]
    cache: Dict[str, Tuple[Any, bytes]]
    """Cache of the base's file and the section that were read last."""

    @property
    def signed(self) -> Signed:
        """The new release's manifest."""
        return self.patch.signed

    def read(self, name: str) -> bytes:
        """A file's bytes, checked against the manifest."""
        entry = self.signed.files[name]
        data = b"".join([self._step(step) for step in self.patch.files[name]])
        check_content(name, entry, size=len(data), sha256=hashlib.sha256(data).hexdigest(), head=data[:4])
        return data

    def _step(self, step: Sequence[Any]) -> bytes:
        operation, place, at, size = step[:4]
        if operation == "take":
            return _part(self._section(place), at, size)
        old = _part(self._file(place), at, size)
        return old if operation == "copy" else added(old, self._section(step[5], size), width=step[4])

    def _file(self, name: str) -> bytes:
        if self.base is None:
            raise _wrong("a complete update copies from a base")
        if self.cache.get("file", (None, b""))[0] != name:
            self.cache["file"] = (name, self.base.read(name))
        return self.cache["file"][1]

    def _section(self, index: int, size: Optional[int] = None) -> bytes:
        coder, at, coded, plain = self.patch.sections[index]
        if size not in (None, plain):
            raise _wrong("a section has another size than its step")
        if self.cache.get("section", (None, b""))[0] != index:
            with opened(self.patch.path) as file:
                file.seek(at)
                self.cache["section"] = (index, decoded(coder, _exactly(file, coded), plain))
        return self.cache["section"][1]


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
        base, files, sections = _instructions(_frame(file, _LARGEST_INSTRUCTIONS), signed, file.tell())
    if sum(coded for _, _, coded, _ in sections) != end - (sections[0][1] if sections else end):
        raise _wrong("its sections do not end where it does")
    return Patch(path, signed, base, files, sections)


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
    """A section's bytes: exactly `size`, and never more in memory."""
    if coder == "plain":
        plain = data
    elif coder == "xz":
        import lzma

        try:
            unpacker = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)
            plain = unpacker.decompress(data, max_length=size + 1)
            if not unpacker.eof and len(plain) <= size:
                plain += unpacker.decompress(b"", max_length=1)
        except (lzma.LZMAError, EOFError, MemoryError) as error:
            raise _wrong(f"a section cannot be unpacked ({error})") from error
        if not unpacker.eof or unpacker.unused_data:
            raise _wrong(f"a section does not have {size} bytes")
    else:
        from ..coded.container import unpack

        try:
            plain = unpack(data, most=size) if coder == "dwz" else _symbols(data, size, rows=coder == "rows")
        except ArtifactError as error:
            raise _wrong(error.what) from error
    if len(plain) != size:
        raise _wrong(f"a section has {len(plain)} bytes, not {size}")
    return plain


def _symbols(data: bytes, size: int, *, rows: bool) -> bytes:
    """Bytes of the entropy coder; with rows, each row has a class, and bytes of a class share a table."""
    import numpy as np

    from ..coded.streams import decode_symbols

    if not rows:
        return bytes(decode_symbols(data, most=size).tobytes())
    length, class_bytes = struct.unpack("<II", data[:8].ljust(8, b"\0"))
    if not length:
        raise _wrong("a section has rows of no length")
    count = -(-size // length)
    classes = decode_symbols(data[8 : 8 + class_bytes], most=count)
    if len(classes) != count:
        raise _wrong("a section has another number of rows than classes")
    contexts = np.repeat(classes, length)[:size]
    return bytes(decode_symbols(data[8 + class_bytes :], most=size, contexts=contexts).tobytes())


def _instructions(
    data: bytes, signed: Signed, at: int
) -> Tuple[Optional[str], Dict[str, List[List[Any]]], List[Tuple[str, int, int, int]]]:
    """The instructions, checked: every step has a known form, and each file gets its size."""
    try:
        content = json_of(data)
        base, files, listed = content["base"], content["files"], content["sections"]
        sections = []
        for coder, coded, plain in listed:
            if coder not in CODERS or not _counts(coded, plain):
                raise ValueError("a section of an unknown form")
            sections.append((coder, at, coded, plain))
            at += coded
        if set(files) != set(signed.files):
            raise ValueError("its files are not those that were signed")
        if base is not None and not (isinstance(base, str) and len(base) == 64):
            raise ValueError("its base is not a hash")
        largest = sum(entry.bytes for entry in signed.files.values())
        if sum(plain for _, _, _, plain in sections) > largest:
            raise ValueError("its sections are larger than what was signed")
        for name, steps in files.items():
            for step in steps:
                _check_step(step, len(sections))
            if sum(step[3] for step in steps) != signed.files[name].bytes:
                raise ValueError(f"{name} does not get the signed size")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _wrong(str(error)) from error
    return base, files, sections


def _check_step(step: Any, sections: int) -> None:
    kind, place, at, size, *more = step
    if not _counts(at, size) or size == 0:
        raise ValueError("a step without a size")
    if kind == "take" and not more:
        known = _counts(place) and place < sections
    elif kind == "add" and len(more) == 2:
        width, section = more
        known = isinstance(place, str) and _counts(width) and width in WIDTHS and size % width == 0
        known = known and _counts(section) and section < sections
    else:
        known = kind == "copy" and isinstance(place, str) and not more
    if not known:
        raise ValueError("a step of an unknown form")


def _counts(*values: Any) -> bool:
    return all(isinstance(value, int) and not isinstance(value, bool) and value >= 0 for value in values)


def _part(data: bytes, at: int, size: int) -> bytes:
    if at + size > len(data):
        raise _wrong("a step reads past the end")
    return data[at : at + size]


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
