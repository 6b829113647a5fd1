"""ONNX Runtime on the CPU, as a `Runtime`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Dict, Mapping, Optional

from .runtime import Runtime

if TYPE_CHECKING:
    from ..progress import Counted
    from ..timing.layers import Layer
    from ..timing.measurement import Protocol
    from .session import Arrays, Session


def _open(path: Path, *, threads: int = 1) -> Session:
    from .ort import open_ort

    return open_ort(path, threads=threads)


def _time_layers(
    models: Mapping[str, Path],
    *,
    protocol: Protocol,
    inputs: Optional[Arrays] = None,
    progress: Optional[Counted] = None,
) -> Dict[str, Dict[str, Layer]]:
    from ..timing.ort_layers import time_layers

    return time_layers(models, protocol=protocol, inputs=inputs, progress=progress)


RUNTIME = Runtime(
    name="onnxruntime",
    title="ONNX Runtime",
    library="onnxruntime",
    cure="Install it: pip install onnxruntime",
    open=_open,
    time_layers=_time_layers,
)
