"""The memory that TensorRT and CUDA take on this board before any model is loaded: measured once, and kept.

A child process reads MemAvailable before and after it creates an empty runtime, and then an empty builder.
CPU and GPU share that memory on a Jetson; a card has its own, so there nothing is measured.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, Mapping

from ..artifact import json_of, write_json
from ..errors import DeadweightError
from ..memory_fit import Base, base_of, free_memory
from ..paths import CACHE, cache
from .log import heard, import_tensorrt, is_simulated

_KEPT = "base_memory.json"
_SPREAD = (0.8, 1.25)
"""Other programs take and free memory meanwhile."""
_TIMEOUT_S = 120.0


def base_here(version: str, *, building: bool, folder: Path = CACHE) -> Base:
    """The base of this version of TensorRT: as it was measured here, else the estimate."""
    estimate, kept = base_of(version, building=building), kept_base(folder)
    size = kept.get("building_bytes" if building else "running_bytes", 0)
    if kept.get("tensorrt") != version or size <= 0:
        return estimate
    low, high = (int(size * share) for share in _SPREAD)
    # An empty builder has not yet loaded the kernels that it tries.
    high = max(high, estimate.high_bytes) if building else high
    source, certainty = ("simulated", "low") if kept["simulated"] else ("measured on this board", "high")
    return Base(low, high, source, certainty)


def kept_base(folder: Path = CACHE) -> Dict[str, Any]:
    """What `measure_base` found here: tensorrt, running_bytes, building_bytes, simulated; or nothing."""
    try:
        return dict(json_of((Path(folder).expanduser() / _KEPT).read_text("utf-8")))
    except (OSError, ValueError):
        return {}


def measure_base(folder: Path = CACHE) -> Mapping[str, Any]:
    """Measures and keeps it, if this version was not measured before; empty where it cannot be measured."""
    # The child imports the package from the same place, also from a zip file.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, filter(None, sys.path)))}
    command = [sys.executable, "-c", f"from {__name__} import _child; _child()"]
    try:
        version = str(import_tensorrt().__version__)
        if kept_base(folder).get("tensorrt") == version:
            return kept_base(folder)
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=_TIMEOUT_S, check=True
        )
        measured = dict(json.loads(done.stdout.splitlines()[-1]))
        write_json(cache(folder) / _KEPT, {"tensorrt": version, **measured})
    except (DeadweightError, OSError, ValueError, IndexError, subprocess.SubprocessError):
        return {}
    return kept_base(folder)


def _child() -> None:
    from ..machine.cuda import open_cuda

    before, trt = free_memory(), import_tensorrt()
    cuda = open_cuda()
    if not cuda.attribute("integrated"):
        return
    with heard(trt) as (logger, lines):
        first = cuda.malloc(1 << 20)  # now the context exists
        runtime = trt.Runtime(logger)
        running = before - free_memory()
        builder = trt.Builder(logger)
        config = builder.create_builder_config()
        building = before - free_memory()
    print()
    print(
        json.dumps({"running_bytes": running, "building_bytes": building, "simulated": is_simulated(lines)})
    )
    del config, builder, runtime
    cuda.free(first)
