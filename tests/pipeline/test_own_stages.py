"""A user's own stages beside ours: the same controls, sweeps over every stage, and refusals with a cure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from support import digits

from deadweight.pipeline.recipe import SweepSettings, check_order, read_recipe
from deadweight.pipeline.runs.cache import Finished, Watcher, prepared
from deadweight.pipeline.runs.run import run_sweep
from deadweight.pipeline.work import Work
from deadweight.targets.errors import ModelError, RecipeError, WorkloadError

OWN = """
import dataclasses
from dataclasses import dataclass
from typing import ClassVar

from deadweight.pipeline.stages.finetune import Finetune
from deadweight.pipeline.stages.prune import Prune


@dataclass(frozen=True)
class Half:
    ratio: float = 0.8
    shrinks: ClassVar[bool] = True

    def __call__(self, work):
        made = Prune(ratio=self.ratio, criterion="weight_l2")(work)
        return dataclasses.replace(made, log=work.log).logged("half", self, "by my own rule")


@dataclass(frozen=True)
class Silent(Half):
    def __call__(self, work):
        return dataclasses.replace(Half.__call__(self, work), log=work.log)


@dataclass(frozen=True)
class Inside(Half):
    def __call__(self, work):
        return Prune(ratio=self.ratio, criterion="weight_l2")(work)


@dataclass(frozen=True)
class Tune:
    epochs: int = 2
    recovers: ClassVar[bool] = True

    def __call__(self, work):
        return Finetune(epochs=self.epochs)(work)


@dataclass(frozen=True)
class Undeclared:
    ratio: float = 0.8

    def __call__(self, work):
        return Prune(ratio=self.ratio, criterion="weight_l2")(work)


@dataclass(frozen=True)
class AsLarge:
    shrinks: ClassVar[bool] = True

    def __call__(self, work):
        return work.with_model("pruned", work.model())


@dataclass(frozen=True)
class Endless:
    rate: float = 1e-3
    recovers: ClassVar[bool] = True

    def __call__(self, work):
        return Finetune(epochs=1, learning_rate=self.rate)(work)
"""
FAILING = """
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Stage:
    how: str = ""

    def __call__(self, work):
        if self.how == "raises":
            return work.nothing
        if self.how == "exits":
            raise SystemExit("bye")
        return None

    def reads(self):
        return ["a.txt"] if self.how == "reads" else []

    def check(self, earlier):
        if self.how == "check":
            raise KeyError(self.how)
"""
CUT = ("prune", {"ratio": 0.8, "criterion": '"weight_l2"'})
TUNE = ("finetune", {"epochs": 2})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all: the network is trained once, and own stages stand beside the recipes."""
    place = tmp_path_factory.mktemp("own")
    (place / "own_stages.py").write_text(OWN)
    (place / "failing.py").write_text(FAILING)
    return place


def recipe_of(folder: Path, *stages: tuple[str, dict[str, Any]]) -> Path:
    lines = [f'workload = "{digits.__file__}:Digits"']
    for name, settings in (("train", {"epochs": 2}), *stages):
        lines += ["[[stages]]", f'stage = "{name}"', *(f"{key} = {value}" for key, value in settings.items())]
    path = folder / f"recipe-{abs(hash(tuple(lines)))}.toml"
    path.write_text("\n".join(lines))
    return path


def watcher(ended: list[Finished]) -> Watcher:
    return Watcher(lambda name: None, lambda done, total, what: None, ended.append)


def run_stages(folder: Path, *stages: tuple[str, dict[str, Any]]) -> tuple[Work, list[Finished]]:
    """The work after a recipe's stages, from the folder's cache, and how each ended."""
    recipe = read_recipe(recipe_of(folder, *stages))
    ended: list[Finished] = []
    check_order(recipe)
    run, work = prepared(recipe, folder / "run", watcher(ended))
    for named in recipe.stages:
        work = run.step(named, work)
    return work, ended


def hashes(work: Work) -> dict[str, str]:
    return {one.name: one.files["weights"].sha256 for one in work.variants}


@pytest.mark.parametrize(
    "stages",
    [
        [("own_stages.Half", {}), TUNE],
        [("own_stages.Silent", {}), TUNE],
        [("own_stages.Inside", {}), TUNE],
        [CUT, ("own_stages.Tune", {})],
        [("own_stages.Half", {}), ("own_stages.Tune", {})],
    ],
    ids=["own cut", "own cut without a word", "own cut by ours", "own tuning", "both"],
)
def test_the_controls_of_an_own_stage_are_those_of_ours_to_the_last_bit(
    folder: Path, stages: Sequence[tuple[str, dict[str, Any]]]
) -> None:
    ours, _ = run_stages(folder, CUT, TUNE, ("controls", {}))
    theirs, ended = run_stages(folder, *stages, ("controls", {}))
    assert hashes(theirs) == hashes(ours)
    assert {one.name for one in theirs.variants if one.role == "control"} == {"random", "scratch"}
    again, cached = run_stages(folder, *stages, ("controls", {}))
    assert hashes(again) == hashes(ours)
    assert [one.cached for one in cached] == [True] * len(ended)


def test_controls_refuse_an_own_stage_that_declares_nothing_before_anything_is_run(folder: Path) -> None:
    recipe = read_recipe(recipe_of(folder, ("own_stages.Undeclared", {}), TUNE, ("controls", {})))
    with pytest.raises(RecipeError, match=r"own_stages\.Undeclared.*does not declare") as refused:
        check_order(recipe)
    assert "shrinks: ClassVar[bool] = True" in refused.value.cure


def test_an_own_stage_that_declares_nothing_runs_without_controls(folder: Path) -> None:
    work, _ = run_stages(folder, ("own_stages.Undeclared", {}), TUNE)
    assert work.latest().name == "tuned"
    assert [done.stage for done in work.log] == ["train", "prune", "own_stages.Undeclared", "finetune"]


def test_a_stage_that_declares_shrinks_and_returns_as_many_parameters_is_refused(folder: Path) -> None:
    with pytest.raises(ModelError, match="declares that it shrinks the network") as refused:
        run_stages(folder, ("own_stages.AsLarge", {}))
    assert "shrinks = False" in refused.value.cure


@pytest.mark.parametrize(
    ("how", "what"),
    [
        ("raises", "nothing.* at .*failing.py:12"),
        ("returns", "returned NoneType, not a Work"),
        ("exits", "ended the process"),
        ("reads", "reads.. returned .'a.txt'."),
        ("check", "check.. was called: KeyError"),
    ],
)
def test_an_own_stage_that_fails_is_an_error_that_names_it(folder: Path, how: str, what: str) -> None:
    with pytest.raises(WorkloadError, match=what) as failed:
        run_stages(folder, ("failing.Stage", {"how": f'"{how}"'}))
    assert failed.value.cure


def test_a_network_that_changed_after_its_export_is_exported_again_before_anything_reads_it(
    folder: Path,
) -> None:
    recipe = read_recipe(recipe_of(folder, ("export", {}), CUT, TUNE, ("quantize", {})))
    with pytest.raises(RecipeError, match="no stage before it writes any of the newest network"):
        check_order(recipe)
    check_order(read_recipe(recipe_of(folder, ("export", {}), CUT, ("export", {}), ("quantize", {}))))


def test_own_training_without_epochs_needs_the_epochs_of_the_control_from_scratch(folder: Path) -> None:
    with pytest.raises(RecipeError, match=r"own_stages\.Endless.*not known"):
        run_stages(folder, CUT, ("own_stages.Endless", {}), ("controls", {}))
    work, _ = run_stages(folder, CUT, ("own_stages.Endless", {}), ("controls", {"epochs": 3}))
    assert work.variant("scratch").role == "control"


SWEPT: list[tuple[str, str, tuple[Any, ...], list[tuple[str, dict[str, Any]]]]] = [
    ("own_stages.Half", "ratio", (0.3, 0.6), [("own_stages.Half", {})]),
    ("own_stages.Undeclared", "ratio", (0.3, 0.6), [("own_stages.Undeclared", {}), TUNE]),
    ("own_stages.Tune", "epochs", (0, 1), [CUT, ("own_stages.Tune", {})]),
    ("train", "epochs", (1, 2), [CUT]),
    ("statistics", "split", ("calibration", "train"), [("statistics", {}), ("prune", {"ratio": 0.5})]),
    ("prune", "ratio", (0.3, 0.6), [CUT, TUNE]),
    ("iterative", "steps", (1, 2), [("iterative", {"parameters": 0.4, "epochs": 1})]),
    ("finetune", "epochs", (0, 1), [CUT, TUNE]),
    ("distill", "epochs", (0, 1), [CUT, ("distill", {})]),
    ("sparsify", "share", (0.5, 0.8), [("sparsify", {"share": 0.5})]),
    ("lottery", "share", (0.2, 0.5), [("lottery", {"rounds": 1, "epochs": 1})]),
    ("factorize", "energy", (0.8, 0.9), [("factorize", {"energy": 0.9})]),
    ("share", "equal", (True,), [("share", {})]),
    ("cluster", "bits", (3, 4), [("cluster", {"epochs": 0})]),
]


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "setting", "values", "stages"), SWEPT, ids=[one[0] for one in SWEPT])
def test_a_sweep_over_any_stage_works(
    folder: Path, stage: str, setting: str, values: tuple[Any, ...], stages: list[tuple[str, dict[str, Any]]]
) -> None:
    recipe = read_recipe(recipe_of(folder, *stages, ("export", {}), ("quantize", {}), ("profile", {})))
    name = f"{stage}.{setting}"
    settings = SweepSettings(over={name: values}, score_drop=1.0, seconds=0.5)
    swept = run_sweep(recipe, settings, folder / "run", watcher([]))
    assert [row["settings"] for row in swept.sweep["rows"]] == [{name: value} for value in values]
    assert swept.chosen


@pytest.mark.parametrize("name", ["export.opset", "quantize.method", "profile.events", "controls.epochs"])
def test_a_sweep_over_a_stage_that_no_trial_reaches_is_refused_before_any_trial(
    folder: Path, name: str
) -> None:
    path = recipe_of(folder, CUT, ("controls", {}), ("export", {}), ("quantize", {}), ("profile", {}))
    ended: list[Finished] = []
    with pytest.raises(RecipeError, match="cannot be swept"):
        run_sweep(read_recipe(path), SweepSettings(over={name: (1, 2)}), folder / "none", watcher(ended))
    assert ended == []


def test_a_sweep_with_controls_refuses_an_undeclared_stage_before_any_trial(folder: Path) -> None:
    recipe = read_recipe(recipe_of(folder, ("own_stages.Undeclared", {}), TUNE))
    settings = SweepSettings(over={"own_stages.Undeclared.ratio": (0.3, 0.6)}, controls=True)
    ended: list[Finished] = []
    with pytest.raises(RecipeError, match="does not declare"):
        run_sweep(recipe, settings, folder / "none", watcher(ended))
    assert ended == []
