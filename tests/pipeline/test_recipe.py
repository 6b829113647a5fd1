from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, cast

import pytest

from deadweight.pipeline.recipe import SweepSettings, check_order, parse_over, parse_recipe, read_recipe
from deadweight.pipeline.stage import stage_class, stage_names
from deadweight.targets.budgets import Budgets
from deadweight.targets.errors import DeadweightError, RecipeError, TargetError

GOOD = """
workload = "small.py:Digits"
target = "x86-cpu"
[budgets]
score_drop = 0.01
[[stages]]
stage = "train"
epochs = 2
[[stages]]
stage = "statistics"
[[stages]]
stage = "prune"
mean = 0.1
std = 0.2
"""


CUT = "mean = 0.1\nstd = 0.2"


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    return path


def test_a_recipe_is_read_with_its_stages_and_budgets(tmp_path: Path) -> None:
    recipe = read_recipe(written(tmp_path, GOOD))
    assert [stage.name for stage in recipe.stages] == ["train", "statistics", "prune"]
    assert recipe.budgets.score_drop == 0.01
    assert recipe.seed == 0


@pytest.mark.parametrize(
    ("setting", "expected"),
    [("prune.mean=0.5", 0.5), ("stages[2].mean=0.5", 0.5), ("prune.mean=1", 1.0)],
)
def test_a_setting_on_the_command_line_wins(tmp_path: Path, setting: str, expected: float) -> None:
    recipe = read_recipe(written(tmp_path, GOOD), [setting])
    assert recipe.stages[2].stage.mean == expected  # type: ignore[attr-defined]


def test_a_budget_and_the_seed_can_be_set(tmp_path: Path) -> None:
    recipe = read_recipe(written(tmp_path, GOOD), ["budgets.speedup=1.5", "seed=7"])
    assert recipe.budgets.speedup == 1.5
    assert recipe.budgets.score_drop == 0.01
    assert recipe.seed == 7


@pytest.mark.parametrize(
    ("old", "new", "says", "cure"),
    [
        ("mean = 0.1", "meen = 0.1", 'stages[2] "prune": there is no setting "meen"', "Did you mean 'mean'?"),
        (
            "mean = 0.1",
            'mean = "0.1"',
            "stages[2] \"prune\": mean is '0.1'; it should be a valid number",
            "Correct",
        ),
        ("epochs = 2", "epochs = 2.5", 'stages[0] "train": epochs is 2.5', "Correct"),
        ("epochs = 2", "epochs = true", 'stages[0] "train": epochs is True', "Correct"),
        ('"prune"', '"prun"', 'There is no stage "prun"', "Did you mean 'prune'?"),
        ("score_drop", "score_dorp", 'budgets: there is no setting "score_dorp"', "'score_drop'"),
        ("workload =", "worklaod =", 'there is no setting "worklaod"', "'workload'"),
        ('stage = "prune"', "", "stages[2] does not say which stage it is", "stage ="),
        ('"prune"', '"nowhere.Stage"', 'the stage "nowhere.Stage" was imported', "Check the name"),
        ('workload = "small.py:Digits"', "", "workload is missing", "Correct"),
        ("[budgets]", "[budgets", "is not valid TOML", "Correct that line"),
        (CUT, 'ratio = 0.5\ncriterion = "weigth_l2"', 'no criterion "weigth_l2"', "mean 'weight_l2'?"),
        (CUT, 'ratio = 0.5\ncriterion = "gone.mine"', "No module named 'gone'", "Check the name"),
    ],
)
def test_a_wrong_recipe_is_shown_where_and_how_to_fix_it(
    tmp_path: Path, old: str, new: str, says: str, cure: str
) -> None:
    assert old in GOOD
    with pytest.raises(DeadweightError) as caught:
        read_recipe(written(tmp_path, GOOD.replace(old, new, 1)))
    assert "recipe.toml" in caught.value.what
    assert says in caught.value.what
    assert cure in caught.value.cure


def test_a_budget_for_energy_needs_a_stage_that_measures_it(tmp_path: Path) -> None:
    recipe = read_recipe(written(tmp_path, GOOD.replace("score_drop = 0.01", "energy_j = 0.01", 1)))
    with pytest.raises(RecipeError, match="no stage measures energy") as caught:
        check_order(recipe)
    assert "energy_minutes" in caught.value.cure


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (f'"prune"\n{CUT}', '"quantize"', 'stages[2] "quantize": it reads ONNX files'),
        ("score_drop = 0.01", "ota_bytes = 9", "The budget ota_bytes needs an ONNX file"),
    ],
)
def test_what_reads_onnx_files_comes_after_the_stage_that_writes_them(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    check_order(read_recipe(written(tmp_path, GOOD)))
    recipe = read_recipe(written(tmp_path, GOOD.replace(old, new, 1)))
    with pytest.raises(RecipeError) as caught:
        check_order(recipe)
    assert message in caught.value.what
    assert '"export"' in caught.value.cure


def test_an_unknown_target_names_its_neighbour(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="orin-nano-8gb"):
        read_recipe(written(tmp_path, GOOD.replace("x86-cpu", "orin-nano")))


def test_a_recipe_in_another_encoding_is_shown_so(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(GOOD, "utf-16")
    with pytest.raises(RecipeError, match="not UTF-8 text") as caught:
        read_recipe(path)
    assert caught.value.cure == "Save it as UTF-8."


def test_a_missing_recipe_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"none.toml does not exist"):
        read_recipe(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("x = " + "[" * 5000 + "]" * 5000, "is not valid TOML"),
        ("seed = " + "9" * 5000, "is not valid TOML"),
        ("seed = 18446744073709551616", "seed is 18446744073709551616"),
        ("seed = -1", "seed is -1"),
        ("sweep.processes = 0", "processes is 0"),
        ("sweep.processes = 1000000", "processes is 1000000"),
        ("sweep.seeds = [1, -2]", "seeds.1 is -2"),
    ],
)
def test_a_number_or_nesting_that_nothing_takes_is_refused_before_the_first_stage(
    tmp_path: Path, line: str, says: str
) -> None:
    text = "\n".join(one for one in GOOD.splitlines() if not one.startswith("seed"))
    with pytest.raises(RecipeError, match=says):
        read_recipe(written(tmp_path, f"{line}\n{text}"))


TRAIN = {"stage": "train"}
ENOUGH: dict[str, dict[str, Any]] = {
    "prune": {"ratio": 0.5},
    "iterative": {"parameters": 0.5},
    "load": {"path": "weights.pt"},
    "depth": {"blocks": 1},
    "factorize": {"energy": 0.9},
    "sparsify": {"share": 0.5},
}
HOSTILE: tuple[Any, ...] = (
    *(None, True, "", "x", "a\0b", "../..", "-x", 0, -1, 10**30, float("nan"), float("inf"), -0.5, 1.5),
    *([], [[]], ["a\0b"], [-1], [float("nan")], {}, {"a": "x"}, {"a": float("nan")}, {"a\0b": 0.5}),
)
NEVER = ("nan", "inf", "\0", "x00", str(10**30))


def tables() -> list[tuple[str, str]]:
    """Every setting of every stage and table of a recipe."""
    kinds: dict[str, Any] = {name: stage_class(name) for name in stage_names()}
    kinds |= {"sweep": SweepSettings, "budgets": Budgets}
    return [(name, each.name) for name, kind in kinds.items() for each in dataclasses.fields(cast(Any, kind))]


@pytest.mark.parametrize(("table", "key"), tables())
def test_a_wrong_value_of_any_setting_is_refused_with_its_place_before_the_first_stage(
    table: str, key: str
) -> None:
    for value in HOSTILE:
        if table in ("sweep", "budgets"):
            values: dict[str, Any] = {"stages": [TRAIN], table: {key: value}}
        else:
            values = {"stages": [{"stage": table, **ENOUGH.get(table, {}), key: value}]}
        said = refusal({"workload": "mine.py:Mine", **values})
        assert said == "" or (said.startswith("mine.toml") and (key in said or table in said))
        assert said or not any(never in str(value) for never in NEVER), f"{table}.{key} = {value!r}"


def refusal(values: dict[str, Any]) -> str:
    try:
        parse_recipe(values, Path("mine.toml"))
    except DeadweightError as error:
        return error.what
    return ""


@pytest.mark.parametrize(
    ("stages", "more", "says"),
    [
        (
            [TRAIN, {"stage": "prune", "ratio": 0.5}],
            {},
            'stages[1] "prune": The criterion "activation" needs',
        ),
        ([{"stage": "load", "path": "gone.pt"}], {}, 'stages[0] "load": gone.pt does not exist'),
        ([TRAIN, {"stage": "distill", "checkpoints": ["gone.pt"]}], {}, "gone.pt does not exist"),
        ([TRAIN, {"stage": "distill", "checkpoints": [__file__]}], {}, "is damaged or not a checkpoint"),
        ([{"stage": "load", "path": __file__}, {"stage": "distill", "teachers": 2}], {}, "was not trained"),
        ([TRAIN, {"stage": "lottery", "rewind_step": 5}], {}, "weights of step 5 to rewind to were not"),
        ([TRAIN, {"stage": "controls"}], {}, 'stages[1] "controls": Controls need a pruned network'),
        (
            [{"stage": "load", "path": __file__}, {"stage": "depth", "blocks": 1}, {"stage": "controls"}],
            {},
            "The number of epochs for which the original was trained is not known",
        ),
        ([TRAIN, "export", {"stage": "quantize", "half": True}], {}, "has half = true, but x86-cpu"),
        (
            [TRAIN, {"stage": "iterative", "parameters": 0.5, "latency_s": 0.1}],
            {"target": "orin-nano-8gb"},
            "latency_s = 0.1 is asked for on the",
        ),
        (
            [TRAIN, {"stage": "factorize", "speedup": 1.5}],
            {"target": "orin-nano-8gb"},
            "speedup = 1.5 is asked for on the",
        ),
    ],
)
def test_what_cannot_work_is_refused_before_the_first_stage(
    stages: list[Any], more: dict[str, Any], says: str
) -> None:
    tables = [one if isinstance(one, dict) else {"stage": one} for one in stages]
    with pytest.raises(DeadweightError) as caught:
        check_order(parse_recipe({"workload": "a.py:A", "stages": tables, **more}, Path("mine.toml")))
    assert caught.value.what.startswith("mine.toml, stages[")
    assert says in caught.value.what


def test_a_nul_character_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="'workload' has a NUL character"):
        read_recipe(written(tmp_path, GOOD.replace(".py:", "\\u0000.py:", 1)))


def test_a_recipe_without_stages_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="has no stages"):
        read_recipe(written(tmp_path, 'workload = "a.py:B"'))


def test_a_setting_for_a_stage_that_is_not_there_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="Did you mean 'prune'"):
        read_recipe(written(tmp_path, GOOD), ["purne.mean=1"])


def test_the_values_of_a_sweep_are_read_from_the_command_line() -> None:
    assert parse_over(["prune.mean=0.1,0.2", "prune.criterion=random"]) == {
        "prune.mean": (0.1, 0.2),
        "prune.criterion": ("random",),
    }
    with pytest.raises(RecipeError, match="gives no values"):
        parse_over(["prune.mean"])
