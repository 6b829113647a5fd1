"""Budgets: the limits on a network, and the schema of `[budgets]`.

The same table is in a recipe, for `run`, and in deadweight.toml, for the gate. A budget whose value was not
measured is neither met nor broken: it is unknown, and the caller must say so.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any, Dict, List, Mapping, Optional

from .errors import RecipeError

_ABOVE = {"score_drop": -math.inf, "parameters_removed": -1.0, "slowdown": -1.0, "max_gpu_fallbacks": -1.0}
"""What a limit must be above, if not 0."""


@dataclass(frozen=True)
class Budgets:
    """Limits on the final network; None is not checked.

    Attributes:
        score_drop: how much worse than the original's the score may be, in the score's unit.
        parameters_removed: the minimum share of the original's parameters that is removed, 0 to 1.
        speedup: the minimum speed-up; the whole interval must be above it.
        slowdown: the maximum additional time compared with the baseline, as a share; the whole interval must
            be below it.
        latency_s: the maximum median latency in seconds.
        p99_s: the maximum 99th percentile of the latency in seconds; its upper bound must be below it.
        memory_bytes: the maximum resident memory.
        file_bytes: the maximum size of the model file.
        ota_bytes: the maximum size of the model in a complete, lossless update file
            (`deadweight delta NEW`).
        max_gpu_fallbacks: the maximum number of operators that a DLA may leave to the GPU.
        energy_j: the maximum energy of an inference beyond idle, in joules; the whole interval must be
            below it.
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
    energy_j: Optional[float] = None

    def __post_init__(self) -> None:
        for name, limit in asdict(self).items():
            low, high = _ABOVE.get(name, 0.0), 1.0 if name == "parameters_removed" else math.inf
            if limit is not None and not low < limit < high:
                cure = f"Give a number above {low:g} and below {high:g}."
                raise RecipeError(f"The budget {name} is {limit:g}, which no network can meet.", cure)


@dataclass(frozen=True)
class BudgetCheck:
    """One limit and the final network's value; `met` is None where the value is unknown."""

    name: str
    limit: float
    value: Optional[float]
    met: Optional[bool]


def check_budgets(
    budgets: Budgets, original: Mapping[str, Any], final: Mapping[str, Any], higher_is_better: bool
) -> List[BudgetCheck]:
    """Checks every budget that is set with two rows of a report.

    Args:
        original, final: rows with "score", "parameters", "file_bytes", "memory_bytes", "latency_s" and
            "speedup" as in report.json; a value may be None. For p99 the bound counts, not the sample.
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
        "energy_j": final.get("energy_j"),
    }
    at_least = ("parameters_removed", "speedup")
    checks = []
    for name, limit in asdict(budgets).items():
        if limit is not None:
            value = values[name]
            # A difference of scores has the rounding errors of two floats.
            met = None if value is None else value >= limit if name in at_least else value <= limit + 1e-12
            checks.append(BudgetCheck(name, limit, value, met))
    assert set(values) == {field.name for field in fields(Budgets)}
    return checks
