"""What long work calls while it runs."""

from __future__ import annotations

from typing import Callable

Progress = Callable[[int, int, str], None]
"""How much is done, of how much, and what of."""
Counted = Callable[[int, int], None]
"""The same where what is done is known from the call."""
