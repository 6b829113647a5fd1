"""The list of engines that this machine built, the only ones it loads without a signature.

An engine is code. A bare file may come from anywhere, and a record beside it proves nothing, since both can
have the same origin. So the agent stores the hash of each engine it builds in its own folder, and opens a
bare engine only if its hash is there, from the bytes that were hashed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Iterator

from ..artifact import sha256_of
from ..errors import ModelError, RefusedError
from ..paths import CACHE, cache
from ..sealed import sealed_bytes
from .record import record_path

_NOTES = "built"


def remember_built(engine: Path, folder: Path = CACHE) -> None:
    """Stores the hash of an engine that this machine built."""
    handle = os.open(str(cache(folder) / _NOTES), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    with os.fdopen(handle, "w") as notes:
        notes.write(sha256_of(engine) + "\n")


@contextlib.contextmanager
def own_engine(engine: Path, folder: Path = CACHE) -> Iterator[Path]:
    """A link to the engine's checked bytes (see `sealed_bytes`), with a copy of its record beside it.

    Raises:
        ModelError: the file is missing.
        RefusedError: it was built elsewhere, or changed since.
    """
    try:
        data = Path(engine).read_bytes()
    except OSError as error:
        raise ModelError(f"There is no engine at {engine}.", "Check the path.") from error
    notes = cache(folder) / _NOTES
    if hashlib.sha256(data).hexdigest() not in (notes.read_text().split() if notes.is_file() else []):
        raise RefusedError(
            f"{Path(engine).name} was not built on this board, or changed since. An engine is code: its "
            "maker could run anything here.",
            "Send the ONNX file and build it here, or send the engine in a signed bundle.",
        )
    with sealed_bytes(Path(engine).name, data) as path, tempfile.TemporaryDirectory() as place:
        link = Path(place) / Path(engine).name
        link.symlink_to(path)
        with contextlib.suppress(FileNotFoundError):
            shutil.copyfile(str(record_path(engine)), str(record_path(link)))
        yield link
