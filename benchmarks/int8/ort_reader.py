"""Calibration samples as onnxruntime's own quantizer asks for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def reader(batches: Iterable[Mapping[str, Any]]) -> Any:
    """A CalibrationDataReader that gives these batches, arrays by input name, once."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rest = iter(batches)

        def get_next(self) -> Any:
            return next(self.rest, None)

    return Reader()
