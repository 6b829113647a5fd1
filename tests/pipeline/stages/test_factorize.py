from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from support.digits import Digits
from support.workloads import trained
from torch import nn

from deadweight.pipeline.stage import Stage, make_stage, stage_names
from deadweight.pipeline.stages.controls import Controls
from deadweight.pipeline.stages.export import Export
from deadweight.pipeline.stages.factorize import Factorize
from deadweight.pipeline.stages.finetune import Finetune
from deadweight.pipeline.stages.prune import Prune
from deadweight.pipeline.stages.quantize import Quantize
from deadweight.pipeline.training.networks import NetworkFiles
from deadweight.pipeline.training.predict import score_of, torch_predict
from deadweight.pipeline.work import Work
from deadweight.targets.artifact import sha256_of
from deadweight.targets.errors import ArtifactError, ModelError, RecipeError
from deadweight.targets.target import load_target


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return trained(Digits())


@pytest.fixture
def work(network: nn.Module, tmp_path: Path) -> Work:
    work = Work(Digits(), load_target("x86-cpu"), tmp_path, networks=NetworkFiles())
    return work.with_model("original", network)


def after(work: Work, *stages: Stage) -> Work:
    for at, stage in enumerate(stages):
        folder = work.directory / f"{at}-{type(stage).__name__}"
        work = dataclasses.replace(
            stage(dataclasses.replace(work, directory=folder)), directory=work.directory
        )
    return work


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(one.shape) for name, one in model.named_parameters() if name.endswith("weight")}


def validation(work: Work, name: str) -> float:
    predict = torch_predict(work.model(work.variant(name)), ["pixels"])
    return score_of(work.workload, predict, "validation")


def test_it_is_a_stage_that_a_recipe_can_name() -> None:
    assert {"factorize", "share"} <= set(stage_names())
    ranks = {"0": 4, "conv": [2, 3]}
    assert make_stage("factorize", {"ranks": ranks}, "stages[1]") == Factorize(ranks={"0": 4, "conv": (2, 3)})


def test_by_energy_every_layer_keeps_as_much_and_the_log_tells_its_error(work: Work) -> None:
    made = after(work, Factorize(energy=0.6))
    words = made.log[-1].words
    assert [word.split(":")[0] for word in words] == ["0 (96x64)", "2 (48x96)", "4 (10x48)"]
    errors = [float(word.rpartition(" ")[2]) for word in words]
    assert all(error <= 0.4**0.5 + 0.001 for error in errors)
    parts = shapes(made.model())
    assert parts["0.reduce.weight"][0] == parts["0.expand.weight"][1] < 64


def test_a_thin_network_comes_back_with_its_weights_and_ranks(work: Work) -> None:
    made = after(work, Factorize(energy=0.6), Finetune(epochs=1))
    assert made.latest().name == "tuned"
    again = made.model()
    tuned = {name: tuple(one.shape) for name, one in again.named_parameters()}
    assert "0.reduce.weight" in tuned
    assert validation(made, "tuned") > validation(made, "factorized")
    plan = made.plan(made.latest())
    assert plan is not None
    assert plan.form == "layers"
    assert plan.factors["0"].ranks == (tuned["0.reduce.weight"][0],)


def test_equal_networks_give_equal_bytes(work: Work) -> None:
    made = [
        after(dataclasses.replace(work, directory=work.directory / n), Factorize(energy=0.6)) for n in "ab"
    ]
    one, other = ([sha256_of(file.path) for file in each.latest().files.values()] for each in made)
    assert one == other


def test_a_plan_with_other_ranks_than_the_weights_is_refused(work: Work) -> None:
    made = after(work, Factorize(ranks={"0": 5}))
    path = made.latest().files["plan"].path
    path.write_text(path.read_text().replace("\n    5\n", "\n    6\n"))
    with pytest.raises(ArtifactError, match="is damaged"):
        made.model()


def test_by_score_the_network_is_as_thin_as_the_drop_allows(work: Work) -> None:
    found = {
        drop: after(
            dataclasses.replace(work, directory=work.directory / str(drop)), Factorize(score_drop=drop)
        )
        for drop in (0.0, 0.3)
    }
    for drop, made in found.items():
        assert validation(made, "original") - validation(made, "factorized") <= drop + 1e-9
    sizes = [sum(one.numel() for one in made.model().parameters()) for made in found.values()]
    assert sizes[1] < sizes[0]
    assert "not fine-tuned" in " ".join(found[0.3].log[-1].words)


def test_a_drop_that_no_rank_keeps_to_is_refused(work: Work, network: nn.Module) -> None:
    class Exact(Digits):
        def score(self, predict: Any, batches: Any) -> float:
            """How near the outputs are to those of the whole network: any thin layer is seen at once."""
            batch = next(iter(batches))
            with torch.no_grad():
                right = network(batch["pixels"]).numpy()
            return -float(abs(predict({"pixels": batch["pixels"].numpy()})["output"] - right).max())

    with pytest.raises(ModelError, match=r"the smallest step loses more than 0\.0 of the validation"):
        after(dataclasses.replace(work, workload=Exact()), Factorize(score_drop=0.0))


def test_given_ranks_are_taken_and_other_layers_stay_whole(work: Work) -> None:
    parts = shapes(after(work, Factorize(ranks={"2": 7})).model())
    assert (parts["2.reduce.weight"], parts["2.expand.weight"]) == ((7, 96), (48, 7))
    assert (parts["0.weight"], parts["4.weight"]) == ((96, 64), (10, 48))


def test_where_thin_layers_would_cost_more_the_layer_stays_whole_and_the_log_says_so(work: Work) -> None:
    made = after(work, Factorize(ranks={"0": 60, "2": 7}))
    assert shapes(made.model())["0.weight"] == (96, 64)
    assert made.log[-1].words[-1] == (
        "0 was not factorized: at rank 60 its factors take 9,600 multiply-adds, "
        "and the full layer takes 6,144"
    )
    with pytest.raises(ModelError, match=r"No layer was factorized: 0: at rank 60"):
        after(work, Factorize(ranks={"0": 60}))


def test_bad_ranks_and_names_are_refused_with_what_there_is(work: Work) -> None:
    with pytest.raises(
        RecipeError, match='layer "0" is set to rank 65, but with the method svd its full rank is 64'
    ):
        after(work, Factorize(ranks={"0": 65}))
    with pytest.raises(RecipeError, match="rank 3 and 4"):
        after(work, Factorize(ranks={"0": (3, 4)}))
    with pytest.raises(RecipeError, match="rank 0"):
        after(work, Factorize(ranks={"0": 0}))
    with pytest.raises(ModelError, match='no linear layer or convolution "22"') as caught:
        after(work, Factorize(ranks={"22": 3}))
    assert "'2'" in caught.value.cure
    assert not (work.directory / "factorized").exists()


def test_one_way_to_choose_is_asked_for_and_no_two() -> None:
    with pytest.raises(RecipeError, match="has nothing to choose ranks by"):
        Factorize()
    with pytest.raises(RecipeError, match="energy and ranks"):
        Factorize(energy=0.5, ranks={"0": 4})


def test_a_speed_is_not_measured_for_a_board_that_is_not_there() -> None:
    with pytest.raises(RecipeError, match=r"speedup = 2.*Orin Nano"):
        Factorize(speedup=2.0).check_target(load_target("orin-nano-8gb"))


def test_it_is_pruned_before_and_after_and_tuned_and_exported(work: Work) -> None:
    made = after(
        work,
        Prune(ratio=0.25, criterion="weight_l2"),
        Factorize(energy=0.7),
        Prune(ratio=0.25, criterion="weight_l2"),
        Finetune(epochs=1),
    )
    plan = made.plan(made.latest())
    assert plan is not None
    assert [step.form for step in (*plan.earlier, plan)] == ["module", "layers", "module"]
    made = after(dataclasses.replace(made, variants=(made.latest(),)), Export())
    assert made.log[-1].words[0].endswith("0 of 200 labels flip")


@pytest.mark.slow
def test_it_is_quantized_to_int8(work: Work) -> None:
    made = after(work, Factorize(energy=0.8), Finetune(epochs=2), Export(), Quantize())
    assert "int8" in [variant.name for variant in made.variants]


def test_the_control_from_scratch_has_the_same_thin_layers_and_no_random_one_is_made(work: Work) -> None:
    made = after(work, Factorize(energy=0.6), Controls(epochs=1))
    assert [variant.name for variant in made.variants if variant.role == "control"] == ["scratch"]
    assert "no random control" in made.log[-1].words[0]
    assert shapes(made.model(made.variant("scratch"))) == shapes(made.model(made.variant("factorized")))


def test_the_random_control_of_a_pruned_network_is_made_thin_too(work: Work) -> None:
    made = after(
        work,
        Prune(ratio=0.25, criterion="weight_l2"),
        Factorize(energy=0.6),
        Controls(scratch=False, epochs=1),
    )
    assert "0.reduce.weight" in shapes(made.model(made.variant("random")))


class Wide(Digits):
    """A middle layer of 1000 x 1000: large enough for its time to be seen, and of low rank."""

    def build_model(self) -> nn.Module:
        model = nn.Sequential(
            nn.Linear(64, 1000), nn.ReLU(), nn.Linear(1000, 1000), nn.ReLU(), nn.Linear(1000, 10)
        )
        with torch.no_grad():
            weight = model.get_parameter("2.weight")
            weight.copy_(weight[:, :20] @ weight[:20])
        return model


@pytest.mark.slow
def test_by_measured_time_large_layers_are_made_thin_and_small_ones_are_not(tmp_path: Path) -> None:
    torch.manual_seed(0)
    work = Work(Wide(), load_target("x86-cpu"), tmp_path, networks=NetworkFiles())
    made = after(work.with_model("original", Wide().build_model()), Factorize(speedup=2.0, events=12))
    words = made.log[-1].words
    assert "2.reduce.weight" in shapes(made.model())
    assert any("by measured time: " in word and "x faster" in word for word in words)
    assert any(
        word.startswith("4 was not factorized: its low-rank layers are not measured faster") for word in words
    )


@pytest.mark.slow
def test_a_speed_that_no_rank_reaches_is_refused_with_what_was_reached(tmp_path: Path) -> None:
    work = Work(Wide(), load_target("x86-cpu"), tmp_path, networks=NetworkFiles()).with_model(
        "original", Wide().build_model()
    )
    with pytest.raises(
        ModelError, match=r"was to be 500.0x as fast; at the lowest ranks tried it is .*x faster"
    ):
        after(work, Factorize(speedup=500.0, events=12))
