from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

import deadweight
from deadweight.pipeline.recipe import parse_recipe
from deadweight.pipeline.runs.cache import Watcher, prepared
from deadweight.pipeline.stage import NamedStage
from deadweight.pipeline.workloads.assembled import Assembled
from deadweight.pipeline.workloads.named import load_workload, workload_code
from deadweight.targets.errors import RecipeError, WorkloadError

NET = """
from torch import nn
import torch

def build(width: int = 8):
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 3))

def loaders():
    generator = torch.Generator().manual_seed(0)
    label = torch.arange(60) % 3
    data = torch.utils.data.TensorDataset(torch.randn(60, 4, generator=generator) + label[:, None], label)
    return {
        "train": torch.utils.data.DataLoader(data, batch_size=8, shuffle=True),
        "val": torch.utils.data.DataLoader(data, batch_size=8),
    }
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "net.py").write_text(NET)
    label = np.arange(60) % 3
    np.savez(tmp_path / "data.npz", input=np.random.default_rng(0).normal(size=(60, 4)), label=label)
    return tmp_path


def made(spec: str, folder: Path) -> Assembled:
    found = load_workload(spec, folder)
    assert isinstance(found, Assembled)
    return found


def test_a_function_that_builds_a_network_is_a_workload_with_data_and_a_task(folder: Path) -> None:
    work = made("net.py:build?width=12&data=data.npz&task=classification&batch=16", folder)
    assert work.build_model().get_parameter("0.weight").shape == (12, 4)
    assert [*work.example_inputs()] == ["input"]
    assert work.example_inputs()["input"].dtype == torch.float32
    sizes = {
        split: sum(len(one["label"]) for one in work.batches(split))
        for split in ("train", "validation", "test")
    }
    assert sizes == {"train": 42, "validation": 9, "test": 9}
    assert work.score_name == "accuracy"
    assert {file.name for file in workload_code("net.py:build?data=x", folder, work)} == {"net.py"}


def test_the_shuffling_of_a_loader_depends_on_the_seed_alone(folder: Path) -> None:
    work = made("net.py:build?data=net.py:loaders&task=classification", folder)

    def order(seed: int) -> str:
        digest = hashlib.sha256()
        for batch in work.batches("train", seed=seed):
            digest.update(batch["label"].numpy().tobytes() + batch["input"].numpy().tobytes())
        return digest.hexdigest()

    assert order(1) == order(1)
    assert order(1) != order(2)
    halves = [torch.cat([one["input"] for one in work.batches(split)]) for split in ("validation", "test")]
    assert [len(one) for one in halves] == [30, 30]
    rows = [{row.numpy().tobytes() for row in half} for half in halves]
    assert not rows[0] & rows[1]


def test_another_process_makes_the_same_workload_by_its_spec(folder: Path) -> None:
    first = made("net.py:build?data=data.npz&task=classification", folder)
    again = made(first.spec, Path("/"))
    assert again.fingerprint() == first.fingerprint()
    assert again.spec == first.spec


def test_data_that_change_have_another_fingerprint(folder: Path) -> None:
    spec = "net.py:build?data=data.npz&task=classification"
    before = made(spec, folder).fingerprint()
    np.savez(folder / "data.npz", input=np.ones((60, 4)), label=np.arange(60) % 3)
    assert made(spec, folder).fingerprint() != before


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("net.py:build", "no loss and no score"),
        ("net.py:build?task=classification", "no data"),
        ("net.py:build?task=clasification&data=data.npz", "no task"),
        ("net.py:build?task=classification&data=gone", "do not exist"),
        ("net.py:build?task=classification&data=data.npz&batsh=3", 'no setting "batsh"'),
        ("net.py:build?task=classification&data=data.npz&batch=many", "batch is 'many'"),
        ("net.py:build?task=detection&data=data.npz", "no loss"),
        ("net.py:biuld?task=classification&data=data.npz", "no 'biuld'"),
        ("timn:resnet18", "There is no module timn"),
    ],
)
def test_what_is_wrong_in_a_name_is_said(folder: Path, spec: str, words: str) -> None:
    with pytest.raises((WorkloadError, RecipeError), match=words):
        load_workload(spec, folder)


def test_a_recipe_of_a_plain_network_prunes_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = [
        {"stage": "train", "epochs": 1},
        {"stage": "prune", "ratio": 0.5, "criterion": "taylor", "align": False},
    ]
    values = {"workload": "net.py:build", "data": "data.npz", "task": "classification", "stages": stages}
    recipe = parse_recipe(values, folder / "recipe.toml")
    (folder / "run").mkdir()
    run, work = prepared(recipe, folder / "run", Watcher())
    for named in recipe.stages:
        work = run.step(named, work)
    assert work.model().get_parameter("0.weight").shape == (4, 4)
    again, fresh = prepared(recipe, folder / "run", Watcher())
    again.step(NamedStage("train", recipe.stages[0].stage), fresh)
    assert again.finished[0].cached


def test_a_notebook_makes_a_workload_of_a_module_and_lists_of_batches() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(4, 3))
    batches = [(torch.randn(8, 4), torch.randint(3, (8,))) for _ in range(4)]
    work = deadweight.workload(net, train=batches, validation=batches, task="classification")
    built = work.build_model()
    assert built is not net
    assert torch.equal(built.get_parameter("0.weight"), net.get_parameter("0.weight"))
    again = deadweight.workload(
        net,
        train=batches,
        validation=batches,
        loss=lambda outputs, batch: outputs.square().mean(),
        score=lambda predict, some: float(
            sum(predict({"input": b["input"].numpy()})["output"].sum() for b in some)
        ),
        score_name="sum",
        higher_is_better=False,
    )
    assert (again.score_name, again.higher_is_better) == ("sum", False)


def test_batches_that_can_be_read_only_once_are_refused() -> None:
    net = torch.nn.Linear(4, 3)
    once = ((torch.randn(8, 4), torch.randint(3, (8,))) for _ in range(4))
    with pytest.raises(WorkloadError, match="cannot be read again"):
        deadweight.workload(net, train=once, validation=once, task="classification")
