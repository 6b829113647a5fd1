"""Timings of kernels, kept from one build to the next: by TensorRT's version and the GPU they are of.

Two builds of one file choose different kernels where timings are close, so two engines that are to be
compared should choose from the same ones. Timings that are kept need not be taken again.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Mapping, Optional

from ..artifact import writing


def timing_path(
    trt: Any, flavour: str, device: Optional[Mapping[str, Any]], folder: Optional[Path]
) -> Optional[Path]:
    """Where kernel timings of this TensorRT on this GPU are kept; None where the GPU is unknown."""
    if device is None:
        return None
    home = os.environ.get("XDG_CACHE_HOME") or str(Path("~/.cache").expanduser())
    at = folder or Path(home) / "deadweight" / "timing"
    kind = f"sm{device['compute_capability'].replace('.', '')}x{device['streaming_multiprocessors']}"
    return at / f"{flavour}-{trt.__version__}-{kind}.cache"


def give_cache(config: Any, path: Optional[Path]) -> bool:
    """Starts from the kept timings; whether there were any that this builder takes."""
    kept = path.read_bytes() if path is not None and path.is_file() else b""
    cache = config.create_timing_cache(kept)
    if cache is None and kept:  # damaged, or another board's: begin anew
        kept, cache = b"", config.create_timing_cache(b"")
    return bool(cache is not None and config.set_timing_cache(cache, False) and kept)


def keep_cache(config: Any, path: Optional[Path]) -> None:
    """Writes the timings, those of this build included."""
    cache = config.get_timing_cache()
    if path is None or cache is None:
        return
    with writing(path) as beside:
        beside.write_bytes(cache.serialize())
