from __future__ import annotations

import pytest
from scipy import stats

from deadweight.pipeline.paired import paired


@pytest.mark.parametrize("differences", [[0.1, 0.3, 0.2], [0.5, -0.2, 0.1, 0.7], [1.0, 1.1] * 20])
def test_the_interval_is_students(differences: list[float]) -> None:
    found = paired(differences)
    n = len(differences)
    low, high = stats.t.interval(0.95, min(n - 1, 30), stats.tmean(differences), stats.sem(differences))
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-3)


def test_the_sign_flip_test_is_exact() -> None:
    differences = [0.5, -0.2, 0.1, 0.7]
    reference = stats.permutation_test(
        (differences, [0.0] * 4), lambda x, y: sum(x) - sum(y), permutation_type="samples"
    )
    assert paired(differences).p == pytest.approx(reference.pvalue)


def test_three_seeds_can_hardly_tell() -> None:
    found = paired([0.3, 0.1, 0.5])
    assert found.p == 0.25
    assert not found.apart
    assert found.words() == "+0.30 (-0.20 to +0.80)"


def test_one_pair_allows_no_interval() -> None:
    with pytest.raises(ValueError, match="1 pairs"):
        paired([0.1])
