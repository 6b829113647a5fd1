"""Paired comparison of two methods over seeds: Student's t interval and paired sign-flip test.

Both methods run with the same seeds and are compared seed by seed, so an effect that a seed has on both
cancels. With few seeds small differences cannot be distinguished from none, and the interval shows it.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_EXACT = 12  # up to this many pairs all signs are tried


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
