"""The predicted time of a network at any widths of the table, with its interval.

    seconds = call + sum over segments of weight * table entry, times a smooth correction

The weights are fitted to whole networks measured on the target, each pulled to one common weight: a layer
in a chain costs less than alone, the more so the less it computes. The rest, such as weights that do not fit
the cache together, is a smooth function of the widths: a Gaussian process.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import nnls
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

from ...export.onnx_graph.resize import Widths
from .solve import Sum, Term
from .table import SegmentTable

Floats = np.ndarray[Any, np.dtype[np.float64]]
_PULL = 0.02
"""Weight of the pull towards one common weight, as a share of what the networks say."""


@dataclass(frozen=True, eq=False)
class Latency:
    """A fitted prediction.

    Attributes:
        call_s: the constant part.
        weights: float64[segments], at least 0.
        errors: float64[networks], the relative error of each network when its part of them was left out.
    """

    table: SegmentTable
    call_s: float
    weights: Floats
    correction: Any
    errors: Floats

    def linear(self, widths: Widths) -> float:
        """Seconds without the correction."""
        return self.call_s + float(self.weights @ self.table.parts(widths))

    @property
    def factor(self) -> float:
        """The factor by which a network takes more or less, in 95 %: split conformal, of those left out."""
        share = min(1.0, 0.95 * (1 + 1 / len(self.errors)))
        return float(np.exp(np.quantile(np.abs(np.log1p(self.errors)), share)))

    @property
    def dense_s(self) -> float:
        """Seconds of the whole network, without the correction."""
        return self.linear(self.table.dense)

    def sum(self) -> Sum:
        """Seconds without the correction, as a sum over the segments."""
        table, weights = self.table, self.weights.tolist()
        terms = [
            Term(one.groups, {w: weights[at] * table.part(at, w) for w in table.combinations(at)})
            for at, one in enumerate(table.segments)
        ]
        return Sum("seconds", terms, self.call_s)

    def predicted(self, some: Sequence[Widths]) -> Floats:
        """float64[networks], seconds."""
        linear = np.array([self.linear(widths) for widths in some])
        return np.asarray(linear * np.exp(self.correction.predict(_shares(self.table, some))))


def of_table(table: SegmentTable, more: Mapping[str, float] = {}) -> Latency:
    """The prediction from the networks of a table that are not held out, and more by their widths."""
    known = {key: value for key, value in table.networks.items() if key not in table.again} | {**more}
    return fitted(table, [*map(table.drawn, known)], [*known.values()])


def fitted(
    table: SegmentTable, networks: Sequence[Widths], seconds: Sequence[float], *, parts: int = 8
) -> Latency:
    """Fits the prediction to measured networks; `errors` come from leaving out each of some parts of them."""
    measured = np.array(seconds)
    place, errors = np.random.default_rng(0).permutation(len(networks)) % parts, np.zeros(len(networks))
    for part in range(min(parts, len(networks))):
        held, rest = (np.flatnonzero(same).tolist() for same in (place == part, place != part))
        one = _fitted(table, [networks[at] for at in rest], measured[rest], errors)
        errors[held] = one.predicted([networks[at] for at in held]) / measured[held] - 1
    return _fitted(table, networks, measured, errors)


def _fitted(table: SegmentTable, networks: Sequence[Widths], seconds: Floats, errors: Floats) -> Latency:
    parts = np.array([table.parts(widths) for widths in networks])
    relative = np.c_[np.ones(len(parts)), parts] / seconds[:, None]
    ones = np.ones(len(parts))
    together = np.c_[relative[:, 0], relative[:, 1:].sum(1)]
    common = _nonnegative(together, ones)
    prior = np.r_[common[0], np.full(parts.shape[1], common[1])]
    pull = np.diag(np.sqrt(_PULL) * np.linalg.norm(relative, axis=0))
    solved = _nonnegative(np.r_[relative, pull], np.r_[ones, pull @ prior])
    rest = np.log(seconds / (np.c_[ones, parts] @ solved))
    kernel = ConstantKernel(0.03**2, (1e-8, 1.0)) * RBF(0.7, (0.2, 5.0)) + WhiteKernel(0.01**2, (1e-7, 0.1))
    process = GaussianProcessRegressor(kernel, n_restarts_optimizer=1, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a length at its bound: no correction is needed
        process.fit(_shares(table, networks), rest)
    return Latency(table, float(solved[0]), solved[1:], process, errors)


def _nonnegative(matrix: Floats, right: Floats) -> Floats:
    """The least squares with no negative weight; in equal scales, as seconds are beside shares."""
    size = np.linalg.norm(matrix, axis=0) + 1e-300
    return np.asarray(nnls(matrix / size, right)[0] / size)


def _shares(table: SegmentTable, some: Sequence[Widths]) -> Floats:
    return np.array([[widths[name] / own[-1] for name, own in table.levels.items()] for widths in some])
