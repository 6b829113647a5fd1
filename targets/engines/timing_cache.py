"""The cache of kernel timings between builds, by TensorRT version and GPU.

Two builds of one file choose different kernels where timings are close, so two engines to be compared should
use the same timings. Cached timings also make a build faster.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Mapping, Optional

from ..artifact import writing


def timing_path(
    trt: Any, flavour: str, device: Optional[Mapping[str, Any]], folder: Optional[Path]
) -> Optional[Path]:
    """The cache file for this TensorRT on this GPU; None where the GPU is unknown."""
    if device is None:
        return None
    home = os.environ.get("XDG_CACHE_HOME") or str(Path("~/.cache").expanduser())
    at = folder or Path(home) / "deadweight" / "timing"
    kind = f"sm{device['compute_capability'].replace('.', '')}x{device['streaming_multiprocessors']}"
    return at / f"{flavour}-{trt.__version__}-{kind}.cache"


def give_cache(config: Any, path: Optional[Path]) -> bool:
    """Loads the cached timings; whether there were any that this builder accepts."""
    stored = path.read_bytes() if path is not None and path.is_file() else b""
    cache = config.create_timing_cache(stored)
    if cache is None and stored:  # damaged, or of another board: start empty
        stored, cache = b"", config.create_timing_cache(b"")
    return bool(cache is not None and config.set_timing_cache(cache, False) and stored)


def keep_cache(config: Any, path: Optional[Path]) -> None:
    """Writes the timings, including those of this build."""
    cache = config.get_timing_cache()
    if path is None or cache is None:
        return
    with writing(path) as beside:
        beside.write_bytes(cache.serialize())
