from __future__ import annotations

from pathlib import Path

import pytest

from deadweight.pipeline.recipe import check_order, parse_over, read_recipe
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
    assert [stage.name for stage in recipe.stages] == ["train", "prune"]
    assert recipe.budgets.score_drop == 0.01
    assert recipe.seed == 0


@pytest.mark.parametrize(
    ("setting", "expected"),
    [("prune.mean=0.5", 0.5), ("stages[1].mean=0.5", 0.5), ("prune.mean=1", 1.0)],
)
def test_a_setting_on_the_command_line_wins(tmp_path: Path, setting: str, expected: float) -> None:
    recipe = read_recipe(written(tmp_path, GOOD), [setting])
    assert recipe.stages[1].stage.mean == expected  # type: ignore[attr-defined]


def test_a_budget_and_the_seed_can_be_set(tmp_path: Path) -> None:
    recipe = read_recipe(written(tmp_path, GOOD), ["budgets.speedup=1.5", "seed=7"])
    assert recipe.budgets.speedup == 1.5
    assert recipe.budgets.score_drop == 0.01
    assert recipe.seed == 7


@pytest.mark.parametrize(
    ("old", "new", "says", "cure"),
    [
        ("mean = 0.1", "meen = 0.1", 'stages[1] "prune": there is no setting "meen"', "Did you mean 'mean'?"),
        (
            "mean = 0.1",
            'mean = "0.1"',
            "stages[1] \"prune\": mean is '0.1'; it should be a valid number",
            "Correct",
        ),
        ("epochs = 2", "epochs = 2.5", 'stages[0] "train": epochs is 2.5', "Correct"),
        ("epochs = 2", "epochs = true", 'stages[0] "train": epochs is True', "Correct"),
        ('"prune"', '"prun"', 'There is no stage "prun"', "Did you mean 'prune'?"),
        ("score_drop", "score_dorp", 'budgets: there is no setting "score_dorp"', "'score_drop'"),
        ("workload =", "worklaod =", 'there is no setting "worklaod"', "'workload'"),
        ('stage = "prune"', "", "stages[1] does not say which stage it is", "stage ="),
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
    assert says in caught.value.what
    assert cure in caught.value.cure


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (f'"prune"\n{CUT}', '"quantize"', 'stages[1] "quantize": it reads ONNX files'),
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


def test_a_nul_character_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="workload has a NUL character"):
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
