"""Plans for a budget: those of least damage within it, or the reason that there are none; what was tried."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from ...export.onnx_graph.resize import Widths
from .advice import curves, front, sentences
from .latency import Latency
from .solve import OutOfReachError, OutOfTimeError, Sum, solve

Limits = Sequence[tuple[Sum, float]]


@dataclass(frozen=True, eq=False)
class Finalist:
    """A cut network that was measured.

    Attributes:
        file: as it was timed.
        seconds: by the table's clock; `predicted_s` too.
        used: of the time budget, as a share; `bound` is what it uses at most, with 99 %.
        kept: whether it is proven to keep the budget.
        near: whether its first time and its bytes are within it, so that it is worth a proof of its own.
        score: on the validation split, not tuned.
        again: whether it was timed for that proof.
    """

    widths: Mapping[str, int]
    model: nn.Module
    file: Path
    seconds: float
    predicted_s: float
    used: float
    bound: float
    kept: bool
    near: bool
    score: float
    again: bool = False


def best_plans(
    latency: Latency, limit: float, more: Limits, *, earlier: Sequence[Widths], count: int, solver_s: float
) -> list[dict[str, int]]:
    """The plans of least damage that are predicted to take `limit` seconds at most, each unlike the others.

    Where only plans that were tried earlier are, it is the fastest of the others.

    Raises:
        OutOfReachError: there is none, and none was found earlier; it says what the least possible is.
        OutOfTimeError: none was found in time.
    """
    table, found, seconds = latency.table, list[dict[str, int]](), latency.sum()
    damage = table.damages()
    while len(found) < count:
        unlike = [table.telling(one) for one in (*earlier, *found)]
        scale, widths = 1.0, dict[str, int]()
        try:
            for _ in range(4):  # the program is linear: the rest of the prediction enters by the limit
                limits = [(seconds, limit * scale), *more]
                widths = dict(
                    solve(table.levels, damage, limits, unlike=unlike, time_limit_s=solver_s).widths
                )
                ratio = float(latency.predicted([widths])[0]) / limit
                if 0.98 <= ratio <= 1.0:
                    break
                scale *= min(0.999 / ratio, 1.1)
        except (OutOfReachError, OutOfTimeError) as error:
            late = isinstance(error, OutOfTimeError)
            if unlike:
                return found if found or late else _fastest(latency, more, unlike, solver_s)
            if late:
                raise
            raise _out_of_reach(latency, limit, more, solver_s) from error
        found.append(widths)
    return found


def _fastest(
    latency: Latency, more: Limits, unlike: Sequence[Widths], solver_s: float
) -> list[dict[str, int]]:
    """The fastest plan unlike some, which may keep a budget against the prediction; none if there is none."""
    try:
        levels = latency.table.levels
        return [dict(solve(levels, latency.sum(), more, unlike=unlike, time_limit_s=solver_s).widths)]
    except (OutOfReachError, OutOfTimeError):
        return []


def _out_of_reach(latency: Latency, limit: float, more: Limits, solver_s: float) -> OutOfReachError:
    """The error that says what the least possible is, and which segments take the time then."""
    table, seconds = latency.table, latency.sum()
    least = solve(table.levels, seconds, more, time_limit_s=solver_s)
    parts = latency.weights * table.parts(least.widths)
    slow = [table.segments[at].name for at in np.argsort(-parts)[:3].tolist()]
    return OutOfReachError(
        f"The budget cannot be met: {limit / latency.dense_s:.1%} of the network's time is asked for, "
        f"and the least is {least.value / latency.dense_s:.1%}, at widths of "
        f"{', '.join(f'{name} {width}' for name, width in least.widths.items())}. Most of it are then "
        f"the call itself ({latency.call_s / least.value:.0%}) and {', '.join(slow)}.",
        "Allow more time, or let heads and blocks be pruned too (heads = true).",
    )


def record_of(
    best: Finalist, tried: Sequence[Finalist], latency: Latency, *, scale: float, limit_s: float
) -> dict[str, Any]:
    """The search, as the report reads it; `scale` brings times of the table to the wall clock."""
    table, damage = latency.table, latency.table.damages()
    return {
        "limit_s": limit_s,
        "whole_s": table.networks[table.network_key(table.dense)] * scale,
        "factor": latency.factor,
        "front": [(seconds * scale, plan.value) for seconds, plan in front(latency, damage)],
        "tried": [
            {
                "widths": dict(one.widths),
                "seconds": one.used * limit_s,
                "high_s": one.bound * limit_s,
                "predicted_s": one.predicted_s * scale,
                "damage": damage.at(one.widths),
                "score": one.score,
                "kept": one.kept,
                "chosen": one is best,
            }
            for one in tried
        ],
        "curves": [asdict(one) for one in curves(latency, best.widths)],
        "said": sentences(latency, best.widths),
    }
