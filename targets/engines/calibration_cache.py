"""The calibration cache: the ranges of tensors for implicit INT8, which DLA needs before TensorRT 11.4.1.

The file is text: `TRT-<version>-EntropyCalibration2`, then a line `name: hex` for each tensor, the bits of
its float32 scale (its range by 127), big-endian. DeepStream and trtexec (--calib) read the same file.
"""

from __future__ import annotations

import math
import re
import struct
from pathlib import Path
from typing import Any, Dict

from ..errors import ModelError, TargetError, reported

_CURE = "Make it again: deadweight quantize MODEL.onnx --data SAMPLES --calibration-cache."


def read_ranges(path: Path) -> Dict[str, float]:
    """The scales by tensor."""
    unreadable = f"{path} cannot be read as a calibration cache"
    with reported(ModelError, unreadable, "Check it.", OSError, UnicodeDecodeError):
        lines = path.read_text(encoding="utf-8").splitlines()
    if not lines or not re.fullmatch(r"TRT-\d+-EntropyCalibration2", lines[0].strip()):
        first = repr(lines[0][:60] if lines else "")
        raise ModelError(
            f"{path} is not a calibration cache of IInt8EntropyCalibrator2: line 1 is {first}.", _CURE
        )
    scales: Dict[str, float] = {}
    for number, line in enumerate(lines[1:], start=2):
        if not line.strip():
            continue
        name, _, bits = line.rpartition(":")
        try:
            scale = struct.unpack(">f", bytes.fromhex(bits.strip().zfill(8)))[0]
        except (ValueError, struct.error):
            scale = math.nan
        if not name or not 0 <= scale < math.inf:
            raise ModelError(f"{path} has no name and scale on line {number}: {line[:60]!r}.", _CURE)
        scales[name] = scale
    if not scales:
        raise ModelError(f"{path} has no ranges.", _CURE)
    return scales


def calibrator(trt: Any, data: bytes) -> Any:
    """A calibrator that gives TensorRT this cache, and no samples."""
    if not hasattr(trt, "IInt8EntropyCalibrator2"):
        raise TargetError(
            f"TensorRT {trt.__version__} has no calibration caches.", "Build the Q/DQ file, without a cache."
        )
    base = trt.IInt8EntropyCalibrator2

    class FromCache(base):  # type: ignore[misc, valid-type, unused-ignore]
        """Only reads; TensorRT asks for a batch only where a range is missing."""

        def __init__(self) -> None:
            base.__init__(self)

        def get_batch_size(self) -> int:
            return 1

        def get_batch(self, names: Any) -> None:
            return None

        def read_calibration_cache(self) -> bytes:
            return data

        def write_calibration_cache(self, cache: Any) -> None:
            return None

    return FromCache()
