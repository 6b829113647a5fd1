"""The stage "prune" alone: what is written is what the stage makes, and nothing else is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from support import digits

from deadweight.export.onnx_graph import external_data
from deadweight.pipeline.pruning.saved import load_pruned
from deadweight.pipeline.runs.cache import Finished, Watcher, prepared
from deadweight.pipeline.runs.prune_command import as_built, prune_alone, pruning, up_to_pruning
from deadweight.pipeline.stages.prune import Prune
from deadweight.pipeline.stages.statistics import Statistics
from deadweight.pipeline.training.networks import NetworkFiles
from deadweight.pipeline.work import Work
from deadweight.targets.artifact import sha256_of
from deadweight.targets.errors import ArtifactError, RecipeError
from deadweight.targets.runtimes.open import open_session
from deadweight.targets.target import load_target

RECIPE = """
workload = "small.py:Digits"
[sweep]
over = { "prune.mean" = [0.1] }
[[stages]]
stage = "train"
epochs = 1
[[stages]]
stage = "statistics"
[[stages]]
stage = "prune"
mean = 0.1
std = 0.2
means = true
[[stages]]
stage = "finetune"
"""


def built(directory: Path) -> Work:
    work = Work(digits.Digits(), load_target("x86-cpu"), directory, seed=3, networks=NetworkFiles())
    return Statistics()(as_built(work))


def written(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    shutil.copy(digits.__file__, tmp_path / "small.py")
    (tmp_path / "recipe.toml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    return "recipe.toml"


def test_the_network_is_the_one_that_the_stage_makes_and_it_loads(tmp_path: Path) -> None:
    work, stage = built(tmp_path / "work"), Prune(ratio=0.5)
    cut = prune_alone(work, stage, tmp_path / "out")
    saved = [f"pruned/{name}" for name in ("example.safetensors", "model.safetensors", "plan.json")]
    assert written(tmp_path / "out") == ["original.onnx", "prune.json", "pruned.onnx", *saved]
    wanted = stage(work).latest().path("weights")
    assert sha256_of(tmp_path / "out/pruned/model.safetensors") == sha256_of(wanted)
    assert cut.before is not None
    assert cut.after is not None
    assert cut.after.counts.parameters < 0.5 * cut.before.counts.parameters
    content = json.loads((tmp_path / "out/prune.json").read_text())
    assert content["tuned"] is False
    assert content["after"]["score"] == cut.after.score
    model = load_pruned(digits.Digits().build_model, tmp_path / "out/pruned")
    answer = open_session(tmp_path / "out/pruned.onnx").run({"pixels": digits.X[:5].numpy()})["output"]
    np.testing.assert_allclose(model(digits.X[:5]).detach().numpy(), answer, atol=1e-5)


def test_a_network_is_built_by_the_seed_alone(tmp_path: Path) -> None:
    torch.manual_seed(1)
    first = built(tmp_path / "a").latest().path("weights")
    torch.manual_seed(2)
    assert sha256_of(built(tmp_path / "b").latest().path("weights")) == sha256_of(first)


def test_where_nothing_goes_nothing_is_written(tmp_path: Path) -> None:
    cut = prune_alone(built(tmp_path / "work"), Prune(ratio=0.001), tmp_path / "out")
    assert (cut.before, cut.after) == (None, None)
    assert not (tmp_path / "out").exists()


def test_large_weights_go_beside_the_networks_and_old_ones_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(external_data, "INLINE_BYTES", 5_000)  # as if one message held 5 KB
    out = tmp_path / "out"
    out.mkdir()
    for name in ("model.onnx.0123456789abcdef.weights", "yolov3.weights"):
        (out / name).write_text("of another time, or another tool's")
    prune_alone(built(tmp_path / "work"), Prune(ratio=0.5), out)
    assert len(list(out.glob("model.onnx.*.weights"))) == 2
    assert not (out / "model.onnx.0123456789abcdef.weights").exists()
    assert (out / "yolov3.weights").exists()
    open_session(out / "pruned.onnx").run({"pixels": digits.X[:2].numpy()})


def test_a_place_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ArtifactError, match="cannot be written"):
        prune_alone(built(tmp_path / "work"), Prune(ratio=0.5), tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


def test_a_recipes_stages_come_before_from_where_its_run_left_them(recipe: str, tmp_path: Path) -> None:
    for cached in (False, True):
        ended: list[Finished] = []
        watcher = Watcher(lambda name: None, lambda done, total, what: None, ended.append)
        chosen = pruning(recipe, {}, [], weights=None)
        work, stage = up_to_pruning(chosen, *prepared(chosen, tmp_path / "run", watcher))
        assert [(one.name, one.cached) for one in ended] == [("train", cached), ("statistics", cached)]
    assert stage == Prune(mean=0.1, std=0.2, means=True)
    assert [variant.name for variant in work.variants] == ["original"]


def test_a_budget_takes_the_place_of_the_recipes_own_and_the_rest_stays(recipe: str) -> None:
    chosen = pruning(recipe, {"ratio": 0.3}, ["prune.align=false", "seed=5"], weights=Path("w.safetensors"))
    assert chosen.stages[-1].stage == Prune(ratio=0.3, means=True, align=False)
    assert [named.name for named in chosen.stages] == ["load", "statistics", "prune"]
    assert chosen.seed == 5
    assert chosen.sweep is None
    kept = pruning(recipe, {"criterion": "weight_l2"}, [], weights=None).stages[-1].stage
    assert kept == Prune(mean=0.1, std=0.2, means=True, criterion="weight_l2")


def test_a_criterion_that_does_not_exist_is_reported_before_anything_runs(recipe: str) -> None:
    with pytest.raises(RecipeError, match='There is no criterion "magic"'):
        pruning(recipe, {"criterion": "magic"}, [], weights=None)


@pytest.mark.parametrize(
    ("what", "wanted", "message"),
    [
        ("small.py:Digits", {"criterion": "random"}, "No option says how much to remove"),
        ("nowhere.py:Digits", {"ratio": 0.5}, "nowhere.py does not exist"),
        ("none.toml", {"ratio": 0.5}, "has no stage prune; it has export"),
        ("small.py:Digits", {"ratio": 0.5, "parameters": 0.5}, "Give one of three"),
    ],
)
def test_what_cannot_be_followed_is_reported(
    recipe: str, what: str, wanted: dict[str, object], message: str
) -> None:
    Path("none.toml").write_text('workload = "small.py:Digits"\n[[stages]]\nstage = "export"\n')
    with pytest.raises(RecipeError, match=message):
        pruning(what, wanted, [], weights=None)
