"""A file in FP16 beside one in float, for TensorRT where no flag of its builder does it."""

from __future__ import annotations

from pathlib import Path

from ...targets.errors import ModelError
from ..onnx_graph.graph import load, save
from .fp16 import to_half


def write_half(path: Path, out: Path) -> dict[str, str]:
    """Writes a model, float or with Q/DQ pairs, with its float part in FP16; equal files give equal bytes.

    Returns the operators that stay in FP32, each with the reason.

    Raises:
        ModelError: as `to_half`.
    """
    try:
        halved = to_half(load(path))
    except ModelError as error:
        raise ModelError(error.what, f"{error.cure} Or leave it in FP32: --precision fp32.") from error
    out.parent.mkdir(parents=True, exist_ok=True)
    save(halved.model.proto, out)
    return halved.left_float
