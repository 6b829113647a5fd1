"""Measurements whose times are given, for the tests of what is said of them."""

from __future__ import annotations

import numpy as np

from deadweight.targets.timing.measurement import Measurement, Protocol


def timed(times_s: np.ndarray, *, name: str = "model") -> Measurement:
    """A measurement with these times of one run, float[events, rounds], by both clocks."""
    block_ns = np.maximum(np.round(times_s * 1e9), 1).astype(np.int64)
    return Measurement(
        name=name,
        model_sha256="",
        file_bytes=0,
        run_id="run",
        wall_ns=block_ns[:, :, None],
        cpu_ns=block_ns,
        runs=1,
        protocol=Protocol(events=len(times_s)),
        conditions={"machine": {"cpu": "a CPU"}, "software": {"onnxruntime": "1.0"}},
    )
