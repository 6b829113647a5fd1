"""Several seeds of one sweep setting as one row: means, spreads, and paired differences from the controls.

A difference between two settings that is smaller than the spread of the seeds is not a difference. Each seed
trains its own original, and results are first compared within a seed, so an effect that a seed has on both
cancels: by Student's t interval and the paired sign-flip test. With few seeds small differences cannot be
distinguished from none, and the interval shows it.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..report.schema import SweepControl, SweepRow
from ..report.tradeoff import pareto

_EXACT = 12  # up to this many pairs all signs are tried


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


@dataclass(frozen=True)
class Paired:
    """The mean of paired differences.

    Attributes:
        low, high: its 95 % interval by Student's t.
        p: of the sign-flip test, exact: the share of all sign choices with a mean at least as far from 0;
            None beyond 12 pairs.
        n: pairs.
    """

    mean: float
    low: float
    high: float
    p: float | None
    n: int

    @property
    def apart(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low > 0 or self.high < 0

    def words(self) -> str:
        return f"{self.mean:+.2f} ({self.low:+.2f} to {self.high:+.2f})"


def paired(differences: Sequence[float]) -> Paired:
    """The mean difference with its uncertainty over the seeds; a ValueError for fewer than two pairs."""
    n = len(differences)
    if n < 2:
        raise ValueError(f"{n} pairs allow no interval")
    from scipy import stats  # takes a second to import

    values = np.asarray(differences, dtype=np.float64)
    mean, half = statistics.fmean(differences), float(stats.t.ppf(0.975, n - 1) * stats.sem(values))
    p = None
    if n <= _EXACT:

        def distance(flipped: np.ndarray, axis: int) -> np.ndarray:
            return np.asarray(np.round(np.abs(flipped.sum(axis=axis)), 12))  # equal sums stay equal

        flips = stats.permutation_test([values], distance, permutation_type="samples", alternative="greater")
        p = float(flips.pvalue)
    return Paired(mean, mean - half, mean + half, p, n)
