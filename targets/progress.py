"""The types of progress callbacks."""

from __future__ import annotations

from typing import Callable

Progress = Callable[[int, int, str], None]
"""Called with the amount done, the total, and the name of the step."""
Counted = Callable[[int, int], None]
"""Called with the amount done and the total."""


def silent(done: int, total: int, what: str) -> None:
    """Shows no progress."""
