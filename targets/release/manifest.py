"""The manifest of a bundle, parsed after its signature was checked: files, board, release, expiry.

A manifest has exactly the keys of `Manifest`, so that older readers cannot overlook one. Times are ISO 8601
in UTC to the second, as in 2026-11-23T02:15:00+00:00.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Tuple

from ..artifact import json_of
from ..errors import RefusedError, reported
from ..plain import from_plain
from ..runtimes.runtime import is_engine

MANIFEST = "manifest.json"
SIGNATURE = "manifest.json.sig"
SCHEMA = 2
LARGEST = 4 << 20
"""Limit of a manifest in bytes."""
LARGEST_RELEASE = (1 << 53) - 1
_CODE = (".so", ".dll", ".dylib", ".py", ".pyc", ".pyd", ".sh", ".exe", ".bat", ".pkl", ".pt", ".pth")
_CODE_BEGINS = (b"\x7fELF", b"MZ", b"#!")
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
_TIME = r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\+00:00"
_AGAIN = "Make the bundle again."


@dataclass(frozen=True)
class Entry:
    """A file in the manifest."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class Board:
    """What the board must have; None where any is allowed."""

    compute_capability: Optional[str]
    tensorrt: Optional[str]


@dataclass(frozen=True)
class Golden:
    """The golden test: the files of its inputs and outputs, and the allowed deviation, 0 to 1."""

    inputs: str
    outputs: str
    tolerance: float


@dataclass(frozen=True)
class Manifest:
    """What a bundle has, for which board, and which release it is."""

    name: str
    made_by: str
    target: str
    release: int
    """It only rises."""
    made_at: str
    expires: Optional[str]
    board: Board
    model: str
    """The model's file."""
    golden: Golden
    files: Mapping[str, Entry]
    """All files but manifest and signature, by name."""
    schema: int = SCHEMA


def parsed(data: bytes) -> Manifest:
    """Parses a manifest whose signature was checked.

    Raises:
        RefusedError: it is none of this version; or a file's name is outside the bundle, or is code.
    """

    def once(pairs: List[Tuple[str, Any]]) -> Dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            raise ValueError("a key comes twice")
        return dict(pairs)

    with reported(RefusedError, f"{MANIFEST} is not JSON", _AGAIN, ValueError):
        content = json_of(data.decode("utf-8"), once)
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        schema = content.get("schema") if isinstance(content, dict) else None
        raise RefusedError(
            f"{MANIFEST} has the schema {schema!r}; this deadweight reads {SCHEMA}.",
            "Make the bundle and check it with the same version of deadweight.",
        )
    manifest = from_plain(Manifest, content, MANIFEST, error=RefusedError, cure=_AGAIN)
    for name in manifest.files:
        check_name(name)
        if name in (MANIFEST, SIGNATURE):
            raise RefusedError(f"The manifest lists {name} itself.", _AGAIN)
    fault = _fault(manifest)
    if fault:
        raise RefusedError(f"{MANIFEST} does not have {fault}.", _AGAIN)
    return manifest


def _fault(manifest: Manifest) -> str:
    """What the manifest should have but does not; empty if valid."""
    if not re.fullmatch(_NAME, manifest.name):
        return f"a plain name: {manifest.name!r}"
    if not 1 <= manifest.release <= LARGEST_RELEASE:
        return f"a release number from 1 to {LARGEST_RELEASE}: {manifest.release!r}"
    if not 0 <= manifest.golden.tolerance <= 1:
        return f"a tolerance from 0 to 1: {manifest.golden.tolerance!r}"
    for key, time in (("made_at", manifest.made_at), ("expires", manifest.expires)):
        if time is not None and not _is_time(time):
            return f"a time for {key}: {time!r}"
    negative = [name for name, entry in manifest.files.items() if entry.bytes < 0]
    return f"a size for {negative[0]}" if negative else ""


def _is_time(text: str) -> bool:
    try:
        return bool(re.fullmatch(_TIME, text) and datetime.fromisoformat(text))
    except ValueError:
        return False


def check_name(name: Any) -> str:
    """Checks that a file's name is inside the bundle, and returns it."""
    parts = name.split("/") if isinstance(name, str) else []
    if not parts or any(part in ("", ".", "..") for part in parts) or re.search(r"[\x00-\x1f\x7f\\]", name):
        raise RefusedError(
            f"The bundle names a file {name!r}, which is not a plain path inside it.",
            "Do not use it: it was made to write or read outside.",
        )
    if Path(name).suffix in _CODE or ".so." in Path(name).name:
        raise RefusedError(*_code(name))
    return str(name)


def check_content(name: str, entry: Entry, *, size: int, sha256: str, head: bytes) -> None:
    """Checks a file's size, hash and first bytes against the manifest."""
    if size != entry.bytes or sha256 != entry.sha256:
        raise RefusedError(
            f"{name} was changed after it was signed: its hash is not that of the manifest.",
            "Get the bundle again from its maker.",
        )
    if head.startswith(_CODE_BEGINS):
        raise RefusedError(*_code(name))


def check_board(manifest: Manifest, root: Path = Path("/")) -> None:
    """Checks the board: an engine needs its TensorRT release and GPU type, an ONNX file a minor release."""
    wanted, title = manifest.board, manifest.target
    holds_engine = any(is_engine(name) for name in manifest.files)
    if wanted.compute_capability is None and wanted.tensorrt is None and not holds_engine:
        return
    from ..machine import jetson  # only if needed: it takes longer than the check of a small bundle

    board = jetson.read_board(root) if jetson.is_jetson(root) else None
    if board is None:
        raise RefusedError(
            f"The bundle is for {title}; this machine is not a Jetson.", "Install it on the board."
        )
    if wanted.compute_capability != board.compute_capability:
        raise RefusedError(
            f"The bundle is for {title} (compute capability {wanted.compute_capability}), but this is "
            f"{board.model} ({board.compute_capability or 'unknown'}).",
            "Make a bundle for this board: deadweight run RECIPE --target NAME",
        )
    parts = 4 if holds_engine else 2
    asked, here = (str(version or "").split(".")[:parts] for version in (wanted.tensorrt, board.tensorrt))
    shared = min(len(asked), len(here))
    if asked[:shared] != here[:shared] or shared < 2:
        raise RefusedError(
            f"The bundle is for TensorRT {wanted.tensorrt}; this board has {board.tensorrt or 'none'}.",
            "Build the engine on the board, or make a bundle for its release of JetPack.",
        )


def _code(name: str) -> Tuple[str, str]:
    return (
        f"{name} is code: a bundle has models and data, never libraries or programs.",
        "Install a plugin on the board itself, from its maker.",
    )
