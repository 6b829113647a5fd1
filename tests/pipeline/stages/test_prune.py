from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support import sequence_nets
from support.digits import Digits, X
from torch import Tensor, nn

from deadweight.pipeline.stage import make_stage
from deadweight.pipeline.stages.prune import Prune, alignment, find_criterion
from deadweight.pipeline.stages.statistics import Statistics
from deadweight.pipeline.training.networks import NetworkFiles
from deadweight.pipeline.work import Work
from deadweight.targets.errors import ModelError, RecipeError
from deadweight.targets.target import load_target


class WithSilent(Digits):
    """A network in which ten neurons of the first layer never fire."""

    def build_model(self) -> nn.Module:
        model = super().build_model()
        assert isinstance(model, nn.Sequential)
        first = model[0]
        assert isinstance(first, nn.Linear)
        with torch.no_grad():
            first.weight[:10] = 0.0
            first.bias[:10] = -1.0
        return model


@pytest.fixture
def work(tmp_path: Path) -> Work:
    torch.manual_seed(0)
    start = Work(WithSilent(), load_target("x86-cpu"), tmp_path, networks=NetworkFiles())
    return Statistics()(start.with_model("original", WithSilent().build_model()))


def test_neurons_that_never_fire_go_and_the_outputs_stay(work: Work) -> None:
    result = Prune(mean=0.0, std=0.0)(work)
    plan = result.plan(result.latest())
    assert plan is not None
    assert set(range(10)) <= set(plan.removed["0"])
    x = Digits().example_inputs()["pixels"]
    before, after = work.model()(x), result.model()(x)
    assert torch.allclose(before, after, rtol=1e-5, atol=1e-6)


def test_a_ratio_takes_that_share_of_every_group(work: Work) -> None:
    plan = (result := Prune(ratio=0.25)(work)).plan(result.latest())
    assert plan is not None
    assert [(width.before, width.after) for width in plan.widths.values()] == [(96, 72), (48, 36)]
    assert result.log[-1].words[0].startswith("0 96 -> 72, 2 48 -> 36")
    assert "gradients to" in result.log[-1].words[1]
    assert "training mode too; batch open" in result.log[-1].words[1]


class WithHeads(Digits):
    """Attention over the rows of the image."""

    def build_model(self) -> nn.Module:
        return Rows()


class Rows(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Linear(8, 16), nn.Linear(16, 10)
        self.attention = sequence_nets.Attention(16, 4)

    def forward(self, pixels: Tensor) -> Tensor:
        out: Tensor = self.out(self.attention(self.embed(pixels.reshape(-1, 8, 8))).mean(1))
        return out


@pytest.mark.parametrize(("heads", "left"), [(False, 4), (True, 2)])
def test_whole_heads_go_only_on_demand(heads: bool, left: int, tmp_path: Path) -> None:
    start = Work(WithHeads(), load_target("x86-cpu"), tmp_path, networks=NetworkFiles()).with_model(
        "original", Rows()
    )
    result = Prune(ratio=0.5, criterion="weight_l2", heads=heads, align=False)(start)
    plan = result.plan(result.latest())
    assert plan is not None
    (width,) = [one for name, one in plan.widths.items() if one.kind == "heads"]
    assert (width.before, width.after) == (4, left)


def size(work: Work) -> int:
    return sum(parameter.numel() for parameter in work.model().parameters())


@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize("criterion", ["activation", "taylor", "lamp"])
def test_a_share_of_the_parameters_goes(work: Work, scope: str, criterion: str) -> None:
    stage = make_stage("prune", {"parameters": 0.6, "scope": scope, "criterion": criterion}, "stages[0]")
    assert 0.6 <= 1 - size(stage(work)) / size(work) < 0.64


def test_single_groups_have_shares_of_their_own(work: Work) -> None:
    plan = (result := Prune(ratio=0.25, ratios={"2": 0.5})(work)).plan(result.latest())
    assert plan is not None
    assert [(width.before, width.after) for width in plan.widths.values()] == [(96, 72), (48, 24)]
    plan = (result := Prune(ratios={"2": 0.5})(work)).plan(result.latest())
    assert plan is not None
    assert [width.after for width in plan.widths.values()] == [96, 24]


def test_a_ratio_over_all_groups_takes_the_lowest_of_one_ranking(work: Work) -> None:
    plan = (result := Prune(ratio=0.25, scope="global", normalise="none")(work)).plan(result.latest())
    assert plan is not None
    assert sum(len(units) for units in plan.removed.values()) == 36
    assert set(range(10)) <= set(plan.removed["0"])


def test_ratios_by_group_are_local(work: Work) -> None:
    with pytest.raises(RecipeError, match='scope "global"'):
        Prune(ratios={"2": 0.5}, scope="global")


def test_the_means_of_what_goes_are_put_into_biases(work: Work) -> None:
    pixels = X[:200]
    with torch.no_grad():
        whole = work.model()(pixels)
        plain, folded = (Prune(ratio=0.25, means=means)(work).model()(pixels) for means in (False, True))
    assert float((folded - whole).square().mean()) < float((plain - whole).square().mean())


def test_a_users_own_criterion_is_named_by_its_dotted_path(
    work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_criteria.py").write_text(
        "import torch\ndef first_ones(group, context):\n    return -torch.arange(group.size)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    result = Prune(ratio=0.5, criterion="my_criteria.first_ones")(work)
    plan = result.plan(result.latest())
    assert plan is not None
    assert plan.removed["0"] == tuple(range(48, 96))


def test_thresholds_that_would_empty_a_layer_are_refused(work: Work) -> None:
    with pytest.raises(ModelError, match="and with them the layer"):
        Prune(mean=1e6, std=1e6)(work)


def test_thresholds_need_statistics_and_each_other(tmp_path: Path, work: Work) -> None:
    bare = Work(Digits(), load_target("x86-cpu"), tmp_path / "bare", networks=NetworkFiles()).with_model(
        "original", Digits().build_model()
    )
    with pytest.raises(RecipeError, match="no statistics were collected"):
        Prune(mean=0.1, std=0.1)(bare)
    for mean, std, ratio in ((0.1, None, None), (None, None, None), (0.1, 0.1, 0.5)):
        with pytest.raises(RecipeError, match="both thresholds, or a ratio"):
            Prune(mean=mean, std=std, ratio=ratio)


def test_a_network_without_neurons_to_remove_says_so(tmp_path: Path) -> None:
    class Flat(Digits):
        def build_model(self) -> nn.Module:
            return nn.Linear(64, 10)

    work = Work(Flat(), load_target("x86-cpu"), tmp_path, networks=NetworkFiles()).with_model(
        "original", Flat().build_model()
    )
    with pytest.raises(ModelError, match="no neurons that could be removed"):
        Prune(ratio=0.5, criterion="random")(work)


def test_an_unknown_criterion_lists_those_that_are_known() -> None:
    with pytest.raises(RecipeError, match="activation"):
        find_criterion("nonsense")


def test_widths_follow_the_target() -> None:
    steps = alignment(load_target("x86-cpu"))
    assert steps["conv"] == 16
    assert steps["linear"] == 1
