"""Where things lie on a board, below the home of who uses it."""

from __future__ import annotations

from pathlib import Path

from .errors import ArtifactError

SIGNERS = Path("etc/deadweight/allowed_signers")
"""Whose bundles a machine takes; below the root."""

CACHE = Path("~/.cache/deadweight")
"""The agent's own folder."""
PLACE = Path("~/.local/share/deadweight/bundles")
"""Installed bundles."""


def cache(folder: Path = CACHE) -> Path:
    """The agent's own folder, which no other user can read."""
    place = Path(folder).expanduser()
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ArtifactError(f"{place} cannot be made: {error.strerror}.", "Mend its owner.") from error
    return place
