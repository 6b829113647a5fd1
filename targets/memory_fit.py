"""Will it fit? Answered before an engine is built, from numbers that travelled with the model.

The workstation works out a band from the ONNX file (`Footprint`, by export/memory/footprint.py). On the board
the rest is added: what the runtime and CUDA take before any model is there, and the builder's workspace. On a
Jetson the CPU and the GPU share one memory, so there is one sum and one limit, which is MemAvailable: the
free count leaves out what the kernel would give back.

Three answers. *does_not_fit*: even the least is more than is free. *fits*: even the most is less. Otherwise
*cannot_tell*. A figure of low certainty enters neither: the least counts the runtime as nothing where its own
need is not known well, and *fits* is then not told, only how much room is left for it.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Dict, Mapping, Optional, Tuple

from .errors import MeasurementError, ModelError, TargetError

OUTCOMES = ("fits", "does_not_fit", "cannot_tell")
LEAST_WORKSPACE_BYTES = 16 << 20
"""What NVIDIA's operator pages suggest as the least workspace at build time."""
_MIB = 1 << 20
_ROOT = Path("/")


@dataclass(frozen=True)
class Footprint:
    """What a model needs at a batch, in bytes. The low ends are bounds, the high ends are plans."""

    batch: int
    runtime: str
    weights_low_bytes: int
    weights_high_bytes: int
    activations_low_bytes: int
    """Between inputs and outputs; outputs are among them."""
    activations_high_bytes: Optional[int]
    """None where shapes are not known."""
    peak_at: str
    """The node at which the low end arises."""
    inputs_bytes: int
    outputs_bytes: int
    largest_bytes: int
    """The largest tensor."""
    unknown: Tuple[str, ...] = ()
    """Tensors whose size is not known; in the low end they count as nothing."""

    @property
    def low_bytes(self) -> int:
        """No run needs less."""
        return self.weights_low_bytes + self.activations_low_bytes + self.inputs_bytes

    @property
    def high_bytes(self) -> Optional[int]:
        """The upper end of the band; None where shapes are not known."""
        if self.activations_high_bytes is None:
            return None
        return self.weights_high_bytes + self.activations_high_bytes + self.inputs_bytes

    def to_json(self) -> Dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "unknown": list(self.unknown)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Footprint:
        """The inverse of `to_json`.

        Raises:
            ModelError: something is missing, unknown or of the wrong kind.
        """
        known = {item.name for item in fields(cls)}
        wrong = sorted(set(value) ^ known)
        wrong += sorted(
            name
            for name in known & set(value)
            if (name.endswith("_bytes") or name == "batch")
            and not (isinstance(value[name], int) and value[name] >= 0)
            and not (name == "activations_high_bytes" and value[name] is None)
        )
        if wrong:
            raise ModelError(
                f"The footprint of the model is not whole: see {', '.join(wrong)}.",
                "Work it out again on the workstation: deadweight memory MODEL.onnx",
            )
        return cls(**{**value, "unknown": tuple(value["unknown"])})


@dataclass(frozen=True)
class Base:
    """What the runtime and CUDA take before any model: bytes, where the figures come from, how certain."""

    low_bytes: int
    high_bytes: int
    source: str
    certainty: str


# Grown by "Init CUDA", cuBLAS and cuDNN, in MiB of the process as TensorRT's own log counts them.
_RUNNING = {
    8: Base(400 * _MIB, 700 * _MIB, "a Jetson's log, NVIDIA/TensorRT issue 2217 (8.4: 653 MiB)", "medium"),
    10: Base(0, 700 * _MIB, "8.x without cuBLAS and cuDNN, which 10 does not load; no log of a board", "low"),
}
_BUILDING = {
    8: Base(600 * _MIB, 1500 * _MIB, "Jetson logs of 8.5 while building: 637 and 1313 MiB", "medium"),
    10: Base(0, 2500 * _MIB, "logs of desktop GPUs, 10.0: 1925 MiB; no log of a board", "low"),
}
_NOTHING = Base(0, 0, "ONNX Runtime on the CPU: its own pages are those of a library", "medium")


@dataclass(frozen=True)
class Fit:
    """The answer, the band it rests on, and the workspace that the builder may be given."""

    outcome: str
    low_bytes: int
    high_bytes: Optional[int]
    free_bytes: int
    workspace_bytes: int
    """The cap for the builder, or 0 where the build should be refused (or nothing is built)."""
    words: Tuple[str, ...]

    def to_json(self) -> Dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "words": list(self.words)}

    def checked(self) -> Fit:
        """The same, unless the model does not fit.

        Raises:
            TargetError: it does not fit; the numbers and the cure.
        """
        if self.outcome == "does_not_fit":
            raise TargetError(
                " ".join(self.words),
                "Prune or quantize further, take a smaller batch, or free memory (a desktop takes about "
                "1 GB: sudo systemctl isolate multi-user.target).",
            )
        return self


def base_of(tensorrt: Optional[str], *, building: bool = False) -> Base:
    """What is known of a TensorRT's own need; None is ONNX Runtime on the CPU.

    Raises:
        TargetError: the version is not one.
    """
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
    """Whether a model fits into `free_bytes`, beside what its runtime takes.

    Args:
        base: from `base_of`, or measured on the board.
        building: the engine is built here: weights lie in memory twice (the file's and the engine's), and
            what is left over, half of it at most, is the workspace that the builder is given.
        workspace_bytes: a workspace asked for; 0 leaves the choice.

    Raises:
        TargetError: no memory is free, or the workspace is below 0.
    """
    if free_bytes <= 0 or workspace_bytes < 0:
        raise TargetError(
            f"Memory cannot be planned with {free_bytes} bytes free and a workspace of {workspace_bytes}.",
            "Give the board's MemAvailable, and a workspace of 0 (choose) or more bytes.",
        )
    sure = base.certainty != "low"
    copies = 2 if building else 1
    low = need.low_bytes + (base.low_bytes if sure else 0)
    high = need.high_bytes
    if high is not None:
        high += base.high_bytes + (copies - 1) * need.weights_high_bytes
    workspace = 0
    if building:
        left = free_bytes - (low if high is None else high)
        workspace = workspace_bytes or max(left // 2, LEAST_WORKSPACE_BYTES)
        low += LEAST_WORKSPACE_BYTES if sure else 0
        high = None if high is None else high + workspace
    words = [_told(need, base, sure=sure), f"{_mb(free_bytes)} are free."]
    if low > free_bytes:
        outcome, workspace = "does_not_fit", 0
        words.append(f"Even the least, {_mb(low)}, is {_mb(low - free_bytes)} more than that.")
    elif high is None:
        outcome = "cannot_tell"
        words.append(f"At least {_mb(low)} are needed; how much at most is open, for {_unknown(need)}.")
    elif high <= free_bytes and sure:
        outcome = "fits"
        words.append(f"Even the most, {_mb(high)}, leaves {_mb(free_bytes - high)}.")
    else:
        outcome = "cannot_tell"
        room = free_bytes - (high - base.high_bytes)
        if not sure and room >= 0:
            words.append(
                f"Without it the most is {_mb(high - base.high_bytes)}, which leaves {_mb(room)} for it, "
                f"{room / base.high_bytes:.1f} times what it is thought to take: measure it on the board "
                "(deadweight doctor) to be sure."
            )
        else:
            words.append(f"Between {_mb(low)} and {_mb(high)} are needed: try it on the board.")
    return Fit(outcome, low, high, free_bytes, workspace, tuple(words))


def free_memory(root: Path = _ROOT) -> int:
    """Bytes that can be had without swapping: MemAvailable of /proc/meminfo below `root`.

    Raises:
        MeasurementError: the system does not tell.
    """
    try:
        told = (Path(root) / "proc/meminfo").read_text()
    except OSError as error:
        raise MeasurementError(
            f"Free memory cannot be read: {error}.", "Give it: --free-bytes, from `free -b` on the board."
        ) from error
    found = re.search(r"^MemAvailable:\s*(\d+) kB", told, re.MULTILINE)
    if found is None:
        raise MeasurementError(
            "This system does not tell MemAvailable in /proc/meminfo.",
            "Give it: --free-bytes, from `free -b` on the board.",
        )
    return int(found.group(1)) * 1024


def _told(need: Footprint, base: Base, *, sure: bool) -> str:
    activations = (
        f"{_mb(need.activations_low_bytes)} or more"
        if need.activations_high_bytes is None
        else f"{_mb(need.activations_low_bytes)} to {_mb(need.activations_high_bytes)}"
    )
    own = (
        f"{_mb(base.low_bytes)} to {_mb(base.high_bytes)} ({base.source})"
        if sure
        else f"some {_mb(base.high_bytes)}, roughly ({base.source})"
    )
    return (
        f"At batch {need.batch} the weights take {_mb(need.weights_low_bytes)} to "
        f"{_mb(need.weights_high_bytes)}, activations {activations}, inputs {_mb(need.inputs_bytes)}; "
        f"{need.runtime} itself takes {own}."
    )


def _unknown(need: Footprint) -> str:
    first = ", ".join(need.unknown[:3])
    more = f" and {len(need.unknown) - 3} more" if len(need.unknown) > 3 else ""
    return f"the sizes of {first}{more} are not known"


def _mb(count: int) -> str:
    return f"{count / 1e6:.3g} MB" if count < 999.5e6 else f"{count / 1e9:.3g} GB"
