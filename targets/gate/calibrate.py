"""Calibration of the gate: its false alarms on this runner, counted.

The gate compares the accepted model with itself, where every `fail` is a false alarm. The count, with an
exact interval, is stored in the baseline with the machine and its load, for which it is valid. How large a
slow-down is found, each judgement says itself; `benchmarks/gate` counts that with slower models.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, Dict, Optional

from ..artifact import utc_now
from ..budgets import Budgets
from ..machine.probe import conditions
from ..progress import Counted
from ..runtimes.runtime import Runtime
from ..timing.binomial import clopper_pearson
from .baseline import Baseline
from .check import SLOWDOWN, check


def calibrate(
    model: Path,
    baseline: Baseline,
    *,
    runs: int,
    budgets: Budgets,
    cap_s: float = 20.0,
    inputs: Optional[Path] = None,
    board: Optional[Runtime] = None,
    progress: Counted,
) -> Dict[str, Any]:
    """Runs the gate `runs` times on the accepted model itself.

    Returns plain values for JSON: "false_alarms" with "count", "runs", "rate", "low" and "high" (95 %),
    "cannot_tell" and the median seconds to a decision; the limit, and the machine with its load.
    """
    budgets = Budgets(slowdown=SLOWDOWN if budgets.slowdown is None else budgets.slowdown)
    loads, outcomes, seconds = [], [], []
    for done in range(runs):
        progress(done, runs)
        loads.append(os.getloadavg()[0])
        started = time.perf_counter()
        gated = check(
            model,
            baseline,
            model,
            budgets=budgets,
            cap_s=cap_s,
            inputs=inputs,
            board=board,
            by_bytes=False,
        )
        seconds.append(time.perf_counter() - started)
        outcomes.append(gated.checks[0].outcome)
    progress(runs, runs)
    fails = outcomes.count("fail")
    low, high = clopper_pearson(fails, runs)
    facts = conditions()
    return {
        "false_alarms": {
            "count": fails,
            "runs": runs,
            "rate": fails / runs,
            "low": low,
            "high": high,
            "cannot_tell": outcomes.count("cannot_tell"),
            "median_seconds": sorted(seconds)[runs // 2],
        },
        "limit": budgets.slowdown,
        "cap_s": cap_s,
        "machine": facts["machine"],
        "software": facts["software"],
        "load": [round(min(loads), 2), round(max(loads), 2)],
        "at": utc_now(),
        "model_sha256": baseline.model_sha256,
    }
