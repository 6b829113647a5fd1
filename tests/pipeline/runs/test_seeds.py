from __future__ import annotations

import pytest

from deadweight.pipeline.report.schema import SweepRow
from deadweight.pipeline.runs.seeds import Tried, mark_front, merged


def row(score: float, *, change: float = 0.0, raw: float | None = 0.5, parameters: int = 100) -> SweepRow:
    return {
        "settings": {"prune.ratio": 0.5},
        "score": score,
        "raw_score": raw,
        "score_change": change,
        "parameters": parameters,
        "parameters_removed": 0.5,
        "macs": 10,
        "file_bytes": 10,
        "speedup": None,
        "chosen": False,
        "split": "validation",
    }


def test_seeds_become_means_and_spreads() -> None:
    found = merged([Tried(row(score, parameters=size), {}) for score, size in ((0.8, 99), (0.9, 102))])
    assert found["score"] == pytest.approx(0.85)
    assert found.get("score_spread") == pytest.approx(0.0707, rel=1e-3)
    assert found.get("seeds") == 2
    assert found["parameters"] == 100


def test_one_seed_has_no_spread_and_no_interval() -> None:
    found = merged([Tried(row(0.8), {"random": 0.75})])
    assert "score_spread" not in found
    control = found.get("controls", {})["random"]
    assert control["difference"] == pytest.approx(0.05)
    assert (control["low"], control["high"], control["p"]) == (None, None, None)


def test_controls_are_compared_seed_by_seed() -> None:
    """The seeds differ by far more than the method does; in pairs that drops out."""
    pairs = [(0.80, 0.79), (0.90, 0.888), (0.70, 0.691)]
    found = merged([Tried(row(mine), {"scratch": theirs}) for mine, theirs in pairs])
    control = found.get("controls", {})["scratch"]
    assert control["low"] is not None
    assert control["low"] > 0
    assert control["p"] == 0.25


def test_a_score_that_one_seed_lacks_is_no_mean() -> None:
    assert merged([Tried(row(0.8, raw=None), {}), Tried(row(0.8), {})])["raw_score"] is None


@pytest.mark.parametrize(("sign", "front"), [(1, [True, True, False]), (-1, [False, True, False])])
def test_the_front_is_what_no_other_setting_beats(sign: int, front: list[bool]) -> None:
    rows = [row(0.9, change=0.0, parameters=100), row(0.8, change=-0.1, parameters=50)]
    rows.append(row(0.85, change=-0.05, parameters=120))
    mark_front(rows, sign)
    assert [one.get("front") for one in rows] == front
