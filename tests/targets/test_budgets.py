from __future__ import annotations

from typing import Any

from deadweight.targets.budgets import Budgets, check_budgets


def row(**figures: Any) -> dict[str, Any]:
    return {
        "score": 0.90,
        "parameters": 1000,
        "file_bytes": 4000,
        "memory_bytes": None,
        "latency_s": {"p50": 0.001},
        "speedup": {"outcome": "faster", "ratio": 2.0, "low": 1.9, "high": 2.1},
        **figures,
    }


def met(budgets: Budgets, *, higher_is_better: bool = True, **figures: Any) -> list[bool | None]:
    return [check.met for check in check_budgets(budgets, row(), row(**figures), higher_is_better)]


def test_only_budgets_that_were_set_are_checked() -> None:
    assert met(Budgets()) == []


def test_a_score_may_drop_by_exactly_the_budget() -> None:
    assert met(Budgets(score_drop=0.005), score=0.895) == [True]
    assert met(Budgets(score_drop=0.005), score=0.894) == [False]


def test_where_lower_is_better_a_higher_score_is_the_drop() -> None:
    assert met(Budgets(score_drop=0.005), score=0.91, higher_is_better=False) == [False]
    assert met(Budgets(score_drop=0.005), score=0.80, higher_is_better=False) == [True]


def test_the_whole_interval_must_lie_above_the_speedup() -> None:
    assert met(Budgets(speedup=1.95)) == [False]
    assert met(Budgets(speedup=1.9)) == [True]


def test_the_share_of_parameters_removed_is_a_lower_limit() -> None:
    assert met(Budgets(parameters_removed=0.75), parameters=250) == [True]
    assert met(Budgets(parameters_removed=0.75), parameters=251) == [False]


def test_a_figure_that_was_not_measured_is_neither_met_nor_broken() -> None:
    assert met(Budgets(memory_bytes=100, latency_s=1.0), latency_s=None) == [None, None]


def test_what_dla_hands_back_is_an_upper_limit_and_unknown_without_a_dla() -> None:
    assert met(Budgets(max_gpu_fallbacks=0), gpu_fallbacks=0) == [True]
    assert met(Budgets(max_gpu_fallbacks=0), gpu_fallbacks=1) == [False]
    assert met(Budgets(max_gpu_fallbacks=0)) == [None]


def test_what_is_sent_has_a_budget_of_its_own() -> None:
    assert met(Budgets(ota_bytes=1000), ota_bytes=1000) == [True]
    assert met(Budgets(ota_bytes=1000), ota_bytes=1001) == [False]
    assert met(Budgets(ota_bytes=1000)) == [None]
