"""What a network may cost: one home and one schema for `[budgets]`.

The same table stands in a recipe, for `run`, and in deadweight.toml, for the gate. A budget that needs a
figure which was not measured is neither met nor broken: it is unknown, and the caller must say so.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Dict, List, Mapping, Optional


@dataclass(frozen=True)
class Budgets:
    """Limits on the final network; those left out are not checked.

    Attributes:
        score_drop: how much worse than the original's the score may be, in the score's own unit.
        parameters_removed: the least share of the original's parameters that must be gone, 0 to 1.
        speedup: the least speed-up; the whole interval must lie above it.
        slowdown: the most that the network may take longer than the baseline, as a share; the whole interval
            must lie below it.
        latency_s: the most seconds that the median inference may take.
        p99_s: the most seconds that 99 % of the inferences may take; their upper bound must lie below it.
        memory_bytes: the most resident memory.
        file_bytes: the most bytes of the model file.
        ota_bytes: the most bytes that the model takes when it is sent: what it adds to an update file that
            needs nothing to start from (`deadweight delta NEW`), byte for byte the same model.
        max_gpu_fallbacks: the most operators that a deep learning accelerator may hand back to the GPU.
    """

    score_drop: Optional[float] = None
    parameters_removed: Optional[float] = None
    speedup: Optional[float] = None
    slowdown: Optional[float] = None
    latency_s: Optional[float] = None
    p99_s: Optional[float] = None
    memory_bytes: Optional[int] = None
    file_bytes: Optional[int] = None
    ota_bytes: Optional[int] = None
    max_gpu_fallbacks: Optional[int] = None


@dataclass(frozen=True)
class BudgetCheck:
    """One limit held against the final network; `met` is None where there was no figure."""

    name: str
    limit: float
    value: Optional[float]
    met: Optional[bool]


def check_budgets(
    budgets: Budgets, original: Mapping[str, Any], final: Mapping[str, Any], higher_is_better: bool
) -> List[BudgetCheck]:
    """Holds every budget that was set against two rows of a report.

    Args:
        original, final: rows with "score", "parameters", "file_bytes", "memory_bytes", "latency_s" and
            "speedup" as in report.json; a figure may be None. Of p99 the bound counts, not the sample.
    """
    latency, speedup = final.get("latency_s"), final.get("speedup")
    drop = None
    if original.get("score") is not None and final.get("score") is not None:
        drop = (original["score"] - final["score"]) * (1 if higher_is_better else -1)
    removed = None
    if original.get("parameters") and final.get("parameters") is not None:
        removed = 1 - final["parameters"] / original["parameters"]
    values: Dict[str, Optional[float]] = {
        "score_drop": drop,
        "parameters_removed": removed,
        "speedup": speedup["low"] if speedup else None,
        "slowdown": 1 / speedup["low"] - 1 if speedup and speedup["low"] else None,
        "latency_s": latency["p50"] if latency else None,
        "p99_s": latency.get("p99_bound") if latency else None,
        "memory_bytes": final.get("memory_bytes"),
        "file_bytes": final.get("file_bytes"),
        "ota_bytes": final.get("ota_bytes"),
        "max_gpu_fallbacks": final.get("gpu_fallbacks"),
    }
    at_least = ("parameters_removed", "speedup")
    checks = []
    for name, limit in asdict(budgets).items():
        if limit is not None:
            value = values[name]
            # A difference of scores carries the rounding of two floats.
            met = None if value is None else value >= limit if name in at_least else value <= limit + 1e-12
            checks.append(BudgetCheck(name, limit, value, met))
    assert set(values) == {field.name for field in fields(Budgets)}
    return checks
