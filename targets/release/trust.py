"""The trust check of a bundle: may it be loaded on this machine? Loading an engine runs its code.

A bundle is a directory with a manifest, which has every file's hash and the board, and a signature of that
manifest by `ssh-keygen -Y sign`. A file of the machine, never the bundle, lists the trusted signers. The
order is fixed: no bytes are parsed before their signature was checked, and no file is loaded before its hash
was. A file is read once: the hashed bytes are those returned, so that they cannot be replaced in between.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Iterator, Mapping, Optional

from ..errors import RefusedError, reported
from ..paths import SIGNERS
from ..runtimes.runtime import is_engine
from ..sealed import sealed_bytes
from .manifest import LARGEST, MANIFEST, SIGNATURE, Entry, Manifest, check_board, check_content, parsed
from .signature import signer_of


@dataclass(frozen=True)
class Signed:
    """A manifest with valid signature, names and board."""

    manifest: Manifest
    manifest_bytes: bytes
    signature_bytes: bytes
    signer: str
    """The name of the key on this machine."""

    @property
    def files(self) -> Mapping[str, Entry]:
        """The manifest's entries by file name."""
        return self.manifest.files

    @property
    def sha256(self) -> str:
        """The manifest's hash, which identifies the release."""
        return hashlib.sha256(self.manifest_bytes).hexdigest()

    @property
    def version(self) -> str:
        """The start of the hash, as a short name."""
        return self.sha256[:16]


@dataclass(frozen=True)
class Bundle:
    """A bundle with a valid manifest. `read` checks each file's bytes."""

    folder: Path
    signed: Signed

    @property
    def manifest(self) -> Manifest:
        """The signed manifest."""
        return self.signed.manifest

    @property
    def files(self) -> Mapping[str, Entry]:
        """The manifest's entries by file name."""
        return self.manifest.files

    def read(self, name: str) -> bytes:
        """A file's bytes, read once and checked against the manifest."""
        if name not in self.files:
            raise RefusedError(
                f"{name} is not in the bundle {self.folder.name}.", "Use a file of its manifest."
            )
        entry = self.files[name]
        data = _bytes_of(self.folder / name, limit=entry.bytes)
        check_content(name, entry, size=len(data), sha256=hashlib.sha256(data).hexdigest(), head=data[:4])
        return data

    def check(self, name: str) -> None:
        """Checks a file in blocks: an engine may be larger than the free memory."""
        digest, size, head = hashlib.sha256(), 0, b""
        with opened(self.folder / name) as file:
            for block in iter(lambda: file.read(1 << 20), b""):
                digest.update(block)
                head, size = head or block[:4], size + len(block)
        check_content(name, self.files[name], size=size, sha256=digest.hexdigest(), head=head)

    @contextlib.contextmanager
    def sealed(self, name: str) -> Iterator[Path]:
        """A path with exactly the checked bytes, for a runtime; see `sealed_bytes`."""
        with sealed_bytes(Path(name).name, self.read(name)) as path:
            yield path


def check_signed(
    data: bytes, signature: bytes, *, root: Path = Path("/"), signers: Optional[Path] = None
) -> Signed:
    """Checks an untrusted manifest: signature first, then names and board.

    `root` is the machine's root directory; `signers` is a file in ssh-keygen's ALLOWED SIGNERS format, by
    default the machine's.
    """
    signer = signer_of(data, signature, signers or root / SIGNERS, given=signers is not None, root=root)
    manifest = parsed(data)
    check_board(manifest, root)
    return Signed(manifest, data, signature, signer)


def open_bundle(folder: Path, *, root: Path = Path("/"), signers: Optional[Path] = None) -> Bundle:
    """Checks all of a bundle except its files' bytes, which `Bundle.read` checks.

    Raises:
        RefusedError: as `check_signed`, or files are missing or were not signed.
    """
    folder = Path(folder)
    names = _listing(folder)
    if MANIFEST not in names:
        raise RefusedError(
            f"{folder} is not a bundle: it has no {MANIFEST}.", "Make one: deadweight bundle RUN."
        )
    data = _bytes_of(folder / MANIFEST, limit=LARGEST)
    if SIGNATURE not in names:
        engines = [name for name in names if is_engine(name)]
        warning = f"An engine is code, and {engines[0]} is an engine. " if engines else ""
        raise RefusedError(
            f"The bundle {folder.name} is not signed.",
            f"{warning}Sign it where it was made: deadweight bundle RUN --sign KEY",
        )
    signed = check_signed(data, _bytes_of(folder / SIGNATURE, limit=LARGEST), root=root, signers=signers)
    _same_files(set(signed.files), names - {MANIFEST, SIGNATURE})
    return Bundle(folder, signed)


def verify(folder: Path, *, root: Path = Path("/"), signers: Optional[Path] = None) -> Bundle:
    """Checks a whole bundle, every byte of every file."""
    bundle = open_bundle(folder, root=root, signers=signers)
    for name in sorted(bundle.files):
        bundle.check(name)
    return bundle


def _listing(folder: Path, inside: str = "") -> set[str]:
    """All files below the folder. Links, devices and pipes are refused: their content is not signed."""
    found = set()
    place = folder / inside if inside else folder
    with reported(RefusedError, f"{folder} cannot be read", "Check the path."), os.scandir(place) as entries:
        listed = sorted(entries, key=lambda entry: entry.name)
    for entry in listed:
        name = f"{inside}/{entry.name}" if inside else entry.name
        if entry.is_symlink():
            raise RefusedError(
                f"{name} is a link, which a signature does not cover.", "Do not use this bundle."
            )
        if entry.is_dir(follow_symlinks=False):
            found |= _listing(folder, name)
        elif entry.is_file(follow_symlinks=False):
            found.add(name)
        else:
            raise RefusedError(f"{name} is a device or a pipe, not a file.", "Do not use this bundle.")
    return found


def _bytes_of(path: Path, *, limit: int) -> bytes:
    """The bytes of a regular file, at most `limit` + 1, which shows that it is too large."""
    with opened(path) as file:
        return file.read(limit + 1)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """A regular file, open for reading; a link, a pipe or a device is a RefusedError."""
    with reported(RefusedError, f"{path} cannot be read", "Get the bundle again."):
        handle = os.open(str(path), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise RefusedError(f"{path} is not a regular file.", "Do not use this bundle.")
        yield file


def _same_files(listed: set[str], found: set[str]) -> None:
    if found - listed:
        raise RefusedError(
            f"The bundle has files that were not signed: {', '.join(sorted(found - listed)[:5])}.",
            "Do not use it; get it again from its maker.",
        )
    if listed - found:
        raise RefusedError(
            f"Files of the bundle are missing: {', '.join(sorted(listed - found)[:5])}.",
            "Get the bundle again: the copy is incomplete.",
        )
