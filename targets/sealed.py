"""Sealed bytes: immutable content under a path, to be checked and then given to another program.

They are in memory, not in a file system (Linux, memfd_create).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from typing import Iterator

from .errors import TargetError, reported

_ADD_SEALS = 1033
_AGAINST_ALL = 1 | 2 | 4 | 8  # against more seals, shrinking, growing and writing


@contextlib.contextmanager
def sealed_bytes(name: str, data: bytes) -> Iterator[Path]:
    """A path with these bytes, for the duration of the block; a TargetError if memory is short."""
    handle = os.memfd_create(name, os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    try:
        large = f"{name} ({len(data) / 1e6:.1f} MB) cannot be held in memory"
        with reported(TargetError, large, "Free some memory."):
            with os.fdopen(os.dup(handle), "wb") as file:
                file.write(data)
            fcntl.fcntl(handle, _ADD_SEALS, _AGAINST_ALL)
        yield Path(f"/proc/{os.getpid()}/fd/{handle}")
    finally:
        os.close(handle)
