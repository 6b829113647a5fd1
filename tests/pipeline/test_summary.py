from __future__ import annotations

from typing import Any

import pytest

from deadweight.pipeline.summary import exit_code


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
