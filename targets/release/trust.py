"""The trust check of a bundle: may it be loaded on this machine? Loading an engine runs its code.

A bundle is a directory with a manifest, which has the hash of every file and the board, and a signature of
that manifest by `ssh-keygen -Y sign`, which every JetPack has. Keys are ssh keys, in a file, an agent or a
token. A file of the machine, never the bundle, lists the trusted signers, and other users must not be able to
write it. The order is fixed: no bytes are parsed before their signature was checked, and no file is loaded
before its hash was. A file is read once: the hashed bytes are those returned, so that they cannot be replaced
in between. ssh-keygen also accepts a signature with added blanks; here only the bytes that it writes are
accepted, so that a changed byte is always detected.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import os
import re
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Iterator, Mapping, Optional

from ..errors import RefusedError, reported
from ..paths import SIGNERS
from ..runtimes.runtime import is_engine
from ..sealed import sealed_bytes
from .manifest import LARGEST, MANIFEST, SIGNATURE, Entry, Manifest, check_board, check_content, parsed


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


NAMESPACE = "deadweight-bundle"
_ROOT = Path("/")


def signer_of(data: bytes, signature: bytes, signers: Path, *, given: bool, root: Path) -> str:
    """The name in `signers` of the key that signed these bytes.

    `given`: the user chose the list, which may be their own; otherwise only root may be able to write it.
    """
    if not _is_canonical(signature):
        raise RefusedError("The signature is invalid: it was changed or truncated.", "Get the bundle again.")
    if not signers.exists():
        raise RefusedError(
            f"This machine trusts no signer yet: {signers} does not exist.",
            "Write the release key into it, as root: NAME namespaces="
            f'"{NAMESPACE}" and the public key, on one line.',
        )
    _check_owner(signers, root=root, given=given)
    with sealed_bytes("signature", signature) as sealed:
        signer = _guess_signer(signature, signers)
        # The usual case in one call; the rest finds the reason for a failure.
        if signer and _is_by(signer, data, sealed, signers):
            return signer
        shown = _keygen(data, "check-novalidate", "-n", NAMESPACE, "-s", str(sealed))
        if shown.returncode:
            raise RefusedError(
                "The signature does not match the manifest: one of them was changed after signing, or it was "
                f"signed for another purpose than {NAMESPACE}.",
                "Get the bundle again from its maker.",
            )
        key = re.search(rb"SHA256:\S+", shown.stdout)
        fingerprint = key.group().decode("ascii", "replace") if key else "an unknown key"
        listed = _keygen(b"", "find-principals", "-s", str(sealed), "-f", str(signers))
        for name in listed.stdout.decode("utf-8", "replace").splitlines() if listed.returncode == 0 else ():
            if _is_by(name, data, sealed, signers):
                return name
    raise RefusedError(
        f"The bundle is signed by {fingerprint}, not trusted here (or no longer, or not for bundles).",
        f'If that key is yours, add it to {signers} with namespaces="{NAMESPACE}".',
    )


def _is_by(name: str, data: bytes, signature: Path, signers: Path) -> bool:
    """Whether ssh-keygen accepts the signature as that of `name`, with a key valid today for bundles."""
    options = ("-I", name, "-n", NAMESPACE, "-s", str(signature), "-f", str(signers))
    return _keygen(data, "verify", *options).returncode == 0


def _guess_signer(signature: bytes, signers: Path) -> str:
    """A guess of the signer: the plain name beside the signature's key in the list, or ""."""
    blob = base64.b64decode(b"".join(signature.splitlines()[1:-1]))
    size = int.from_bytes(blob[10:14], "big")
    key = base64.b64encode(blob[14 : 14 + size])
    for line in signers.read_bytes().splitlines():
        words = line.split()
        if key in words[1:] and re.fullmatch(rb"[A-Za-z0-9@._+-]+", words[0]):
            return words[0].decode()
    return ""


def _keygen(data: bytes, action: str, *options: str) -> subprocess.CompletedProcess[bytes]:
    what = "The signature cannot be checked, since ssh-keygen does not run here"
    cure = "sudo apt install openssh-client (8.2 or newer)"
    with reported(RefusedError, what, cure, OSError, subprocess.TimeoutExpired):
        return subprocess.run(
            ["ssh-keygen", "-Y", action, *options], input=data, capture_output=True, timeout=30, check=False
        )


def _is_canonical(signature: bytes) -> bool:
    """Whether these are exactly the bytes that ssh-keygen writes; it also reads others, as with blanks."""
    found = re.fullmatch(
        rb"-----BEGIN SSH SIGNATURE-----\n((?:[A-Za-z0-9+/]{70}\n)*[A-Za-z0-9+/]{1,70}={0,2}\n)"
        rb"-----END SSH SIGNATURE-----\n",
        signature,
    )
    if found is None:
        return False
    plain = found.group(1).replace(b"\n", b"")
    try:
        blob = base64.b64decode(plain, validate=True)
    except (binascii.Error, ValueError):
        return False
    # The version is not signed, and ssh-keygen accepts 0 as 1.
    return blob.startswith(b"SSHSIG\x00\x00\x00\x01") and base64.b64encode(blob) == plain


def _check_owner(signers: Path, *, root: Path, given: bool) -> None:
    """Refuses a list of signers that other users can write, by itself or by a directory above it."""
    # On the real root only root may own it. A list that the user chose may be the user's own.
    trusted = {0} if root == _ROOT and not given else {0, os.getuid()}
    for place in (signers.resolve(), *signers.resolve().parents):
        state = place.stat()
        others = state.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        if state.st_uid not in trusted or (others and not state.st_mode & stat.S_ISVTX):
            raise RefusedError(
                f"{signers} has the trusted signers, but {place} can be changed by users other than root.",
                f"As root: chown root:root {place} && chmod go-w {place}",
            )
