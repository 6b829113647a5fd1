from __future__ import annotations

from deadweight.pipeline.report.schema import Sweep, SweepControl, SweepRow
from deadweight.pipeline.report.sweep_words import sweep_sentences
from deadweight.pipeline.report.units import ScoreScale

ACCURACY = ScoreScale("accuracy", higher_is_better=True, share=True)


def row(criterion: str, score: float, *, chosen: bool = False, spread: float | None = None) -> SweepRow:
    made: SweepRow = {
        "settings": {"prune.criterion": criterion, "prune.ratio": 0.5},
        "score": score,
        "raw_score": 0.5,
        "score_change": score - 0.9,
        "parameters": 100,
        "parameters_removed": 0.75,
        "macs": 10,
        "file_bytes": 10,
        "speedup": None,
        "chosen": chosen,
        "split": "validation",
    }
    if spread is not None:
        made["score_spread"], made["seeds"] = spread, 3
    return made


def words(*rows: SweepRow) -> list[str]:
    sweep: Sweep = {"settings": ["prune.criterion", "prune.ratio"], "rows": list(rows)}
    return sweep_sentences(sweep, ACCURACY)


def control(low: float | None, high: float | None, difference: float = 0.01) -> SweepControl:
    return {"score": 0.88, "difference": difference, "low": low, "high": high, "p": 0.25}


def test_the_criterion_that_came_first_is_named_and_how_sure_that_is() -> None:
    (sentence,) = words(row("taylor", 0.89, spread=0.001), row("random", 0.87, spread=0.002))
    assert sentence.startswith("Of the criteria taylor came first in 1 of 1 comparisons; in 1 of them")
    (sentence,) = words(row("taylor", 0.89, spread=0.02), row("random", 0.87, spread=0.02))
    assert "in 0 of them" in sentence


def test_one_seed_is_called_luck() -> None:
    assert "with one seed this may be chance" in words(row("taylor", 0.89), row("random", 0.87))[0]


def test_the_chosen_setting_is_compared_with_its_controls() -> None:
    chosen = row("taylor", 0.89, chosen=True, spread=0.001)
    chosen["controls"] = {"random": control(0.005, 0.015), "scratch": control(-0.01, 0.03)}
    sentences = words(chosen)
    assert sentences[0].startswith("Chosen: ")
    assert "mean of 3 seeds" in sentences[0]
    assert "random neurons at the same widths" in sentences[1]
    assert sentences[1].endswith("the chosen network is better.")
    assert sentences[2].endswith("not more than chance over the seeds.")


def test_a_control_that_is_better_is_said_to_be() -> None:
    chosen = row("taylor", 0.89, chosen=True, spread=0.001)
    chosen["controls"] = {"random": control(-0.03, -0.01, -0.02)}
    assert words(chosen)[1].endswith("the control is better.")
    chosen["controls"] = {"random": control(None, None)}
    assert words(chosen)[1].endswith("cannot distinguish the method from chance.")


def test_the_rule_of_the_choice_is_reported_with_it() -> None:
    sweep: Sweep = {"settings": ["prune.criterion"], "rows": [row("taylor", 0.89, chosen=True)]}
    sentences = sweep_sentences(sweep, ACCURACY, score_drop=0.005)
    assert sentences[0].startswith("Chosen, the smallest that loses at most 0.50\N{NO-BREAK SPACE}points: ")
