"""TensorRT's log: recorded whole, and its findings (fallbacks, reformats, warnings, memory).

TensorRT reports failures only in its log: a builder that fails returns None, a parser False. It also uses the
first logger of a process and ignores later ones, so there is one here for each flavour, which writes into the
list of the current caller.
"""

from __future__ import annotations

import contextlib
import importlib
import re
from dataclasses import dataclass, field
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

from ..errors import TargetError

FLAVOURS = ("tensorrt", "tensorrt_rtx")
SIMULATED = "[simulated]"
"""A stand-in for TensorRT begins a line of its log with this: then nothing is called measured."""

Line = Tuple[str, str]
"""Severity (verbose, info, warning, error, internal_error) and text."""

_INSTALL = {
    "tensorrt": (
        "On a Jetson: sudo apt install python3-libnvinfer, and use the system's Python or a virtual "
        "environment made with --system-site-packages. From a workstation, have the board build it: "
        "deadweight build MODEL.onnx --on USER@HOST. For a card in this machine: pip install tensorrt. "
        "Without TensorRT, ONNX Runtime runs the ONNX file."
    ),
    "tensorrt_rtx": "Install it: pip install tensorrt-rtx (x86-64 and arm64 machines with an RTX GPU).",
}
_FALLBACKS = (
    r"Layer '(?P<name>[^']*)' \([A-Z_]+\): Unsupported on DLA\. Switching",
    r"[Ll]ayer (?P<name>.+?) is not (?:supported|running) on DLA, falling back to GPU",
    r"Switching (?P<name>.+?) device type to GPU",
)
_BYTES = {
    "weights": r"Total Weights Memory: (\d+) bytes",
    "activations": r"Total Activation Memory: (\d+) bytes",
    "device_persistent": r"Total Device Persistent Memory: (\d+)",
    "host_persistent": r"Total Host Persistent Memory: (\d+)",
    "scratch": r"(?:Total|Max) Scratch Memory: (\d+)",
}
_SPARSE = {  # TensorRT 8 lists the layers, 10 counts them
    "layers": (
        r"Layers eligible for sparse math:(.*)",
        r"Found (\d+) layer\(s\) eligible to use sparse tactics",
    ),
    "kernels": (
        r"picked sparse implementation for layers:(.*)",
        r"[Cc]hose (\d+) layer\(s\) using sparse tactics",
    ),
}
_CURES = (
    (r"same (?:input )?types?\b|of the same type", "types"),
    (r"[Pp]lugin (?:was )?not found|find plugin", "plugin"),
    (r"out of memory|OutOfMemory|[Aa]llocat\w+ fail|insufficient memory|memory on requested size", "memory"),
    (r"optimization profile|min[_ ]?shape|dynamic or shape input", "profile"),
    (r"GPU_?FALLBACK|not supported on DLA|DLA", "dla"),
    (r"CUDA (?:init|driver)|cuda(?:Error| failure)|no CUDA-capable", "driver"),
)


@dataclass(frozen=True)
class Findings:
    """The findings of a build's log. Names are TensorRT's names of layers."""

    fallbacks: Tuple[str, ...] = ()
    """Layers that were planned for DLA and run on the GPU."""
    dla_layers: Tuple[str, ...] = ()
    gpu_layers: Tuple[str, ...] = ()
    """The device of layers, which only the logs of builds for DLA list."""
    reformats: int = 0
    """Layers that only change a tensor's format or data type."""
    skipped_tactics: int = 0
    """Kernels that were not tried for lack of memory."""
    warnings: Tuple[str, ...] = ()
    errors: Tuple[str, ...] = ()
    bytes: Mapping[str, int] = field(default_factory=dict)
    """Memory by part: weights, activations, scratch, persistent."""
    sparse_layers: Optional[int] = None
    """Layers whose weights are 2:4; None where the log has no count, as without `sparse`."""
    sparse_kernels: Optional[int] = None
    """Layers that use a kernel for 2:4; for the others a dense one was faster."""


def import_tensorrt(flavour: str = "tensorrt") -> Any:
    """The TensorRT of a flavour: `tensorrt`, or `tensorrt_rtx`: for RTX GPUs, never for a Jetson Orin.

    Raises:
        TargetError: the flavour is unknown, not installed, or does not import.
    """
    if flavour not in FLAVOURS:
        raise TargetError(f"There is no TensorRT flavour '{flavour}'.", f"Known: {', '.join(FLAVOURS)}.")
    reasons = []
    for name in (flavour, f"{flavour}_bindings"):
        try:
            return importlib.import_module(name)
        except (ImportError, OSError) as error:
            reasons.append(str(error))
    raise TargetError(f"TensorRT cannot be used from this Python: {reasons[0]}.", _INSTALL[flavour])


@contextlib.contextmanager
def heard(trt: Any) -> Iterator[Tuple[Any, List[Line]]]:
    """The process's logger, and the lines that it records during the block."""
    logger = _logger(trt)
    lines: List[Line] = []
    before, logger.lines = logger.lines, lines
    try:
        yield logger, lines
    finally:
        logger.lines = before


def is_simulated(lines: Sequence[Line]) -> bool:
    """Whether a stand-in for TensorRT wrote these lines."""
    return any(text.startswith(SIMULATED) for _, text in lines)


def read_log(lines: Sequence[Line]) -> Findings:
    """Extracts the findings from a build's log."""
    fallbacks: Dict[str, None] = {}
    placed: Dict[str, Dict[str, None]] = {"Dla": {}, "Gpu": {}}
    sizes: Dict[str, int] = {}
    sparse: Dict[str, int] = {}
    reformats = skipped = 0
    for _, text in lines:
        found = next(filter(None, (re.search(words, text) for words in _FALLBACKS)), None)
        if found:
            fallbacks[found.group("name")] = None
        on = re.match(r"\[(Dla|Gpu)Layer\] (.*)", text)
        if on:
            placed[on.group(1)][on.group(2)] = None
        reformats += text.startswith("Adding reformat layer")
        skipped += bool(re.match(r"Skipping tactic .* due to insufficient memory", text))
        for part, words in _BYTES.items():
            size = re.search(words, text)
            if size:
                sizes[part] = int(size.group(1))
        if "(Sparsity)" in text:
            for part, (listed, counted) in _SPARSE.items():
                names, number = re.search(listed, text), re.search(counted, text)
                if number:
                    sparse[part] = int(number.group(1))
                elif names:
                    sparse[part] = len([name for name in names.group(1).split(",") if name.strip()])
    return Findings(
        fallbacks=tuple(fallbacks),
        dla_layers=tuple(placed["Dla"]),
        gpu_layers=tuple(placed["Gpu"]),
        reformats=reformats,
        skipped_tactics=skipped,
        warnings=_texts(lines, "warning"),
        errors=_texts(lines, "error", "internal_error"),
        bytes=sizes,
        sparse_layers=sparse.get("layers"),
        sparse_kernels=sparse.get("kernels"),
    )


def reason(lines: Sequence[Line]) -> str:
    """TensorRT's reason for a failure: its first error and, if different, its last."""
    errors = _texts(lines, "error", "internal_error") or _texts(lines, "warning")
    if not errors:
        return "TensorRT gave no reason"
    shown = errors[:1] if errors[-1] in errors[0] else (errors[0], errors[-1])
    return "; then: ".join(" ".join(text.split())[:400].rstrip(".") for text in shown)


def cause(lines: Sequence[Line]) -> str:
    """The kind of the reason: types, plugin, memory, profile, dla, driver or other."""
    text = "\n".join(text for severity, text in lines if severity != "verbose")
    return next((kind for words, kind in _CURES if re.search(words, text)), "other")


def _texts(lines: Sequence[Line], *severities: str) -> Tuple[str, ...]:
    texts = dict.fromkeys(text for severity, text in lines if severity in severities)
    return tuple(text for text in texts if not text.startswith(SIMULATED))


_loggers: Dict[str, Any] = {}


def _logger(trt: Any) -> Any:
    if trt.__name__ not in _loggers:

        class Logger(trt.ILogger):  # type: ignore[misc, name-defined, unused-ignore]
            """Records the lines; it must not raise, because TensorRT's threads call it."""

            def __init__(self) -> None:
                trt.ILogger.__init__(self)
                self.lines: List[Line] = []

            def log(self, severity: Any, msg: str) -> None:
                self.lines.append((str(severity).rsplit(".", 1)[-1].lower(), msg))

        _loggers[trt.__name__] = Logger()
        if hasattr(trt, "init_libnvinfer_plugins"):
            # NVIDIA's own plugins (RoiAlign, EfficientNMS). TensorRT 10's parser does not register them any
            # more, and opening a plan never did.
            trt.init_libnvinfer_plugins(_loggers[trt.__name__], "")
    return _loggers[trt.__name__]
