"""Paths on a board: the user's folders, and the machine's trusted signers."""

from __future__ import annotations

import contextlib
import shutil
import time
from pathlib import Path

from .errors import ArtifactError, reported

SIGNERS = Path("etc/deadweight/allowed_signers")
"""The machine's trusted signers; below the root."""

CACHE = Path("~/.cache/deadweight")
"""The agent's folder."""
PLACE = Path("~/.local/share/deadweight/bundles")
"""Installed bundles."""

_EXPIRES_S = 14 * 24 * 3600.0


def cache(folder: Path = CACHE) -> Path:
    """The agent's folder, created if missing, which no other user can read."""
    place = Path(folder).expanduser()
    with reported(ArtifactError, f"{place} cannot be created", "Fix its owner."):
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
    return place


def stored(folder: Path, name: str) -> Path:
    """A folder of the agent's, created if missing, without what was not used for two weeks."""
    place = cache(folder) / name
    place.mkdir(exist_ok=True)
    for old in place.iterdir():
        with contextlib.suppress(OSError):
            if time.time() - old.stat().st_mtime > _EXPIRES_S:
                shutil.rmtree(str(old), ignore_errors=True)
    return place
