from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from support.digits import Digits
from torch import nn

from deadweight.pipeline.pruning.groups import choose
from deadweight.pipeline.pruning.plan import plan_of
from deadweight.pipeline.pruning.surgery import apply
from deadweight.pipeline.pruning.trace import trace
from deadweight.pipeline.runs.sources import source_files
from deadweight.pipeline.training.checkpoint import write_tensors
from deadweight.pipeline.training.networks import NetworkFiles
from deadweight.pipeline.work import Variant, Work
from deadweight.targets.artifact import Artifact, sha256_of
from deadweight.targets.errors import ArtifactError, ModelError, RecipeError
from deadweight.targets.target import load_target


@pytest.fixture
def work(tmp_path: Path) -> Work:
    return Work(Digits(), load_target("x86-cpu"), tmp_path, networks=NetworkFiles())


def pruned(work: Work, form: str = "") -> Work:
    model = work.model(work.variant("original"))
    groups = trace(model, Digits().example_inputs())
    plan = choose(groups, {group.name: torch.rand(group.size) for group in groups}, ratio=0.5)
    small = apply(model, plan, groups, form=form)
    return work.with_model("pruned", small, plan=plan_of(small))


def test_a_network_comes_back_with_its_weights(work: Work) -> None:
    model = Digits().build_model()
    found = work.with_model("original", model).model()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), found.parameters(), strict=True))
    assert not found.training


def test_a_pruned_network_comes_back_with_its_widths_and_plan(work: Work) -> None:
    result = pruned(work.with_model("original", Digits().build_model()))
    found = result.model()
    assert isinstance(found, nn.Sequential)
    assert found[0].out_features == 48
    plan = result.plan(result.latest())
    assert plan is not None
    assert [width.after for width in plan.widths.values()] == [48, 24]


def test_the_newest_network_of_the_chain_is_the_latest_and_controls_are_not(work: Work) -> None:
    model = Digits().build_model()
    result = work.with_model("original", model).with_model("random", model, role="control")
    assert result.latest().name == "original"
    again = result.with_model("tuned", model).with_model("original", model)
    assert again.latest().name == "original"
    assert [variant.name for variant in again.variants] == ["random", "tuned", "original"]


def test_a_stage_out_of_order_is_shown_what_comes_before_it(work: Work) -> None:
    with pytest.raises(RecipeError, match='"train" or "load"'):
        work.latest()
    with pytest.raises(RecipeError, match='"export"'):
        work.with_model("original", Digits().build_model()).latest("onnx")
    with pytest.raises(RecipeError, match="there are: none"):
        work.variant("tuned")


def test_weights_of_another_network_are_refused(work: Work) -> None:
    result = work.with_model("original", nn.Linear(2, 2))
    with pytest.raises(ModelError, match="does not fit the network"):
        result.model()


def test_a_changed_byte_is_refused(work: Work) -> None:
    result = work.with_model("original", Digits().build_model())
    path = result.latest().files["weights"].path
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match="is damaged"):
        result.model()


def test_the_digest_changes_with_what_is_inside_and_not_with_where_it_lies(
    work: Work, tmp_path: Path
) -> None:
    result = work.with_model("original", Digits().build_model())
    moved = tmp_path / "moved.safetensors"
    moved.write_bytes(result.latest().path("weights").read_bytes())
    elsewhere = dataclasses.replace(result, variants=(Variant("original", {"weights": Artifact.of(moved)}),))
    assert elsewhere.digest() == result.digest()
    assert result.with_model("original", Digits().build_model()).digest() != result.digest()
    assert dataclasses.replace(result, variants=()).digest() != result.digest()


def test_equal_tensors_are_equal_bytes_and_tied_ones_are_no_trouble(tmp_path: Path) -> None:
    shared = torch.arange(6.0)
    write_tensors(tmp_path / "a", {"x": shared, "y": shared.view(2, 3)})
    write_tensors(tmp_path / "b", {"y": shared.clone().view(2, 3), "x": shared.clone()})
    assert sha256_of(tmp_path / "a") == sha256_of(tmp_path / "b")


@pytest.mark.parametrize(("form", "rules"), [("module", False), ("graph", True)])
def test_the_code_that_rebuilds_a_pruned_network_is_named_and_that_of_a_plain_one_is_not(
    work: Work, form: str, rules: bool
) -> None:
    plain = work.with_model("original", Digits().build_model())
    assert plain.networks.code(plain.variants) == []
    small = pruned(plain, form).latest()
    names = {path.name for path in source_files(*plain.networks.code([small]))}
    assert "narrow.py" in names
    assert ("rules.py" in names) == rules
