"""The steps of INT8 from file to file, for tests that look at what is written."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import onnx
from torch import nn

from deadweight.export.onnx_graph import counts
from deadweight.export.onnx_graph.graph import load, save
from deadweight.export.onnx_graph.run import Opened
from deadweight.export.parity import compare as parity
from deadweight.export.parity.compare import Hop, Kind
from deadweight.export.quantization import calibrate as calibration
from deadweight.export.quantization import fp16
from deadweight.export.quantization import to_qdq as writing
from deadweight.export.quantization.calibrate import Ranges
from deadweight.export.quantization.histogram import Method

Batches = Iterable[Mapping[str, Any]]


def opened(path: Path) -> Opened:
    return Opened.of(load(path))


def calibrate(path: Path, batches: Batches, *, method: Method = "minmax", progress: Any = None) -> Ranges:
    return calibration.calibrate(load(path), batches, method=method, progress=progress)


def to_qdq(
    path: Path,
    ranges: Ranges,
    out_path: Path,
    *,
    dialect: str = "tensorrt",
    skip: Collection[str] = (),
    weight_bits: int = 8,
) -> writing.Quantized:
    made = writing.to_qdq(load(path), ranges, dialect=dialect, skip=skip, weight_bits=weight_bits)
    save(made.model.proto, out_path)
    return made


def to_half(path: Path, out_path: Path, *, tensorrt: tuple[int, ...] = (10, 0)) -> fp16.Halved:
    made = fp16.to_half(load(path), tensorrt=tensorrt)
    save(made.model.proto, out_path)
    return made


def compare_module(module: nn.Module, path: Path, batches: Batches, *, name: str = "torch -> onnx") -> Hop:
    return parity.compare_module(module, load(path), batches, name=name)


def compare_files(
    before: Path, after: Path, batches: Batches, *, kind: Kind, name: str, rounded_from: Path | None = None
) -> Hop:
    origin = None if rounded_from is None else load(rounded_from)
    return parity.compare(opened(before), opened(after), batches, kind=kind, name=name, rounded_from=origin)


def noise_between(before: Path, after: Path, batches: Batches) -> float:
    return parity.noise_between(opened(before), opened(after), batches)


def optimized(path: Path) -> onnx.ModelProto:
    """The graph after ONNX Runtime's optimizations."""
    with tempfile.TemporaryDirectory() as folder:
        Opened.of(load(path), optimized_path=Path(folder) / "optimized.onnx")
        return counts.read_optimized(Path(folder) / "optimized.onnx")


def float_kernels(path: Path) -> list[str]:
    return counts.float_kernels(optimized(path))
