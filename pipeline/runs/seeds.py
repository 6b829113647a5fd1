"""Several seeds of one sweep setting as one row: means, spreads, and paired differences from the controls.

A difference between two settings that is smaller than the spread of the seeds is not a difference. Each seed
trains its own original, and results are first compared within a seed.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ..report.paired import paired
from ..report.schema import SweepControl, SweepRow
from ..report.tradeoff import pareto


@dataclass(frozen=True)
class Tried:
    """A setting with one seed: its row, and the scores of its controls by name."""

    row: SweepRow
    controls: Mapping[str, float]


def merged(tried: Sequence[Tried]) -> SweepRow:
    rows = [one.row for one in tried]
    row: SweepRow = {
        **rows[0],
        "score": _over(statistics.fmean, [row["score"] for row in rows]),
        "raw_score": _over(statistics.fmean, [row["raw_score"] for row in rows]),
        "score_change": _over(statistics.fmean, [row["score_change"] for row in rows]),
        "parameters": round(statistics.fmean(row["parameters"] for row in rows)),
        "parameters_removed": statistics.fmean(row["parameters_removed"] for row in rows),
    }
    if len(rows) > 1:
        row["seeds"] = len(rows)
        row["score_spread"] = _over(statistics.stdev, [row["score"] for row in rows])
        row["raw_spread"] = _over(statistics.stdev, [row["raw_score"] for row in rows])
    if tried[0].controls:
        row["controls"] = {name: _control(tried, name) for name in tried[0].controls}
    return row


def mark_front(rows: Sequence[SweepRow], sign: int) -> None:
    """Marks settings that are Pareto-optimal in parameters and score; `sign` is 1 if higher is better."""
    scored = [row for row in rows if row["score_change"] is not None]
    front = pareto([(row["parameters"], -sign * (row["score_change"] or 0.0)) for row in scored])
    for at, row in enumerate(scored):
        row["front"] = at in front


def _control(tried: Sequence[Tried], name: str) -> SweepControl:
    scores = [one.controls[name] for one in tried]
    differences = [(one.row["score"] or 0.0) - score for one, score in zip(tried, scores, strict=True)]
    found = paired(differences) if len(differences) > 1 else None
    return {
        "score": statistics.fmean(scores),
        "difference": statistics.fmean(differences),
        "low": found.low if found else None,
        "high": found.high if found else None,
        "p": found.p if found else None,
    }


def _over(figure: Callable[[Sequence[float]], float], values: Sequence[float | None]) -> float | None:
    """A figure over the seeds; None where one of them has no value."""
    known = [value for value in values if value is not None]
    return figure(known) if len(known) == len(values) else None
