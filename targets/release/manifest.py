"""The manifest of a bundle, parsed after its signature was checked: files, board, release, expiry.

    schema, name, made_by, target           the network, and the board it is for
    release, made_at, expires                its number, which only rises; when it was made and expires
    board                                    {compute_capability, tensorrt}: null where any is allowed
    model, golden                            the model's file; {inputs, outputs, tolerance} of its test
    files                                    {name: {sha256, bytes}}: all files but manifest and signature

A manifest has exactly these keys, so that older readers cannot overlook one.
Times are ISO 8601 in UTC to the second, as in 2026-11-23T02:15:00+00:00.
"""

from __future__ import annotations

import json
import re
from datetime import datetime
from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Tuple

from ..errors import RefusedError
from ..runtimes.runtime import is_engine

MANIFEST = "manifest.json"
SIGNATURE = "manifest.json.sig"
SCHEMA = 2
LARGEST = 4 << 20
"""Limit of a manifest in bytes."""
LARGEST_RELEASE = (1 << 53) - 1
_CODE = (".so", ".dll", ".dylib", ".py", ".pyc", ".pyd", ".sh", ".exe", ".bat", ".pkl", ".pt", ".pth")
_CODE_BEGINS = (b"\x7fELF", b"MZ", b"#!")
_KEYS = {
    *("schema", "name", "made_by", "target", "release", "made_at", "expires"),
    *("board", "files", "model", "golden"),
}
_BOARD_KEYS = {"compute_capability", "tensorrt"}
_GOLDEN_KEYS = {"inputs", "outputs", "tolerance"}
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
_TIME = r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\+00:00"


class Entry(NamedTuple):
    """A file in the manifest."""

    sha256: str
    size_bytes: int


def parsed(data: bytes) -> Dict[str, Any]:
    """Parses a manifest whose signature was checked; a RefusedError if it is none of this version."""

    def once(pairs: List[Tuple[str, Any]]) -> Dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            raise ValueError("a key comes twice")
        return dict(pairs)

    try:
        manifest = json.loads(data.decode("utf-8"), object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise RefusedError(f"{MANIFEST} is not JSON: {error}.", "Make the bundle again.") from error
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        schema = manifest.get("schema") if isinstance(manifest, dict) else None
        raise RefusedError(
            f"{MANIFEST} has the schema {schema!r}; this deadweight reads {SCHEMA}.",
            "Make the bundle and check it with the same version of deadweight.",
        )
    fault = _fault(manifest)
    if fault:
        raise RefusedError(f"{MANIFEST} does not have {fault}.", "Make the bundle again.")
    return manifest


def _fault(manifest: Mapping[str, Any]) -> str:
    """What the manifest should have but does not; empty if valid."""
    board, golden, release = (manifest.get(key) for key in ("board", "golden", "release"))
    if set(manifest) != _KEYS or not isinstance(board, dict) or set(board) != _BOARD_KEYS:
        return "the required keys"
    if not isinstance(golden, dict) or set(golden) != _GOLDEN_KEYS:
        return "the required keys"
    tolerance = golden["tolerance"]
    texts = [manifest["name"], manifest["target"], manifest["model"], golden["inputs"], golden["outputs"]]
    if not all(isinstance(text, str) for text in texts) or not isinstance(manifest["files"], dict):
        return "values of the required types"
    if not re.fullmatch(_NAME, manifest["name"]):
        return f"a plain name: {manifest['name']!r}"
    if isinstance(release, bool) or not isinstance(release, int) or not 1 <= release <= LARGEST_RELEASE:
        return f"a release number from 1 to {LARGEST_RELEASE}: {release!r}"
    if isinstance(tolerance, bool) or not isinstance(tolerance, (int, float)) or not 0 <= tolerance <= 1:
        return f"a tolerance from 0 to 1: {tolerance!r}"
    for key in ("made_at", "expires"):
        time = manifest[key]
        if not (key == "expires" and time is None) and not _is_time(time):
            return f"a time for {key}: {time!r}"
    return ""


def _is_time(text: Any) -> bool:
    try:
        return bool(re.fullmatch(_TIME, str(text)) and datetime.fromisoformat(str(text)))
    except ValueError:
        return False


def entries(manifest: Mapping[str, Any]) -> Dict[str, Entry]:
    """The files that a manifest lists.

    Raises:
        RefusedError: a name is outside the bundle, is code or the manifest itself; or an entry is invalid.
    """
    listed: Dict[str, Entry] = {}
    for name, facts in manifest["files"].items():
        try:
            listed[check_name(name)] = Entry(str(facts["sha256"]), int(facts["bytes"]))
        except (TypeError, KeyError, ValueError) as error:
            raise RefusedError(
                f"{MANIFEST} has an invalid entry for {name}.", "Make the bundle again."
            ) from error
        if name in (MANIFEST, SIGNATURE):
            raise RefusedError(f"The manifest lists {name} itself.", "Make the bundle again.")
        if listed[name].size_bytes < 0:
            raise RefusedError(f"{MANIFEST} has an invalid entry for {name}.", "Make the bundle again.")
    return listed


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
    if size != entry.size_bytes or sha256 != entry.sha256:
        raise RefusedError(
            f"{name} was changed after it was signed: its hash is not that of the manifest.",
            "Get the bundle again from its maker.",
        )
    if head.startswith(_CODE_BEGINS):
        raise RefusedError(*_code(name))


def check_board(manifest: Mapping[str, Any], root: Path = Path("/")) -> None:
    """Checks the board: an engine needs its TensorRT release and GPU type, an ONNX file a minor release."""
    wanted, title = manifest["board"], manifest["target"]
    holds_engine = any(is_engine(name) for name in manifest["files"])
    if wanted["compute_capability"] is None and wanted["tensorrt"] is None and not holds_engine:
        return
    from ..machine import jetson  # only if needed: it takes longer than the check of a small bundle

    board = jetson.read_board(root) if jetson.is_jetson(root) else None
    if board is None:
        raise RefusedError(
            f"The bundle is for {title}; this machine is not a Jetson.", "Install it on the board."
        )
    if wanted["compute_capability"] != board.compute_capability:
        raise RefusedError(
            f"The bundle is for {title} (compute capability {wanted['compute_capability']}), but this is "
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


def _code(name: str) -> Tuple[str, str]:
    return (
        f"{name} is code: a bundle has models and data, never libraries or programs.",
        "Install a plugin on the board itself, from its maker.",
    )
