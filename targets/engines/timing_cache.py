"""The cache of kernel timings: two builds choose from equal timings only if they share it.

Timings depend on TensorRT's version, the GPU and the power mode, which are in the file's name. TensorRT
reports timings of another device only when the cache is set, by False.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, List, Mapping, Optional, Tuple

from ..artifact import writing
from ..machine.jetson import read_state
from .log import Line, reason


def cache_path(
    version: str, flavour: str, device: Optional[Mapping[str, Any]], folder: Optional[Path], root: Path
) -> Optional[Path]:
    """The file for this TensorRT on this GPU in this power mode; None where the GPU is unknown."""
    if device is None:
        return None
    home = os.environ.get("XDG_CACHE_HOME") or str(Path("~/.cache").expanduser())
    at = folder or Path(home) / "deadweight" / "timing"
    kind = f"sm{device['compute_capability'].replace('.', '')}x{device['streaming_multiprocessors']}"
    mode = read_state(root).power_mode
    power = "" if mode is None else "-" + re.sub(r"[^\w.]", "_", mode.name or str(mode.id))
    return at / f"{flavour}-{version}-{kind}{power}.cache"


def give_cache(config: Any, path: Optional[Path], lines: List[Line]) -> Tuple[bool, str]:
    """Attaches the stored timings, or else an empty cache; whether they are used, and why not.

    `lines` is the log that is being recorded.
    """
    stored = path.read_bytes() if path is not None and path.is_file() else b""
    before = len(lines)
    cache = config.create_timing_cache(stored)
    if cache is not None and config.set_timing_cache(cache, False):
        if stored:
            return True, ""
        return False, "the GPU is unknown here" if path is None else "there were none"
    # Damaged, or of another device: this build fills an empty one, which replaces the file.
    why = reason(lines[before:])
    empty = config.create_timing_cache(b"")
    if empty is None or not config.set_timing_cache(empty, False):
        why = f"TensorRT accepts no timing cache: {why}"
    return False, why


def keep_cache(config: Any, path: Optional[Path]) -> None:
    """Writes the timings, including those of this build."""
    cache = config.get_timing_cache()
    if path is None or cache is None:
        return
    with writing(path) as beside:
        beside.write_bytes(cache.serialize())
