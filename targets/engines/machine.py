"""Checks of the machine before a build: its GPU, its memory, and whether it is the target board."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, Mapping, Optional

from ..errors import MeasurementError, TargetError
from ..machine.jetson import is_jetson, read_board
from ..memory_fit import Fit, Footprint, base_of, fit, free_memory
from ..target import Target, check_version, targets_of
from .base_memory import base_here
from .build_settings import BuildSettings

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
