"""Is one way better than another, or was it the luck of the seeds?

Both ways are run from the same seeds, so their differences are compared seed by seed: what a seed does to
both drops out. With few seeds there is no telling small differences from none, and the interval says so.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

_EXACT = 12  # up to here all signs are tried

# The 97.5 % point of Student's t by degrees of freedom; beyond 30 the next smaller one is wide enough.
_T = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


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
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0

    def words(self) -> str:
        """Mean and interval."""
        return f"{self.mean:+.2f} ({self.low:+.2f} to {self.high:+.2f})"


def paired(differences: Sequence[float]) -> Paired:
    """The mean difference with what the seeds leave open.

    Raises:
        ValueError: fewer than two pairs.
    """
    n = len(differences)
    if n < 2:
        raise ValueError(f"{n} pairs allow no interval")
    mean = statistics.fmean(differences)
    half = _T[min(n - 1, len(_T)) - 1] * statistics.stdev(differences) / math.sqrt(n)
    p = None
    if n <= _EXACT:
        sums = [
            abs(sum(sign * value for sign, value in zip(signs, differences, strict=True)))
            for signs in itertools.product((1, -1), repeat=n)
        ]
        p = sum(total >= abs(sum(differences)) - 1e-12 for total in sums) / len(sums)
    return Paired(mean, mean - half, mean + half, p, n)
