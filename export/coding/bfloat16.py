"""Numbers that are few beside the weights, in half the bytes: biases and code books.

They are rounded to bfloat16 and stay float32 in the file, whose lower halves are then zero and cost nothing.
An 8-bit mantissa is off by 0.2 % at most; a code book's entries are further from their weights than that.
"""

from __future__ import annotations

import numpy as np

from ..onnx_graph.graph import Array


def shortened(values: Array) -> Array:
    """float32 rounded to the nearest bfloat16, ties to even; NaN and infinity stay."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)
    found: Array = np.where(np.isfinite(values), rounded, bits).astype(np.uint32).view(np.float32)
    return found.reshape(np.shape(values))
