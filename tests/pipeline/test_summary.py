from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from deadweight.pipeline.summary import exit_code, int8_words
from deadweight.targets.measurement import Measurement, Protocol


def report(outcome: str, *met: bool | None) -> Any:
    budgets = [{"name": "speedup", "limit": 1.0, "value": None, "met": each} for each in met]
    return {"verdict": {"outcome": outcome}, "budgets": budgets}


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (report("faster"), 0),
        (report("faster", True, True), 0),
        (report("faster", True, False), 1),
        (report("faster", None), 3),
        (report("slower", True), 1),
        (report("equal"), 3),
        (report("cannot_tell"), 3),
        (report("cannot_tell", False), 1),
    ],
)
def test_the_exit_code_is_zero_only_for_what_is_proven(value: Any, code: int) -> None:
    assert exit_code(value) == code


def timed(seconds: float, evidence: str) -> Measurement:
    block_ns = np.full((24, 3), round(1e9 * seconds), np.int64)
    return Measurement(
        name="model",
        model_sha256="",
        file_bytes=0,
        run_id="run",
        wall_ns=block_ns[:, :, None],
        cpu_ns=block_ns,
        runs=1,
        protocol=Protocol(events=24),
        conditions={"machine": {"cpu": "a CPU"}, "software": {"onnxruntime": "1.0"}},
        evidence=evidence,
    )


@pytest.mark.parametrize(
    ("int8_s", "evidence", "advised"),
    [
        (5e-4, "measured", False),
        (2e-3, "measured", True),
        (1e-3, "measured", True),
        (2e-3, "emulated", False),
    ],
)
def test_float_is_advised_where_int8_was_measured_and_gained_nothing(
    int8_s: float, evidence: str, advised: bool
) -> None:
    [words] = int8_words({"tuned": timed(1e-3, evidence), "int8": timed(int8_s, evidence)})
    assert ("ship FP32" in words) == advised
