"""Quantizes an ONNX file with NNCF's post-training quantization, in NNCF's own environment.

    NNCF_PYTHON benchmarks/int8/nncf_quantize.py MODEL.onnx SAMPLES.npz OUT.onnx [--accurate]

It runs without deadweight: NNCF pins other versions of what deadweight needs. The samples are the calibration
split, one array an input. --accurate asks for its exact bias correction instead of the fast one.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import nncf  # type: ignore[import-not-found]  # pyright: ignore[reportMissingImports]
import numpy as np
import onnx


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="NNCF's post-training quantization.")
    parser.add_argument("model", type=Path)
    parser.add_argument("samples", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--accurate", action="store_true")
    given = parser.parse_args()
    samples = dict(np.load(given.samples))
    count = len(next(iter(samples.values())))
    rows = [{name: value[place : place + 1] for name, value in samples.items()} for place in range(count)]
    quantized = nncf.quantize(
        onnx.load(given.model),
        nncf.Dataset(rows),
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=count,
        fast_bias_correction=not given.accurate,
    )
    onnx.save(quantized, given.out)


if __name__ == "__main__":
    main()
