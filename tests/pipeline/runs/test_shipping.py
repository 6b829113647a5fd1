from __future__ import annotations

import dataclasses
from typing import Any, cast

import numpy as np
import pytest
from support.measurements import timed

from deadweight.pipeline.report.schema import Budget, Row
from deadweight.pipeline.report.units import ScoreScale
from deadweight.pipeline.runs.shipping import Choice, broken_budgets, choose
from deadweight.targets.budgets import Budgets, check_budgets
from deadweight.targets.timing.judge import judge

SCALE = ScoreScale("accuracy", higher_is_better=True, share=True)
Network = tuple[float, float]  # milliseconds, score


def rows_of(networks: dict[str, Network]) -> tuple[list[Row], dict[str, Any]]:
    measured = {}
    for number, (name, (time_ms, _)) in enumerate(networks.items()):
        noise = 1 + 0.004 * np.random.default_rng(number).standard_normal((24, 3))
        measured[name] = timed(1e-3 * time_ms * noise)
    rows = []
    for name, (_, score) in networks.items():
        found = judge(measured["original"], measured[name])
        rows.append(
            {
                "name": name,
                "score": score,
                "parameters": 1000 if name == "original" else 500,
                "macs": None,
                "file_bytes": 1000 if "int8" in name or "qat" in name else 4000,
                "memory_bytes": None,
                "latency_s": {"p50": measured[name].latency_s(50).value},
                "speedup": {
                    "outcome": found.outcome,
                    "ratio": found.ratio,
                    "low": found.low,
                    "high": found.high,
                },
            }
        )
    return cast("list[Row]", rows), measured


def choice(networks: dict[str, Network], budgets: Budgets) -> Choice:
    rows, measured = rows_of(networks)
    checks = {
        row["name"]: [
            cast(Budget, dataclasses.asdict(one)) for one in check_budgets(budgets, rows[0], row, True)
        ]
        for row in rows[1:]
    }
    return choose(rows, checks, measured, SCALE)


ORIGINAL = {"original": (2.0, 0.900)}
# What was planted, the networks, the budgets, what is to be shipped, and what the sentence says.
PLANTED: list[tuple[str, dict[str, Network], Budgets, str | None, str]] = [
    (
        "INT8 is slower than the tuned network",
        {"pruned": (1.2, 0.80), "tuned": (1.2, 0.895), "int8": (1.6, 0.894)},
        Budgets(score_drop=0.02, speedup=1.2),
        "tuned",
        "Ship Pruned and tuned: it is the fastest of 2|INT8 takes 1.3",
    ),
    (
        "INT8 is the fastest and keeps the score",
        {"tuned": (1.2, 0.895), "int8": (0.6, 0.893)},
        Budgets(score_drop=0.02),
        "int8",
        "Ship INT8: it is the fastest of 2|Pruned and tuned takes 2",
    ),
    (
        "FP16 is the best: INT8 breaks the budget of the score",
        {"tuned": (1.2, 0.895), "fp16": (0.8, 0.895), "int8": (0.6, 0.85)},
        Budgets(score_drop=0.02),
        "fp16",
        "Ship fp16|INT8 breaks a budget (drop of accuracy: 5.00",
    ),
    (
        "QAT keeps the score that INT8 loses, at the same speed",
        {"tuned": (1.2, 0.895), "int8": (0.6, 0.87), "qat": (0.6, 0.893)},
        Budgets(score_drop=0.02),
        "qat",
        "Ship INT8 (QAT): it is the fastest of 2",
    ),
    (
        "two are equally fast, and the earlier one scores better",
        {"tuned": (1.2, 0.895), "int8": (0.6, 0.893), "qat": (0.6, 0.890)},
        Budgets(score_drop=0.02),
        "int8",
        "INT8 (QAT) cannot be distinguished by time and scores no better",
    ),
    (
        "all break the budget of the score",
        {"tuned": (1.2, 0.80), "int8": (0.6, 0.79)},
        Budgets(score_drop=0.02),
        None,
        "Ship none of these networks: Pruned and tuned breaks|INT8 breaks",
    ),
    (
        "each breaks another budget",
        {"tuned": (1.9, 0.899), "int8": (0.6, 0.79)},
        Budgets(score_drop=0.02, speedup=1.5),
        None,
        "Ship none of these networks: Pruned and tuned breaks a budget (speed-up",
    ),
    (
        "the mixed one alone keeps both budgets",
        {"tuned": (1.9, 0.899), "int8": (0.6, 0.79), "mixed": (0.9, 0.89)},
        Budgets(score_drop=0.02, speedup=1.5),
        "mixed",
        "Ship mixed: it alone breaks no budget",
    ),
    (
        "at equal time and score the smaller file is shipped",
        {"tuned": (1.2, 0.895), "int8": (1.2, 0.895)},
        Budgets(score_drop=0.02),
        "int8",
        "Ship INT8: none that breaks no budget is faster",
    ),
    (
        "all are slower than the original",
        {"tuned": (2.4, 0.9), "int8": (3.0, 0.9)},
        Budgets(score_drop=0.02),
        "tuned",
        "Ship none for its speed: Pruned and tuned is slower than the original: it is the fastest of 2",
    ),
    (
        "there is one candidate",
        {"tuned": (1.2, 0.895)},
        Budgets(score_drop=0.02),
        "tuned",
        "Ship Pruned and tuned: it breaks no budget.",
    ),
    (
        "the file is too large for all but INT8",
        {"tuned": (0.5, 0.899), "int8": (0.6, 0.89)},
        Budgets(file_bytes=2000),
        "int8",
        "it alone breaks no budget; Pruned and tuned breaks a budget (file",
    ),
]


@pytest.mark.parametrize(
    ("networks", "budgets", "ship", "said"), [one[1:] for one in PLANTED], ids=[one[0] for one in PLANTED]
)
def test_the_planted_network_is_shipped_and_the_sentence_says_why(
    networks: dict[str, Network], budgets: Budgets, ship: str | None, said: str
) -> None:
    found = choice(ORIGINAL | networks, budgets)
    assert found.network == ship
    assert found.candidate == (ship or list(networks)[-1])
    for part in said.split("|"):
        assert part in found.sentence.replace("\N{NO-BREAK SPACE}", " ")


def test_where_the_last_network_was_not_measured_nothing_is_chosen() -> None:
    rows, measured = rows_of(ORIGINAL | {"pruned": (1.2, 0.8), "tuned": (1.2, 0.9)})
    del measured["tuned"]
    assert choose(rows, {"tuned": [], "pruned": []}, measured, SCALE) == Choice("tuned", "tuned", "")


def test_emulated_times_choose_nothing() -> None:
    rows, measured = rows_of(ORIGINAL | {"tuned": (1.2, 0.9), "int8": (1.6, 0.9)})
    emulated = {name: dataclasses.replace(one, evidence="emulated") for name, one in measured.items()}
    assert choose(rows, {"tuned": [], "int8": []}, emulated, SCALE).candidate == "int8"


def test_a_lower_score_is_better_where_the_workload_says_so() -> None:
    rows, measured = rows_of(ORIGINAL | {"int8": (0.6, 0.30), "qat": (0.6, 0.28)})
    error = ScoreScale("error", higher_is_better=False, share=False)
    assert choose(rows, {"int8": [], "qat": []}, measured, error).network == "qat"


def test_a_budget_that_is_broken_is_told_with_its_figures() -> None:
    budget: Budget = {"name": "score_drop", "limit": 0.02, "value": 0.05, "met": False}
    (said,) = broken_budgets([budget, {**budget, "met": True}, {**budget, "met": None}], SCALE)
    assert said.endswith("broken")
