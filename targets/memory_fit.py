"""The memory check before an engine is built: does the model fit?

The workstation computes a band from the ONNX file (`Footprint`, by export/memory/footprint.py). The board
adds the base memory of the runtime and CUDA, and the builder's workspace. On a Jetson the CPU and the GPU
share one memory, so there is one sum and one limit, MemAvailable: MemFree excludes reclaimable memory.

Three outcomes. *does_not_fit*: even the lower end exceeds the free memory. *fits*: even the upper end does
not. Otherwise *cannot_tell*. A base of low certainty enters neither: the lower end then counts the runtime
as 0, and *fits* needs room for ten times its estimate.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Optional, Tuple

from .errors import MeasurementError, TargetError
from .machine.jetson import proc_bytes

OUTCOMES = ("fits", "does_not_fit", "cannot_tell")
LEAST_WORKSPACE_BYTES = 16 << 20
"""The smallest workspace that NVIDIA's operator pages suggest."""
_MIB = 1 << 20
_AMPLE = 10
"""With room for so many times its estimate, the base need not be known."""


@dataclass(frozen=True)
class Footprint:
    """The memory that a model needs at a batch, in bytes. Low ends are bounds, high ends are planned."""

    batch: int
    runtime: str
    weights_low_bytes: int
    weights_high_bytes: int
    activations_low_bytes: int
    """From inputs to outputs; outputs are included."""
    activations_high_bytes: Optional[int]
    """None where shapes are unknown."""
    peak_at: str
    """The node with the largest low end."""
    inputs_bytes: int
    outputs_bytes: int
    largest_bytes: int
    """The largest tensor."""
    unknown: Tuple[str, ...] = ()
    """Tensors of unknown size; the low end counts them as 0."""
    beside_bytes: int = 0
    """What a runtime that builds no engine holds beside the plan, at most."""

    @property
    def low_bytes(self) -> int:
        """The lower bound of a run."""
        return self.weights_low_bytes + self.activations_low_bytes + self.inputs_bytes

    @property
    def high_bytes(self) -> Optional[int]:
        """The upper end of the band; None where shapes are unknown."""
        high = self.activations_high_bytes
        return (
            None if high is None else self.weights_high_bytes + high + self.inputs_bytes + self.beside_bytes
        )


@dataclass(frozen=True)
class Base:
    """The base memory of the runtime and CUDA without a model: bytes, source and certainty."""

    low_bytes: int
    high_bytes: int
    source: str
    certainty: str


# Grown by "Init CUDA", cuBLAS and cuDNN, in MiB of the process as TensorRT's own log counts them.
_RUNNING = {
    8: Base(400 * _MIB, 700 * _MIB, "a Jetson's log, NVIDIA/TensorRT issue 2217 (8.4: 653 MiB)", "medium"),
    10: Base(0, 700 * _MIB, "estimated from logs of TensorRT 8; not measured on a board", "low"),
}
_BUILDING = {
    8: Base(600 * _MIB, 1500 * _MIB, "Jetson logs of 8.5 while building: 637 and 1313 MiB", "medium"),
    10: Base(
        0, 2500 * _MIB, "estimated from logs of TensorRT 10.0 on desktop GPUs; not measured on a board", "low"
    ),
}
_NOTHING = Base(0, 0, "ONNX Runtime on the CPU: its own pages are those of a library", "medium")


@dataclass(frozen=True)
class Fit:
    """The outcome, its band, and the workspace for the builder."""

    outcome: str
    low_bytes: int
    high_bytes: Optional[int]
    free_bytes: int
    workspace_bytes: int
    """The cap for the builder; 0 where the build should be refused, or nothing is built."""
    words: Tuple[str, ...]

    def checked(self) -> Fit:
        """Itself, if the model may fit."""
        if self.outcome == "does_not_fit":
            raise TargetError(
                " ".join(self.words),
                "Prune or quantize further, use a smaller batch, or free memory (a desktop takes about "
                "1 GB: sudo systemctl isolate multi-user.target).",
            )
        return self


def base_of(tensorrt: Optional[str], *, building: bool = False) -> Base:
    """The base memory of a TensorRT version; None is ONNX Runtime on the CPU."""
    if tensorrt is None:
        return _NOTHING
    found = re.match(r"(\d+)\.", f"{tensorrt}.")
    if found is None:
        raise TargetError(f"'{tensorrt}' is not a version of TensorRT.", "Give it as in 10.3 or 8.5.2.")
    table = _BUILDING if building else _RUNNING
    return table[8] if int(found.group(1)) <= 8 else table[10]


def fit(
    need: Footprint, *, free_bytes: int, base: Base, building: bool = False, workspace_bytes: int = 0
) -> Fit:
    """Whether a model fits into `free_bytes`, together with its runtime.

    Args:
        base: from `base_of`, or measured on the board.
        building: the engine is built here: weights are in memory twice (the file's and the engine's), and at
            most half of the rest is the builder's workspace.
        workspace_bytes: a requested workspace; 0 for an automatic one.
    """
    if free_bytes <= 0 or workspace_bytes < 0:
        raise TargetError(
            f"Memory cannot be planned with {free_bytes} bytes free and a workspace of {workspace_bytes}.",
            "Give the board's MemAvailable, and a workspace of 0 (choose) or more bytes.",
        )
    sure = base.certainty != "low"
    low = need.low_bytes + (base.low_bytes if sure else 0)
    high = need.high_bytes
    if high is not None:
        high += base.high_bytes + (need.weights_high_bytes if building else 0)
    workspace = 0
    if building:
        left = free_bytes - (low if high is None else high)
        workspace = workspace_bytes or max(left // 2, LEAST_WORKSPACE_BYTES)
        low += LEAST_WORKSPACE_BYTES if sure else 0
        high = None if high is None else high + workspace
    words = [_needs(need, base, sure=sure), f"{_mb(free_bytes)} are free."]
    if low > free_bytes:
        outcome, workspace = "does_not_fit", 0
        words.append(f"Even the lower end, {_mb(low)}, exceeds that by {_mb(low - free_bytes)}.")
    elif high is None:
        outcome = "cannot_tell"
        more = f" and {len(need.unknown) - 3} more" if len(need.unknown) > 3 else ""
        unknown = f"the sizes of {', '.join(need.unknown[:3])}{more} are unknown"
        words.append(f"At least {_mb(low)} are needed; the upper end is unknown, because {unknown}.")
    else:
        room = free_bytes - (high - base.high_bytes)
        outcome = "fits" if room >= base.high_bytes * (1 if sure else _AMPLE) else "cannot_tell"
        if outcome == "fits":
            words.append(f"Even the upper end, {_mb(high)}, leaves {_mb(free_bytes - high)}.")
        elif not sure and room >= 0:
            words.append(
                f"The model takes at most {_mb(high - base.high_bytes)} and leaves {_mb(room)}. Whether "
                f"that is enough for {need.runtime} itself is not known: `deadweight doctor --on BOARD` "
                "measures what it takes there; then `deadweight memory MODEL --on BOARD`, or --base-bytes."
            )
        else:
            words.append(f"Between {_mb(low)} and {_mb(high)} are needed: try it on the board.")
    return Fit(outcome, low, high, free_bytes, workspace, tuple(words))


def free_memory(root: Path = Path("/")) -> int:
    """Memory available without swapping, in bytes: MemAvailable of /proc/meminfo below `root`."""
    free = proc_bytes(Path(root) / "proc/meminfo", "MemAvailable")
    if free is None:
        raise MeasurementError(
            "Free memory cannot be read: /proc/meminfo has no MemAvailable.",
            "Give it: --free-bytes, from `free -b` on the board.",
        )
    return free


def _needs(need: Footprint, base: Base, *, sure: bool) -> str:
    high = need.activations_high_bytes
    activations = f"{_mb(need.activations_low_bytes)} {'or more' if high is None else f'to {_mb(high)}'}"
    most = _mb(base.high_bytes)
    own = f"{_mb(base.low_bytes)} to {most}" if sure else f"some {most}, roughly"
    return (
        f"At batch {need.batch} the weights take {_mb(need.weights_low_bytes)} to "
        f"{_mb(need.weights_high_bytes)}, activations {activations}, inputs {_mb(need.inputs_bytes)}; "
        f"{need.runtime} itself takes {own} ({base.source})."
    )


def _mb(count: int) -> str:
    return f"{count / 1e6:.3g} MB" if count < 999.5e6 else f"{count / 1e9:.3g} GB"
