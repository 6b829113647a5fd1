"""ONNX Runtime on the CPU, as a `Runtime`."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Dict, Mapping, Optional

from .runtime import Runtime

if TYPE_CHECKING:
    from ..progress import Counted
    from ..timing.layers import Layer
    from ..timing.measurement import Protocol
    from .session import Arrays, Session


def _open(path: Path, *, threads: int = 1, exact: bool = False) -> Session:
    from .ort import open_ort

    return open_ort(path, threads=threads, exact=exact)


def _saturates() -> bool:
    from ..machine.probe import saturates_int8

    return saturates_int8()


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
    saturates=_saturates,
)
EXACT = replace(RUNTIME, name="onnxruntime+exact", open=partial(_open, exact=True))
"""For the outputs of files whose own runtime builds engines: INT8 as exact as theirs, not as fast."""
VARIANTS = (EXACT,)
