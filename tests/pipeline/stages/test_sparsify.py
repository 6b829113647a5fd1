from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from support.digits import Digits
from support.workloads import Images

from deadweight.pipeline.compression.masks import is_structured, load_masks
from deadweight.pipeline.stage import Stage
from deadweight.pipeline.stages.distill import Distill
from deadweight.pipeline.stages.evaluate import Evaluate
from deadweight.pipeline.stages.export import Export
from deadweight.pipeline.stages.finetune import Finetune
from deadweight.pipeline.stages.profile import knows_sparse
from deadweight.pipeline.stages.prune import Prune
from deadweight.pipeline.stages.sparsify import Sparsify
from deadweight.pipeline.stages.train import Train
from deadweight.pipeline.training.networks import NetworkFiles
from deadweight.pipeline.work import Work
from deadweight.targets.artifact import read_json
from deadweight.targets.errors import ModelError, RecipeError
from deadweight.targets.target import load_target


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Work:
    place = tmp_path_factory.mktemp("sparsify")
    work = Train(epochs=4)(Work(Digits(), load_target("x86-cpu"), place, networks=NetworkFiles()))
    return Prune(ratio=0.5, criterion="weight_l2", align=False)(
        dataclasses.replace(work, directory=place / "pruned")
    )


def ran(work: Work, place: Path, *stages: Stage) -> Work:
    for number, stage in enumerate(stages):
        work = stage(dataclasses.replace(work, directory=place / str(number)))
    return work


def left(work: Work, name: str) -> int:
    return sum(int((parameter != 0).sum()) for parameter in work.model(work.variant(name)).parameters())


def size(work: Work, name: str) -> int:
    return sum(parameter.numel() for parameter in work.model(work.variant(name)).parameters())


def test_as_many_parameters_are_left_as_a_pruned_network_has(trained: Work, tmp_path: Path) -> None:
    for scope in ("local", "global"):
        work = ran(trained, tmp_path / scope, Sparsify(network="original", like="pruned", scope=scope))
        assert size(work, "sparse") == size(work, "original")
        assert left(work, "sparse") == pytest.approx(size(work, "pruned"), abs=3)


@pytest.mark.parametrize("tune", [Finetune(epochs=2), Distill(epochs=1)])
def test_zeros_stay_zero_while_the_network_is_tuned(trained: Work, tmp_path: Path, tune: Stage) -> None:
    work = ran(trained, tmp_path, Sparsify(share=0.8, network="original"), tune)
    masks, _ = load_masks(work.variant("tuned").path("masks"))
    before, after = (work.model(work.variant(name)).state_dict() for name in ("sparse", "tuned"))
    for name, mask in masks.items():
        assert not after[name][~mask].any()
        assert not torch.equal(before[name], after[name])


def test_tuning_can_be_part_of_the_stage_and_wins_accuracy_back(trained: Work, tmp_path: Path) -> None:
    cut = Sparsify(share=0.9, network="original", scope="global")
    raw = ran(trained, tmp_path / "raw", cut, Evaluate("validation"))
    tuned = ran(trained, tmp_path / "tuned", dataclasses.replace(cut, epochs=3), Evaluate("validation"))
    scores = [
        read_json(work.artifacts["scores_validation"].path)["scores"]["sparse"]["score"]
        for work in (raw, tuned)
    ]
    assert scores[1] > scores[0] + 0.03
    assert left(raw, "sparse") >= left(tuned, "sparse")


def test_two_of_four_is_what_the_exported_file_holds(trained: Work, tmp_path: Path) -> None:
    import onnx
    from onnx import numpy_helper

    stage = Sparsify(pattern="2:4", network="original")
    work = ran(trained, tmp_path, stage, Finetune(epochs=1), Export())
    assert knows_sparse(work)
    assert not knows_sparse(trained)
    graph = onnx.load(work.variant("tuned").path("onnx")).graph
    matrices = [numpy_helper.to_array(one) for one in graph.initializer if len(one.dims) == 2]
    assert len(matrices) == 3
    shapes = {tuple(value.shape) for value in work.model(work.variant("tuned")).state_dict().values()}
    for matrix in matrices:
        weight = torch.tensor(matrix if matrix.shape in shapes else matrix.T)
        assert is_structured(weight != 0)


def test_two_of_four_on_a_width_that_is_no_multiple_of_four_is_refused_until_it_is_left_dense(
    tmp_path: Path,
) -> None:
    work = Train(epochs=0)(Work(Images(), load_target("x86-cpu"), tmp_path, networks=NetworkFiles()))
    with pytest.raises(ModelError, match=r"no multiple of 4: stem \(3 inputs\)") as caught:
        ran(work, tmp_path, Sparsify(pattern="2:4"))
    assert 'dense = ["stem"]' in caught.value.cure
    assert knows_sparse(ran(work, tmp_path, Sparsify(pattern="2:4", dense=("stem",))))


def test_the_facts_count_zeros(trained: Work, tmp_path: Path) -> None:
    work = ran(trained, tmp_path, Sparsify(share=0.9, network="original"))
    facts = read_json(work.artifacts["sparse"].checked())
    assert facts["parameters"] == size(work, "original")
    assert facts["left"] == left(work, "sparse")
    assert sum(facts["zeros"].values()) == facts["parameters"] - facts["left"]
    assert "parameters are left" in work.log[-1].words[0]


@pytest.mark.parametrize("settings", [{}, {"share": 0.5, "like": "pruned"}, {"pattern": "2:4", "share": 0.5}])
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="drops half"):
        Sparsify(**settings)


def test_a_network_that_is_no_smaller_is_no_measure(trained: Work, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r'parameters of "original"'):
        ran(trained, tmp_path, Sparsify(network="original", like="original"))
    with pytest.raises(RecipeError, match='no network "none"'):
        ran(trained, tmp_path, Sparsify(like="none"))


def test_neurons_are_pruned_before_single_weights_not_after(trained: Work, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match='"sparse" were dropped'):
        ran(trained, tmp_path, Sparsify(share=0.5), Prune(ratio=0.5, criterion="weight_l2"))


def test_single_weights_of_a_pruned_network_can_go_too(trained: Work, tmp_path: Path) -> None:
    work = ran(trained, tmp_path, Sparsify(share=0.5), Finetune(epochs=1))
    assert work.plan(work.variant("tuned")) is not None
    assert left(work, "tuned") < 0.6 * size(work, "pruned")
