from __future__ import annotations

import math
from typing import Any, cast

import pytest

from deadweight.pipeline.report.schema import Budget, Control, Row, Verdict
from deadweight.pipeline.report.units import TIMES, ScoreScale
from deadweight.pipeline.report.words import (
    budget_sentence,
    budgets_sentence,
    control_sentences,
    how_sure,
    protocol_sentences,
    sampling_error,
    verdict_sentence,
)


def row(name: str, score: float | None) -> Row:
    empty = dict.fromkeys(("parameters", "macs", "file_bytes", "latency_s", "memory_bytes", "speedup"))
    return cast(Row, {"name": name, "score": score, **empty})


def said(
    tuned: float,
    control: float | None,
    *,
    name: str = "accuracy",
    higher: bool = True,
    n: int | None = 10_000,
) -> str:
    """The sentence on the control "random" when the tuned network has this accuracy."""
    rows = [row("original", 0.9), row("pruned", 0.5), row("tuned", tuned)]
    scale = ScoreScale.of(name, higher_is_better=True, scores=[0.9, 0.5, tuned, control])
    (sentence,) = control_sentences(rows, [cast(Control, row("random", control))], scale, n=n)
    return sentence.replace("\N{NO-BREAK SPACE}", " ")


def test_random_neurons_within_the_sampling_error_did_as_well() -> None:
    sentence = said(0.8926, 0.8918)
    assert sentence.startswith(
        "Random neurons at the same widths did as well as the pruned and tuned network: "
        "accuracy 89.18 % against 89.26 %"
    )
    assert "no evidence that it matters which neurons are kept" in sentence


def test_a_control_beyond_the_sampling_error_did_worse_or_better() -> None:
    assert "did worse than" in said(0.89, 0.87)
    assert "no evidence" not in said(0.89, 0.87)
    assert "did better than" in said(0.87, 0.89)
    assert "no evidence" in said(0.87, 0.89)


def test_fewer_test_samples_make_the_same_difference_inconclusive() -> None:
    assert "did worse" in said(0.89, 0.87, n=10_000)
    assert "did as well" in said(0.89, 0.87, n=500)


def test_the_bound_is_that_of_a_difference_of_two_binomial_shares() -> None:
    bound = 1.96 * math.hypot(sampling_error(0.9, 10_000), sampling_error(0.9, 10_000))
    assert bound == pytest.approx(1.96 * math.sqrt(2 * 0.9 * 0.1 / 10_000), rel=1e-3)
    assert "did as well" in said(0.9, 0.9 - 0.98 * bound)
    assert "did worse" in said(0.9, 0.9 - 1.02 * bound)


def test_a_perfect_score_is_not_taken_for_certain() -> None:
    assert sampling_error(1.0, 100) > 0


def test_without_a_sampling_error_nothing_is_claimed() -> None:
    for sentence in (said(0.89, 0.88, n=None), said(0.89, 0.88, name="IoU")):
        assert "is not judged" in sentence
        assert "did" not in sentence


def test_a_control_that_was_not_scored_is_not_compared() -> None:
    assert said(0.89, None).endswith("not scored, so not compared.")


def verdict(outcome: str, ratio: float | None, **more: Any) -> Verdict:
    ends = {"low": ratio and ratio * 0.9, "high": ratio and ratio * 1.1}
    return cast(
        Verdict, {"outcome": outcome, "ratio": ratio, **ends, "confidence": 0.95, "sentence": "", **more}
    )


@pytest.mark.parametrize(
    ("outcome", "ratio", "words"),
    [
        ("faster", 3.12, f"The INT8 network is 3.12{TIMES} as fast as the original."),
        ("slower", 0.8, f"The INT8 network is slower: it takes 1.25{TIMES} as long as the original."),
        ("equal", 1.0, "The INT8 network is as fast as the original, no faster and no slower."),
        ("cannot_tell", 1.1, "This run cannot tell whether the INT8 network is faster than the original."),
        (
            "cannot_tell",
            None,
            "Nothing was measured, so the speed of the INT8 network is not known.",
        ),
    ],
)
def test_each_outcome_has_its_sentence(outcome: str, ratio: float | None, words: str) -> None:
    assert verdict_sentence(verdict(outcome, ratio), "int8") == words


def test_how_sure_tells_the_interval_the_events_and_what_could_have_been_seen() -> None:
    sure = f"Speed-up 2.00{TIMES}, 1.80{TIMES} to 2.20{TIMES} with 95 % confidence, "
    assert how_sure(verdict("faster", 2.0, events=24)) == f"{sure}from 24 independent repetitions."
    unsure = verdict("cannot_tell", 1.02, events=6, smallest_visible=1.08, reason="the machine changed")
    assert how_sure(unsure).endswith(
        f"The machine changed. This run could detect a speed-up of 1.08{TIMES} or more."
    )
    assert "no interval" in how_sure(
        cast(Verdict, {**verdict("cannot_tell", 1.0), "low": None, "high": None})
    )


def test_budgets_are_reported_in_their_units_and_the_broken_ones_are_counted() -> None:
    scale = ScoreScale("accuracy", True, share=True)
    budgets: list[Budget] = [
        {"name": "score_drop", "limit": 0.005, "value": 0.0026, "met": True},
        {"name": "memory_bytes", "limit": 2_000_000, "value": 2_162_688, "met": False},
        {"name": "speedup", "limit": 2.0, "value": None, "met": None},
    ]
    sentences = [budget_sentence(budget, scale).replace("\N{NO-BREAK SPACE}", " ") for budget in budgets]
    assert sentences == [
        "drop of accuracy: 0.26 points, at most 0.50 points: met",
        "memory: 2.16 MB, at most 2.00 MB: broken",
        f"speed-up (lower end of its interval): not measured, at least 2.00{TIMES}",
    ]
    assert budgets_sentence(budgets) == "1 of 3 budgets broken, 1 not measured."
    assert budgets_sentence(budgets[:1]) == "The budget is met."


def test_the_protocol_is_described_from_its_own_figures_and_no_others() -> None:
    sentences = " ".join(protocol_sentences({"events": 24, "min_rounds": 3, "threads": 1}))
    assert "24 times" in sentences
    assert "thread" not in sentences  # neither batch nor runtime is known
    assert protocol_sentences({}) == []
    assert protocol_sentences({"words": "By hand."}) == ["By hand."]
