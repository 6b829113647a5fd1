"""Calibration of the gate: false alarms and detected slow-downs on this runner, counted.

The gate compares the accepted model with itself, where every `fail` is a false alarm, and with copies of it
that do additional work, where every `fail` is a detection. The counts, with exact intervals, are stored in
the baseline with the machine and its load, for which they are valid.
"""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from ..artifact import utc_now
from ..budgets import Budgets
from ..errors import TargetError
from ..machine.probe import conditions
from ..progress import Progress
from ..runtimes.runtime import Runtime, is_engine
from ..timing.binomial import clopper_pearson
from .baseline import Baseline
from .check import SLOWDOWN, check
from .planted import TRIALS, plant

SHARES = (0.05, 0.10)


def calibrate(
    model: Path,
    baseline: Baseline,
    *,
    runs: int,
    budgets: Budgets,
    cap_s: float = 20.0,
    inputs: Optional[Path] = None,
    board: Optional[Runtime] = None,
    progress: Optional[Progress] = None,
) -> Dict[str, Any]:
    """Runs the gate `runs` times on equal models and a third as often on each slowed copy.

    Returns plain values for JSON: "false_alarms" and one entry for each planted slow-down, each with "count",
    "runs", "rate", "low" and "high" (95 %), and the median seconds to a decision.
    """
    if is_engine(model):
        raise TargetError(
            f"{model} runs on {baseline.protocol.runtime}: only an ONNX file can be slowed down for this.",
            "Calibrate on this machine with the ONNX file it was built from.",
        )
    slow, trials = max(1, runs // 3), replace(TRIALS, runtime=baseline.protocol.runtime)
    budgets = Budgets(slowdown=SLOWDOWN if budgets.slowdown is None else budgets.slowdown)
    total = runs + slow * len(SHARES)
    done, loads = 0, []
    cells: List[Tuple[str, float, Path, int]] = [("equal", 0.0, Path(model), runs)]
    result: Dict[str, Any] = {"planted": []}
    with tempfile.TemporaryDirectory() as folder:
        for share in SHARES:
            if progress is not None:
                progress(0, total, f"planting {100 * share:g} %")
            place = Path(folder) / f"{share}"
            place.mkdir()
            planted = plant(Path(model), place, share, protocol=trials)
            cells.append((f"{100 * share:g} %", planted.slowdown, planted.path, slow))
        for name, true, path, count in cells:
            outcomes, seconds = [], []
            for _ in range(count):
                loads.append(os.getloadavg()[0])
                started = time.perf_counter()
                gated = check(
                    path, baseline, Path(model), budgets=budgets, cap_s=cap_s, inputs=inputs, board=board
                )
                seconds.append(time.perf_counter() - started)
                outcomes.append(gated.checks[0].outcome)
                done += 1
                if progress is not None:
                    progress(done, total, f"calibrate: {name}")
            fails = outcomes.count("fail")
            low, high = clopper_pearson(fails, len(outcomes))
            row: Dict[str, Any] = {
                "count": fails,
                "runs": len(outcomes),
                "rate": fails / len(outcomes),
                "low": low,
                "high": high,
                "cannot_tell": outcomes.count("cannot_tell"),
                "median_seconds": sorted(seconds)[len(seconds) // 2],
            }
            if name == "equal":
                result["false_alarms"] = row
            else:
                result["planted"].append({"wanted": name, "true_slowdown": true, **row})
    facts = conditions()
    result.update(
        limit=budgets.slowdown,
        cap_s=cap_s,
        machine=facts["machine"],
        software=facts["software"],
        load=[round(min(loads), 2), round(max(loads), 2)],
        at=utc_now(),
        model_sha256=baseline.model_sha256,
    )
    return result


def calibration_sentences(calibration: Dict[str, Any]) -> Tuple[str, ...]:
    """Sentences for people: false alarms, then one for each planted slow-down."""
    counts = calibration["false_alarms"]
    return (
        f"False alarms on this runner: {counts['count']} of {counts['runs']} equal models, {_rate(counts)}; "
        f"{counts['cannot_tell']} undecided; median {counts['median_seconds']:.1f} s.",
        *(
            f"Planted slow-down of {100 * row['true_slowdown']:.1f} %: {row['count']} of {row['runs']} "
            f"detected, {_rate(row)}; median {row['median_seconds']:.1f} s."
            for row in calibration["planted"]
        ),
    )


def _rate(row: Dict[str, Any]) -> str:
    low, high = 100 * row["low"], 100 * row["high"]
    return f"{100 * row['rate']:.1f} % (95 % interval {low:.1f} to {high:.1f} %)"
