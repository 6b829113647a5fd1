"""Rounding to bfloat16 for biases and code books, which are few compared with the weights.

They stay float32 in the file; their lower halves are zero and cost nothing after coding. An 8-bit mantissa
has an error of at most 0.2 %; a code book's entries differ more from their weights.
"""

from __future__ import annotations

import numpy as np

from ..onnx_graph.graph import Array


def shortened(values: Array) -> Array:
    """float32 rounded to the nearest bfloat16, ties to even; NaN and infinity are unchanged."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)
    result: Array = np.where(np.isfinite(values), rounded, bits).astype(np.uint32).view(np.float32)
    return result.reshape(np.shape(values))
