from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from support.runs import project_of
from support.runs import recipe as recipe_of

from deadweight.pipeline.recipe import SweepSettings, read_recipe
from deadweight.pipeline.report.schema import SweepRow
from deadweight.pipeline.runs.cache import Watcher
from deadweight.pipeline.runs.run import run_sweep
from deadweight.pipeline.runs.search import Found, search
from deadweight.targets.errors import RecipeError

RATIO: dict[str, Any] = {"prune.ratio": {"low": 0.1, "high": 0.9}, "prune.align": (True, False)}
SETTINGS = SweepSettings(over=RATIO, search="tpe", trials=16)


def row(settings: Mapping[str, Any], score: float, parameters: int) -> SweepRow:
    return {
        "settings": dict(settings),
        "score": score,
        "raw_score": score,
        "score_change": score - 1,
        "parameters": parameters,
        "parameters_removed": 0.0,
        "macs": None,
        "file_bytes": None,
        "speedup": None,
        "chosen": False,
        "split": "validation",
    }


def found(at_once: int = 1, **changes: Any) -> tuple[Found, list[list[str]]]:
    """A search where score and size fall with the ratio, and alignment only makes the network worse."""
    pytest.importorskip("optuna")
    batches: list[list[str]] = []

    def quality(one: Mapping[str, Any]) -> tuple[float, float]:
        worse = 0.3 if one["prune.align"] else 0.0
        return 1 - one["prune.ratio"] ** 2 - worse, 1000 * (1 - one["prune.ratio"] + worse)

    def tried(over: Mapping[str, Mapping[str, Any]]) -> list[SweepRow]:
        batches.append(list(over))
        return [row(one, quality(one)[0], int(quality(one)[1])) for one in over.values()]

    def cut(over: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[float, float]]:
        return {name: quality(one) for name, one in over.items()}

    settings = dataclasses.replace(SETTINGS, **changes)
    return search(settings, tried, cut, seed=0, higher=True, at_once=at_once), batches


def test_a_search_repeats_itself_and_tries_as_many_at_a_time_as_run_at_a_time() -> None:
    first, again = found(4)[0], found(4)[0]
    assert [one["settings"] for one in first.rows] == [one["settings"] for one in again.rows]
    assert all(len(batch) <= 4 for batch in found(4)[1])


def test_settings_that_others_beat_before_tuning_are_not_tuned_and_the_looks_are_counted() -> None:
    made, batches = found()
    tuned = sum(map(len, batches))
    assert tuned == len(made.rows) < 16
    worse = [one for one in made.rows if one["settings"]["prune.align"]]
    assert len(worse) < len(made.rows) / 2
    assert f"Optuna (TPE) proposed 16 settings, {tuned} of them were tuned and scored" in made.words
    assert f"{16 - tuned} dropped after the cut" in made.words
    assert f"took {16 + tuned} looks at the validation split" in made.words


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"over": {"prune.ratio": {"low": 0.9, "high": 0.1}}}, 'The range of "prune.ratio" has no values'),
        ({"over": {"prune.ratio": {"from": 0.1}}}, 'The range of "prune.ratio" has no values'),
        ({"against": "latency"}, "nothing was timed"),
    ],
)
def test_a_range_without_values_and_a_goal_without_times_are_refused(
    changes: Mapping[str, Any], said: str
) -> None:
    with pytest.raises(RecipeError, match=said):
        found(**changes)


def test_a_grid_has_no_steps_for_a_range(tmp_path: Path) -> None:
    project_of(tmp_path, recipe_of(("train", {"epochs": 1}), ("prune", {"ratio": 0.5})))
    settings = SweepSettings(over={"prune.ratio": {"low": 0.1, "high": 0.9}})
    with pytest.raises(RecipeError, match=r'"prune.ratio" is a range'):
        run_sweep(read_recipe(tmp_path / "recipe.toml"), settings, tmp_path / "run", Watcher())


def test_a_search_over_a_recipe_fills_the_table_and_trades_for_measured_time(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    stages: list[Any] = [("train", {"epochs": 1}), ("prune", {"ratio": 0.5, "criterion": "random"})]
    text = recipe_of(*stages, ("finetune", {"epochs": 1}), workload="mine.py:Mine")
    project_of(
        tmp_path,
        text + '[sweep]\nsearch = "tpe"\ntrials = 5\nagainst = "latency"\nseconds = 0.5\n'
        'score_drop = 1.0\n[sweep.over]\n"prune.ratio" = { low = 0.2, high = 0.9 }\n',
    )
    recipe = read_recipe(tmp_path / "recipe.toml")
    assert recipe.sweep is not None
    swept = run_sweep(recipe, recipe.sweep, tmp_path / "run", Watcher())
    assert 1 <= len(swept.sweep["rows"]) <= 5
    assert all(one["speedup"] for one in swept.sweep["rows"])
    assert all(0.2 <= one["settings"]["prune.ratio"] <= 0.9 for one in swept.sweep["rows"])
    assert "Optuna (TPE) proposed 5 settings" in swept.sweep.get("words", [""])[-1]
    assert swept.chosen
