"""Whether a bundle may be loaded on this machine. An engine is code: who loads one runs it.

A bundle is a directory with a manifest that names every file's hash and the board it is for, and a signature
of that manifest by `ssh-keygen -Y sign`. Who may sign is said by a file of the machine, never by the bundle.
The order is fixed: nothing is parsed before the signature over its bytes was checked, and nothing is loaded
before its hash was. A file is read once: the bytes that were hashed are the bytes that are handed out, so
that nobody can swap them in between.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Dict, Iterator, List, Mapping, Optional, Tuple

from . import jetson
from .doctor import SIGNERS
from .errors import RefusedError
from .signature import signer_of

MANIFEST = "manifest.json"
SIGNATURE = "manifest.json.sig"
SCHEMA = 1
ENGINES = (".engine", ".plan")
_CODE = (".so", ".dll", ".dylib", ".py", ".pyc", ".pyd", ".sh", ".exe", ".bat", ".pkl", ".pt", ".pth")
_CODE_BEGINS = (b"\x7fELF", b"MZ", b"#!")
_LARGEST_MANIFEST = 4 << 20
_ROOT = Path("/")
_KEYS = {"schema", "name", "made_by", "target", "board", "files", "model", "golden"}
_BOARD_KEYS = {"compute_capability", "tensorrt"}


@dataclass(frozen=True)
class Entry:
    """What the manifest says of a file."""

    sha256: str
    size_bytes: int


@dataclass(frozen=True)
class Bundle:
    """A bundle whose signature, names and board were found right. `read` checks each file's bytes."""

    folder: Path
    manifest: Mapping[str, Any]
    manifest_bytes: bytes
    signature_bytes: bytes
    signer: str
    files: Mapping[str, Entry]

    @property
    def version(self) -> str:
        """The start of the manifest's hash: which bundle this is, exactly."""
        return hashlib.sha256(self.manifest_bytes).hexdigest()[:16]

    def read(self, name: str) -> bytes:
        """A file's bytes, read once and seen to be those that were signed.

        Raises:
            RefusedError: they are not, or the file is code.
        """
        if name not in self.files:
            raise RefusedError(
                f"{name} is not in the bundle {self.folder.name}.", "Use a file that it lists."
            )
        data = _bytes_of(self.folder / name, limit=self.files[name].size_bytes)
        self._right(name, len(data), hashlib.sha256(data), data[:4])
        return data

    def check(self, name: str) -> None:
        """The same check without keeping the bytes: an engine may be larger than the memory that is left."""
        digest, size, head = hashlib.sha256(), 0, b""
        with _opened(self.folder / name) as file:
            for block in iter(lambda: file.read(1 << 20), b""):
                digest.update(block)
                head, size = head or block[:4], size + len(block)
        self._right(name, size, digest, head)

    def _right(self, name: str, size: int, digest: Any, head: bytes) -> None:
        if size != self.files[name].size_bytes or digest.hexdigest() != self.files[name].sha256:
            raise RefusedError(
                f"{name} was changed after it was signed: its bytes are not those of the manifest.",
                "Get the bundle again from who made it.",
            )
        if head.startswith(_CODE_BEGINS):
            raise RefusedError(*_code(name))

    @contextlib.contextmanager
    def sealed(self, name: str) -> Iterator[Path]:
        """A path under which a runtime finds exactly the bytes that were checked; see `sealed_bytes`."""
        with sealed_bytes(Path(name).name, self.read(name)) as path:
            yield path


def open_bundle(folder: Path, *, root: Path = _ROOT, signers: Optional[Path] = None) -> Bundle:
    """Checks everything about a bundle but its files' bytes, which `Bundle.read` checks one by one.

    `root` is the machine's root directory; `signers` is a file in ssh-keygen's ALLOWED SIGNERS format,
    by default the machine's own.

    Raises:
        RefusedError: with the reason.
    """
    folder = Path(folder)
    found = _listing(folder)
    if MANIFEST not in found:
        raise RefusedError(
            f"{folder} is no bundle: it has no {MANIFEST}.", "Make one: deadweight bundle RUN."
        )
    data = _bytes_of(folder / MANIFEST, limit=_LARGEST_MANIFEST)
    if SIGNATURE not in found:
        engines = [name for name in found if name.endswith(ENGINES)]
        held = f"An engine is code, and {engines[0]} is one. " if engines else ""
        raise RefusedError(
            f"The bundle {folder.name} is not signed.",
            f"{held}Sign it where it was made: deadweight bundle RUN --sign KEY",
        )
    signature = _bytes_of(folder / SIGNATURE, limit=_LARGEST_MANIFEST)
    signer = signer_of(data, signature, signers or root / SIGNERS, given=signers is not None, root=root)
    manifest = _parsed(data)
    files = _entries(manifest)
    _same_files(set(files), found - {MANIFEST, SIGNATURE})
    _for_this_board(manifest, any(name.endswith(ENGINES) for name in files), root)
    return Bundle(folder, manifest, data, signature, signer, files)


def verify(folder: Path, *, root: Path = _ROOT, signers: Optional[Path] = None) -> Bundle:
    """Checks a whole bundle, every byte of every file.

    Raises:
        RefusedError: with the reason.
    """
    bundle = open_bundle(folder, root=root, signers=signers)
    for name in sorted(bundle.files):
        bundle.check(name)
    return bundle


@contextlib.contextmanager
def sealed_bytes(name: str, data: bytes) -> Iterator[Path]:
    """A path that holds these bytes, which nobody can change, for as long as the block lasts.

    They lie in memory, not in a file system (Linux, memfd_create).
    """
    handle = os.memfd_create(name, os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    try:
        with os.fdopen(os.dup(handle), "wb") as file:
            file.write(data)
        # F_ADD_SEALS, with seals against more seals, shrinking, growing and writing.
        fcntl.fcntl(handle, 1033, 1 | 2 | 4 | 8)
        yield Path(f"/proc/{os.getpid()}/fd/{handle}")
    finally:
        os.close(handle)


def check_name(name: Any) -> str:
    """A file's name within a bundle, once it was seen to stay inside.

    Raises:
        RefusedError: it is absolute, climbs out with `..`, or is code.
    """
    parts = name.split("/") if isinstance(name, str) else []
    if not parts or any(part in ("", ".", "..") for part in parts) or re.search(r"[\x00-\x1f\x7f\\]", name):
        raise RefusedError(
            f"The bundle names a file {name!r}, which is not a plain path inside it.",
            "Do not use it: it was made to write or read elsewhere.",
        )
    if Path(name).suffix in _CODE or ".so." in Path(name).name:
        raise RefusedError(*_code(name))
    return str(name)


def _code(name: str) -> Tuple[str, str]:
    return (
        f"{name} is code: a bundle holds models and what is known of them, never libraries or programs.",
        "Install a plugin on the board itself, from who makes it.",
    )


def _listing(folder: Path, inside: str = "") -> set[str]:
    """Every file below the folder. Links, devices and pipes are refused: what they lead to is not signed."""
    found = set()
    try:
        with os.scandir(folder / inside if inside else folder) as entries:
            listed = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise RefusedError(f"{folder} cannot be read: {error.strerror}.", "Check the path.") from error
    for entry in listed:
        name = f"{inside}/{entry.name}" if inside else entry.name
        if entry.is_symlink():
            raise RefusedError(
                f"{name} is a link, which a signature says nothing of.", "Do not use this bundle."
            )
        if entry.is_dir(follow_symlinks=False):
            found |= _listing(folder, name)
        elif entry.is_file(follow_symlinks=False):
            found.add(name)
        else:
            raise RefusedError(f"{name} is no file but a device or a pipe.", "Do not use this bundle.")
    return found


def _bytes_of(path: Path, *, limit: int) -> bytes:
    """All bytes of a plain file, or one more than `limit`, so that too many are seen and not all are read."""
    with _opened(path) as file:
        return file.read(limit + 1)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        handle = os.open(str(path), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise RefusedError(f"{path} cannot be read: {error.strerror}.", "Get the bundle again.") from error
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise RefusedError(f"{path} is no plain file.", "Do not use this bundle.")
        yield file


def _parsed(data: bytes) -> Dict[str, Any]:
    def once(pairs: List[Tuple[str, Any]]) -> Dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            raise ValueError("a key comes twice")
        return dict(pairs)

    try:
        manifest = json.loads(data.decode("utf-8"), object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise RefusedError(f"{MANIFEST} is not JSON: {error}.", "Make the bundle again.") from error
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        told = manifest.get("schema") if isinstance(manifest, dict) else None
        raise RefusedError(
            f"{MANIFEST} has the schema {told!r}; this deadweight reads {SCHEMA}.",
            "Make the bundle and check it with the same version of deadweight.",
        )
    if set(manifest) != _KEYS or set(manifest["board"] or {}) != _BOARD_KEYS:
        raise RefusedError(f"{MANIFEST} does not have the keys it should have.", "Make the bundle again.")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", str(manifest["name"])):
        raise RefusedError(
            f"The bundle's name {manifest['name']!r} is no plain name.", "Make the bundle again."
        )
    return manifest


def _entries(manifest: Mapping[str, Any]) -> Dict[str, Entry]:
    found: Dict[str, Entry] = {}
    for name, told in dict(manifest["files"]).items():
        found[check_name(name)] = Entry(str(told["sha256"]), int(told["bytes"]))
        if name in (MANIFEST, SIGNATURE):
            raise RefusedError(f"The manifest lists {name} itself.", "Make the bundle again.")
    return found


def _same_files(listed: set[str], found: set[str]) -> None:
    if found - listed:
        raise RefusedError(
            f"The bundle holds files that nobody signed: {', '.join(sorted(found - listed)[:5])}.",
            "Do not use it, or get it again from who made it.",
        )
    if listed - found:
        raise RefusedError(
            f"Files of the bundle are missing: {', '.join(sorted(listed - found)[:5])}.",
            "Get the bundle again: the copy was not finished.",
        )


def _for_this_board(manifest: Mapping[str, Any], holds_engine: bool, root: Path) -> None:
    """An engine fits one release of TensorRT and one kind of GPU; an ONNX file a minor release."""
    wanted, title = manifest["board"], manifest["target"]
    if wanted["compute_capability"] is None and wanted["tensorrt"] is None and not holds_engine:
        return
    board = jetson.read_board(root) if jetson.is_jetson(root) else None
    if board is None:
        raise RefusedError(
            f"The bundle is for {title}; this machine is no Jetson.", "Install it on the board."
        )
    if wanted["compute_capability"] != board.compute_capability:
        raise RefusedError(
            f"The bundle is for {title} (compute capability {wanted['compute_capability']}), and this is "
            f"{board.model} ({board.compute_capability or 'unknown'}).",
            "Make a bundle for this board: deadweight run RECIPE --target NAME",
        )
    parts = 4 if holds_engine else 2
    asked, here = (str(version or "").split(".")[:parts] for version in (wanted["tensorrt"], board.tensorrt))
    shared = min(len(asked), len(here))
    if asked[:shared] != here[:shared] or shared < 2:
        raise RefusedError(
            f"The bundle is for TensorRT {wanted['tensorrt']}; this board has {board.tensorrt or 'none'}.",
            "Build the engine on the board, or make a bundle for its release of JetPack.",
        )
