"""Paths on a board: the user's folders, and the machine's trusted signers."""

from __future__ import annotations

from pathlib import Path

from .errors import ArtifactError

SIGNERS = Path("etc/deadweight/allowed_signers")
"""The machine's trusted signers; below the root."""

CACHE = Path("~/.cache/deadweight")
"""The agent's folder."""
PLACE = Path("~/.local/share/deadweight/bundles")
"""Installed bundles."""


def cache(folder: Path = CACHE) -> Path:
    """The agent's folder, created if missing, which no other user can read."""
    place = Path(folder).expanduser()
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ArtifactError(f"{place} cannot be created: {error.strerror}.", "Fix its owner.") from error
    return place
