"""What ONNX Runtime reads and writes: samples as its own quantizer asks for them, and its optimized graph."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import onnx

from deadweight.export.onnx_graph.counts import read_optimized
from deadweight.export.onnx_graph.graph import load
from deadweight.export.onnx_graph.run import Opened


def reader(batches: Iterable[Mapping[str, Any]]) -> Any:
    """A CalibrationDataReader that gives these batches, arrays by input name, once."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rest = iter(batches)

        def get_next(self) -> Any:
            return next(self.rest, None)

    return Reader()


def optimized(path: Path) -> onnx.ModelProto:
    """The graph after ONNX Runtime's optimizations, as its CPU provider runs it."""
    with tempfile.TemporaryDirectory() as folder:
        Opened.of(load(path), optimized_path=Path(folder) / "optimized.onnx")
        return read_optimized(Path(folder) / "optimized.onnx")
