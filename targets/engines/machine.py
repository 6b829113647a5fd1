"""What a build asks of the machine: its GPU, its memory, and whether it is the target board.

The memory that TensorRT and CUDA take before any model is loaded is measured once, and kept. A child process
reads MemAvailable before and after it creates an empty runtime, and then an empty builder. CPU and GPU share
that memory on a Jetson; a card has its own, so there nothing is measured.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, Mapping, Optional

from ..artifact import json_of, write_json
from ..errors import DeadweightError, MeasurementError, TargetError
from ..machine.child import child
from ..machine.jetson import is_jetson, read_board
from ..memory_fit import Base, Fit, Footprint, base_of, fit, free_memory
from ..paths import CACHE, cache
from ..target import Target, check_version, targets_of
from .build_settings import BuildSettings
from .log import heard, import_tensorrt, is_simulated

_BASE_BYTES = 300_000_000
_COPIES = 3
"""Rule of thumb for the minimum memory of a build: the base of CUDA and TensorRT, and the weights as read, as
parsed and as written."""


def check_target(
    trt: Any,
    target: Optional[Target],
    device: Optional[Mapping[str, Any]],
    settings: BuildSettings,
    *,
    version: str,
    root: Path = Path("/"),
) -> None:
    """Checks that this machine, with TensorRT of that version, can build for the target board.

    `trt` is only asked for the GPUs that TensorRT-RTX can build for.
    """
    if settings.hardware_compatibility and device is not None and device.get("integrated"):
        raise TargetError(
            f"This GPU is a Jetson's or DRIVE's, and such engines run on it alone: there is no hardware "
            f"compatibility '{settings.hardware_compatibility}'.",
            "Omit --hardware-compatibility, which is for cards.",
        )
    if target is None:
        return
    runs = target.runtime
    if not runs.builds:
        raise TargetError(
            f"{target.title} runs ONNX files with {target.runtime}, not engines.",
            "Use the ONNX file as it is, or choose another target: deadweight targets.",
        )
    wanted = target.certain("compute_capability")
    if settings.flavour == "tensorrt_rtx" and wanted is not None:
        known = getattr(trt, "ComputeCapability", None)
        if not hasattr(known, "SM" + str(wanted).replace(".", "")):
            raise TargetError(
                f"TensorRT-RTX {version} cannot build for compute capability {wanted}, which "
                f"{target.title} has.",
                "Build with --flavour tensorrt on the board itself, or omit --target.",
            )
    elif wanted is not None and device is not None and device["compute_capability"] != wanted:
        raise TargetError(
            f"{target.title} has compute capability {wanted}, but the GPU here has "
            f"{device['compute_capability']}: an engine runs only where it was built.",
            "Build it on the board: --on USER@HOST. For this machine omit --target, or give --target "
            f"{' or '.join(targets_of(device['compute_capability'])) or 'nvidia-gpu'}.",
        )
    if settings.flavour == "tensorrt":
        check_version(target, version, read_board(root).jetpack if is_jetson(root) else None)


def room_for(model: Path, target: Optional[Target], root: Path) -> Optional[int]:
    """Bytes that a build can use; None if unknown."""
    try:
        free = free_memory(root)
    except MeasurementError:
        return None
    least = _BASE_BYTES + _COPIES * model.stat().st_size
    if free < least:
        raise TargetError(
            f"Only {free / 1e6:.0f} MB of memory are free here; building {model.name} needs at "
            f"least some {least / 1e6:.0f} MB.",
            "Stop other programs (the desktop: sudo systemctl isolate multi-user.target) or add swap, and "
            "run the same command again.",
        )
    known = None if target is None else target.fact("memory_bytes")
    return min(free, int(known.value)) if known and isinstance(known.value, (int, float)) else free


def fit_for(
    version: str, need: Optional[Footprint], free: Optional[int], settings: BuildSettings
) -> Optional[Fit]:
    """Whether the model fits, if known. TensorRT-RTX has its own version numbers and matches TensorRT 10."""
    if need is None or free is None:
        return None
    rtx = settings.flavour == "tensorrt_rtx"
    base = base_of("10", building=True) if rtx else base_here(version, building=True)
    workspace = settings.workspace_bytes or 0
    return fit(need, free_bytes=free, base=base, building=True, workspace_bytes=workspace).checked()


def limits_for(settings: BuildSettings, free: Optional[int], fitted: Optional[Fit]) -> Dict[str, int]:
    """Caps the memory of one layer, since the system needs memory too; by default a power of two, so that
    builds one after the other have the same limit.

    Trials of kernels keep TensorRT's own limit, 75 % of all memory: on a board it includes what TensorRT
    itself needs, and a smaller one excludes kernels without a word.
    """
    room = fitted.workspace_bytes if fitted is not None else (free or 0) // 2
    workspace = settings.workspace_bytes or (1 << (room.bit_length() - 1) if room else None)
    return {} if workspace is None else {"workspace_bytes": workspace}


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
    try:
        version = str(import_tensorrt().__version__)
        if kept_base(folder).get("tensorrt") == version:
            return kept_base(folder)
        with child() as process:
            measured = process.run(_measured_base, what="TensorRT alone", within_s=_TIMEOUT_S, limited=False)
        write_json(cache(folder) / _KEPT, {"tensorrt": version, **measured})
    except (DeadweightError, OSError):
        return {}
    return kept_base(folder)


def _measured_base() -> Dict[str, Any]:
    from ..machine.cuda import open_cuda

    before, trt = free_memory(), import_tensorrt()
    cuda = open_cuda()
    if not cuda.attribute("integrated"):
        raise TargetError("A card has its own memory.", "Only that of an integrated GPU is measured.")
    with heard(trt) as (logger, lines):
        first = cuda.malloc(1 << 20)  # now the context exists
        runtime = trt.Runtime(logger)
        running = before - free_memory()
        builder = trt.Builder(logger)
        config = builder.create_builder_config()
        building = before - free_memory()
    del config, builder, runtime
    cuda.free(first)
    return {"running_bytes": running, "building_bytes": building, "simulated": is_simulated(lines)}
