"""Engines that this machine built itself: the only ones it loads without a signature.

An engine is code. One that lies on the board as a bare file may come from anywhere, and a record beside it
proves nothing, since who brings the one brings the other. So the agent notes the hash of what it builds in
its own folder, and opens a bare engine only if its hash is there, from the bytes that were hashed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path
from typing import Iterator

from ..artifact import sha256_of
from ..errors import ModelError, RefusedError
from ..paths import CACHE, cache
from ..sealed import sealed_bytes

_NOTES = "built"


def remember_built(engine: Path, folder: Path = CACHE) -> None:
    """Notes that this machine built the engine."""
    handle = os.open(str(cache(folder) / _NOTES), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    with os.fdopen(handle, "w") as notes:
        notes.write(sha256_of(engine) + "\n")


@contextlib.contextmanager
def own_engine(engine: Path, folder: Path = CACHE) -> Iterator[Path]:
    """A path that holds the engine's checked bytes; see `trust.sealed_bytes`.

    Raises:
        ModelError: there is none.
        RefusedError: it was built elsewhere, or changed since.
    """
    try:
        data = Path(engine).read_bytes()
    except OSError as error:
        raise ModelError(f"There is no engine at {engine}.", "Check the path.") from error
    notes = cache(folder) / _NOTES
    known = notes.read_text().split() if notes.is_file() else []
    if hashlib.sha256(data).hexdigest() not in known:
        raise RefusedError(
            f"{Path(engine).name} was not built on this board, or changed since. An engine is code: whoever "
            "made it could run anything here.",
            "Send the ONNX file and build it here, or ship the engine in a signed bundle.",
        )
    with sealed_bytes(Path(engine).name, data) as path:
        yield path
