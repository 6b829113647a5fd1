from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from support.measurements import timed

from deadweight.pipeline.runs.summary import exit_code, int8_sentences, time_sentences
from deadweight.targets.timing.measurement import Mark


def report(outcome: str, *met: bool | None) -> Any:
    budgets = [{"name": "speedup", "limit": 1.0, "value": None, "met": each} for each in met]
    return {"verdict": {"outcome": outcome}, "budgets": budgets}


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (report("faster"), 0),
        (report("faster", True, True), 0),
        (report("faster", True, False), 1),
        (report("faster", None), 3),
        (report("slower", True), 1),
        (report("equal"), 3),
        (report("cannot_tell"), 3),
        (report("cannot_tell", False), 1),
    ],
)
def test_the_exit_code_is_zero_only_for_what_is_proven(value: Any, code: int) -> None:
    assert exit_code(value) == code


@pytest.mark.parametrize(
    ("int8_s", "evidence", "said"),
    [
        (5e-4, "measured", False),
        (2e-3, "measured", True),
        (1e-3, "measured", True),
        (2e-3, "emulated", False),
    ],
)
def test_int8_that_was_measured_and_gained_nothing_saves_no_time(
    int8_s: float, evidence: str, said: bool
) -> None:
    seconds = {"tuned": 1e-3, "int8": int8_s}
    taken = {
        name: replace(timed(np.full((24, 3), each)), evidence=evidence) for name, each in seconds.items()
    }
    [words] = int8_sentences(taken)
    assert ("not time" in words) == said


def test_nothing_is_said_of_what_int8_saves_where_the_times_cannot_tell() -> None:
    noisy = np.where(np.arange(24) % 2, 1e-3, 3e-3)[:, None] * np.ones(3)
    [words] = int8_sentences({"tuned": timed(np.full((24, 3), 1.7e-3)), "int8": timed(noisy)})
    assert "cannot tell" in words
    assert "not time" not in words


def test_work_beside_the_timing_is_reported_with_the_verdict() -> None:
    quiet = {"original": timed(np.full((24, 3), 2e-3)), "tuned": timed(np.full((24, 3), 1e-3))}
    assert not [words for words in time_sentences("tuned", quiet) if "marked" in words or "p99" in words]
    mark = Mark(3, "other programs left 34 % of a core")
    busy = {**quiet, "tuned": replace(quiet["tuned"], marks=(mark,))}
    words = time_sentences("tuned", busy)
    assert "1 of 24 events are marked, as in: other programs left 34 % of a core." in words
    assert "p99 most of all" in words[-1]
