from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from support import digits

from deadweight.pipeline.recipe import Recipe, SweepSettings, read_recipe
from deadweight.pipeline.runs.cache import Watcher
from deadweight.pipeline.runs.run import run_sweep
from deadweight.targets.errors import RecipeError

RECIPE = f"""
workload = "{digits.__file__}:Digits"
[[stages]]
stage = "train"
epochs = 1
[[stages]]
stage = "prune"
ratio = 0.5
criterion = "random"
[[stages]]
stage = "quantize"
"""
SILENT = Watcher(lambda name: None, lambda done, total, what: None, lambda finished: None)


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    (tmp_path / "recipe.toml").write_text(RECIPE)
    return read_recipe(tmp_path / "recipe.toml")


@pytest.mark.parametrize("name", ["quantize.method", "stages[2].method", "seed", "target", "budgets.speedup"])
def test_a_setting_that_no_trial_reaches_is_refused(recipe: Recipe, tmp_path: Path, name: str) -> None:
    settings = SweepSettings(over={name: ("1", "2")})
    if name == "seed":
        settings = SweepSettings(over={name: (1, 2)})
    with pytest.raises(RecipeError):
        run_sweep(recipe, settings, tmp_path / "run", SILENT)


def test_every_setting_is_a_row_and_too_gentle_a_limit_chooses_none(recipe: Recipe, tmp_path: Path) -> None:
    settings = SweepSettings(over={"prune.ratio": (0.3, 0.9)}, score_drop=-1.0, seconds=0.5)
    swept = run_sweep(recipe, settings, tmp_path / "run", SILENT)
    assert [row["settings"] for row in swept.sweep["rows"]] == [{"prune.ratio": 0.3}, {"prune.ratio": 0.9}]
    assert swept.chosen == ()
    assert (tmp_path / "run" / "sweep.csv").read_text().count("\n") == 3


def test_nothing_to_try_is_bad_input(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="nothing to try"):
        run_sweep(recipe, SweepSettings(), tmp_path / "run", SILENT)


@pytest.mark.slow
def test_seeds_controls_and_processes(recipe: Recipe, tmp_path: Path) -> None:
    """Two seeds in two processes: means over both, controls in pairs; the same rows as one process finds."""
    over = {"prune.criterion": ("random", "weight_l2")}
    settings = SweepSettings(over=over, score_drop=1.0, seconds=0.5, seeds=(0, 1), processes=2, controls=True)
    swept = run_sweep(recipe, settings, tmp_path / "run", SILENT)
    assert [row.get("seeds") for row in swept.sweep["rows"]] == [2, 2]
    assert all(set(row.get("controls", {})) == {"random", "scratch"} for row in swept.sweep["rows"])
    assert any("Of the criteria" in sentence for sentence in swept.sweep.get("words", []))
    assert sum(row["chosen"] for row in swept.sweep["rows"]) == 1
    head = (tmp_path / "run" / "sweep.csv").read_text().splitlines()[0]
    assert "score_spread" in head
    assert "scratch_difference" in head
    alone = dataclasses.replace(settings, processes=1)
    again = run_sweep(recipe, alone, tmp_path / "run", SILENT)
    assert [row["score"] for row in again.sweep["rows"]] == [row["score"] for row in swept.sweep["rows"]]
