"""Where things lie on a board, below the home of who uses it."""

from __future__ import annotations

from pathlib import Path

CACHE = Path("~/.cache/deadweight")
"""The agent's own folder."""
PLACE = Path("~/.local/share/deadweight/bundles")
"""Installed bundles."""
