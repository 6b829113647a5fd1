from __future__ import annotations

import copy
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from deadweight.pipeline.report.budget_page import search_section, table_page
from deadweight.pipeline.report.document import document
from deadweight.pipeline.report.schema import Search
from deadweight.pipeline.report.units import ScoreScale

CURVE: dict[str, Any] = {
    "group": "<conv1>",
    "width": 40,
    "points": [(16, 1e-4), (40, 2e-4), (48, 2e-4), (56, 2.6e-4)],
    "free": 48,
    "cliff": (56, 2.6e-4),
    "saved_s": 1e-4,
    "pays": True,
}
PLAN: dict[str, Any] = {
    "widths": {"<conv1>": 16},
    "seconds": 1e-4,
    "high_s": 1.1e-4,
    "predicted_s": 1.05e-4,
    "damage": 0.2,
    "score": 0.9,
    "kept": True,
    "chosen": True,
}
SEARCH: dict[str, Any] = {
    "limit_s": 1.2e-4,
    "whole_s": 2e-4,
    "factor": 1.05,
    "front": [(1e-4, 0.2), (1.5e-4, 0.1), (2e-4, 0.0)],
    "tried": [PLAN, {**PLAN, "kept": False, "chosen": False, "seconds": 1.3e-4, "high_s": 1.35e-4}],
    "curves": [CURVE] * 8,
    "said": ["<conv1> is 40 wide and may be 48 in the same time"],
}
SCALE = ScoreScale.of("accuracy", higher_is_better=True, scores=[0.9])


def test_the_section_has_every_plan_the_budget_and_what_the_table_says() -> None:
    search = TypeAdapter(Search).validate_python(SEARCH)
    page = document("a run", [search_section(search, SCALE)])
    for words in ("chosen", "not proven", "The dotted line is the budget", "may be 48"):
        assert words in page
    assert "1 keep the budget" in page
    assert "<conv1>" not in page
    assert "2 more groups" in page
    assert page.count('class="plot"') == 2 + 8
    assert search_section(None, SCALE) is None


def test_a_search_with_another_key_is_refused() -> None:
    wrong = copy.deepcopy(SEARCH)
    wrong["tried"][0]["second"] = 1.0
    with pytest.raises(ValidationError):
        TypeAdapter(Search).validate_python(wrong)


def test_the_page_of_a_table_has_its_cliffs() -> None:
    curves = TypeAdapter(Search).validate_python(SEARCH)["curves"]
    page = table_page(name="t.json", verdict="to 1 %", curves=curves, figures={"noise": "1 %"})
    assert "Next cliff" in page
    assert "noise" in page
    assert "+0.06" in page
