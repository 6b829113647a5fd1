"""What a first user met on the way, each a kind of its own."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.digits import Digits
from support.runs import DIGITS, exit_code, project_of, recipe
from support.workloads import Images
from torch import nn

import deadweight
from deadweight.pipeline.recipe import check_order, read_recipe
from deadweight.pipeline.report.schema import Control, Row
from deadweight.pipeline.report.units import ScoreScale
from deadweight.pipeline.report.words import control_sentences
from deadweight.pipeline.runs.cache import Watcher, default_directory, prepared
from deadweight.pipeline.stages.load import Load
from deadweight.pipeline.stages.prune import Prune
from deadweight.pipeline.training.checkpoint import write_tensors
from deadweight.pipeline.training.networks import NetworkFiles
from deadweight.pipeline.training.predict import PARTS, left_out, torch_predict
from deadweight.pipeline.work import Work
from deadweight.pipeline.workload import Workload, example_batch
from deadweight.targets.errors import RecipeError
from deadweight.targets.target import load_target
from deadweight.terminal.tables import Lines


def work_of(place: Path, folder: Path = Path(), workload: Workload | None = None) -> Work:
    torch.manual_seed(0)
    target = load_target("x86-cpu")
    work = Work(workload or Digits(), target, place, folder=folder, networks=NetworkFiles())
    return work.with_model("original", work.workload.build_model())


def test_recipes_of_one_name_have_directories_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("p1", "p2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "recipe.toml").write_text(recipe(("train", {"epochs": 0})))
    first, second = (Path(name) / "recipe.toml" for name in ("p1", "p2"))
    assert default_directory(first) == default_directory(second) == Path("runs/recipe")
    Path("runs/recipe").mkdir(parents=True)
    prepared(read_recipe(first), Path("runs/recipe"), Watcher())
    assert default_directory(first) == Path("runs/recipe")
    assert default_directory(second) == Path("runs/p2-recipe")
    first.unlink()  # a recipe that is gone holds nothing
    assert default_directory(second) == Path("runs/recipe")


def test_a_checkpoint_is_beside_the_recipe_and_one_of_the_working_directory_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    (there / "own").mkdir(parents=True)
    monkeypatch.chdir(here)
    stages = (("load", {"path": "w.safetensors"}),)
    (there / "recipe.toml").write_text(recipe(*stages))
    work = work_of(tmp_path / "run", folder=there)
    with pytest.raises(RecipeError, match=r"w\.safetensors does not exist"):
        check_order(read_recipe(there / "recipe.toml"))
    write_tensors(here / "w.safetensors", work.model().state_dict())
    check_order(read_recipe(there / "recipe.toml"))
    assert "version 0.4" in " ".join(Load("w.safetensors")(work).log[-1].words)
    write_tensors(there / "w.safetensors", work.model().state_dict())
    assert "version 0.4" not in " ".join(Load("w.safetensors")(work).log[-1].words)


def test_groups_that_the_alignment_keeps_whole_are_named(tmp_path: Path) -> None:
    work = work_of(tmp_path, workload=Images())
    kept = Prune(ratio=0.2, criterion="weight_l2")(work).log[-1].words
    groups = [*work.networks.groups(work.model(), work.workload)]
    assert f"alignment keeps {len(groups)} of {len(groups)} groups whole" in kept[-1]
    assert groups[0].name in kept[-1]
    free = Prune(ratio=0.2, criterion="weight_l2", align=False)(work).log[-1].words
    assert "alignment" not in " ".join(free)


def test_a_run_stops_where_a_budget_is_out_of_reach_and_goes_on_if_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stages = (
        ("train", {"epochs": 0}),
        ("prune", {"ratio": 0.5, "criterion": "weight_l2"}),
        ("finetune", {"epochs": 0}),
    )
    head = "[budgets]\nparameters_removed = 0.9\n"
    text = recipe(*stages, workload=DIGITS, head=head)
    project = project_of(tmp_path, text)
    arguments = ("run", project / "recipe.toml", "--out", project / "run")
    assert exit_code(*arguments) == 2
    said = capsys.readouterr().err
    assert "parameters_removed = 0.9 is out of reach" in said
    assert "--even-so" in said
    assert not [*(project / "run" / "stages").glob("finetune-*")]
    assert exit_code(*arguments, "--even-so") == 1
    assert [*(project / "run" / "stages").glob("finetune-*")]


def test_a_plan_shows_the_widths_of_every_cut() -> None:
    net: nn.Module = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2)).eval()
    for _ in range(2):
        groups = deadweight.trace(net, (torch.ones(2, 4),))
        scores = deadweight.criteria.weight_l2(net, groups)
        net = deadweight.apply(net, deadweight.choose(groups, scores, ratio=0.5), groups)
    assert "0 (linear): 32 -> 16 -> 8" in str(deadweight.plan_of(net))


def test_the_criteria_in_public_are_those_of_the_stage() -> None:
    workload = Digits()
    model = workload.build_model().eval()
    groups = deadweight.trace(model, example_batch(workload))
    batches = [*workload.batches("calibration")]
    for name in ("taylor", "activation", "weight_l1", "lamp", "random"):
        scores = getattr(deadweight.criteria, name)(model, groups, batches, loss=workload.loss)
        assert {group.name: (group.size,) for group in groups} == {
            group: tuple(one.shape) for group, one in scores.items()
        }
    with pytest.raises(RecipeError, match="no gradients") as raised:
        deadweight.criteria.taylor(model, groups)
    assert "loss" in raised.value.cure


def test_a_log_has_a_line_from_time_to_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines, ended, said = Lines(), threading.Event(), threading.Event()
    monkeypatch.setattr(Lines, "EVERY_S", 0.0)

    def say(*parts: object) -> None:
        print(*parts)
        said.set()

    monkeypatch.setattr("deadweight.terminal.tables.err.say", say)
    lines(3, 10, "train")
    teller = threading.Thread(target=lines.tell, args=(ended,))
    teller.start()
    assert said.wait(10)
    ended.set()
    teller.join()
    assert "train: 30%" in capsys.readouterr().out


def test_the_sampling_error_of_any_score_is_that_of_its_parts() -> None:
    workload = Digits()
    torch.manual_seed(0)
    model = workload.build_model()
    scores = left_out(workload, torch_predict(model, example_batch(workload)), "test")
    assert len(scores) == PARTS
    count = sum(len(batch["label"]) for batch in workload.batches("test"))
    whole = workload.score(torch_predict(model, example_batch(workload)), workload.batches("test"))
    spread = np.var(scores) * (PARTS - 1)
    assert np.mean(scores) == pytest.approx(whole, abs=1e-3)
    assert spread**0.5 == pytest.approx((whole * (1 - whole) / count) ** 0.5, rel=0.5)


@pytest.mark.parametrize(("apart", "said"), [(0.001, "did as well"), (0.2, "did worse")])
def test_a_control_is_judged_by_the_parts_of_the_samples(apart: float, said: str) -> None:
    empty = dict.fromkeys(("parameters", "macs", "file_bytes", "latency_s", "memory_bytes", "speedup"))
    random = np.random.default_rng(0)
    noise = random.normal(0, 0.002, PARTS)
    tuned: Any = {"name": "tuned", "score": 0.6, "left_out": (0.6 + noise).tolist(), **empty}
    parts = 0.6 - apart + noise + random.normal(0, 0.001, PARTS)
    control: Any = {"name": "random", "score": 0.6 - apart, "left_out": parts.tolist(), **empty}
    rows: list[Row] = [tuned]
    controls: list[Control] = [control]
    scale = ScoreScale.of("mIoU", higher_is_better=True, scores=[0.6, 0.6 - apart])
    (sentence,) = control_sentences(rows, controls, scale, n=80)
    assert said in sentence
    for row in (tuned, control):
        del row["left_out"]
    assert "not judged" in control_sentences(rows, controls, scale, n=80)[0]
