from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support.nets import Mlp, ResidualCnn, Separable
from torch import Tensor, nn

from deadweight.pipeline.compression.low_rank import Convolution, candidates, factorized, product_of, prove
from deadweight.pipeline.compression.rank_selection import Candidate
from deadweight.pipeline.pruning.groups import choose
from deadweight.pipeline.pruning.plan import plan_of
from deadweight.pipeline.pruning.surgery import apply, replay
from deadweight.pipeline.pruning.trace import trace
from deadweight.pipeline.stages.share import tied
from deadweight.targets.errors import ModelError
from deadweight.targets.target import load_target

TARGET = load_target("x86-cpu")
IMAGE = {"image": torch.rand(2, 3, 8, 8)}
ROW = {"image": torch.rand(2, 16)}


def half(found: dict[str, Candidate]) -> dict[str, tuple[int, ...]]:
    return {name: tuple((top + 1) // 2 for top in one.energies.shape) for name, one in found.items()}


def thin_of(model: nn.Module, example: dict[str, Tensor], convolution: Convolution = "spatial") -> nn.Module:
    """The network with every layer that can be at half its ranks."""
    found, _ = candidates(model, example, TARGET, convolution=convolution)
    chosen = {name: found[name].at(ranks) for name, ranks in half(found).items()}
    return factorized(model, found, chosen)


def run(model: nn.Module, example: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        out: Tensor = model.eval()(*example.values())
    return out


@pytest.mark.parametrize("convolution", ["spatial", "channel", "tucker"])
def test_a_thin_network_computes_what_the_whole_one_does_with_the_products_as_weights(
    convolution: Convolution,
) -> None:
    model = ResidualCnn().eval()
    thin = thin_of(model, IMAGE, convolution)
    plan = plan_of(thin)
    assert plan is not None
    assert {one.method for one in plan.factors.values()} == {convolution, "channel", "svd"}
    assert prove(model, thin, list(IMAGE.values())) < 1e-5
    with torch.no_grad():
        for name, factors in plan.factors.items():
            model.get_submodule(name).get_parameter("weight").copy_(product_of(thin, name, factors))
    assert torch.allclose(run(model, IMAGE), run(thin, IMAGE), atol=1e-5)


def test_at_full_rank_the_outputs_stay() -> None:
    model = ResidualCnn().eval()
    found, _ = candidates(model, IMAGE, TARGET)
    thin = factorized(model, found, {name: one.at(tuple(one.energies.shape)) for name, one in found.items()})
    assert torch.allclose(run(model, IMAGE), run(thin, IMAGE), atol=1e-5)


def test_multiply_adds_are_those_of_the_thin_layers() -> None:
    found, _ = candidates(ResidualCnn().eval(), IMAGE, TARGET)
    conv1 = found["conv1"]  # 8 -> 16 channels, 3 x 3, stride 2: 8 x 8 becomes 4 x 4
    assert conv1.macs == 16 * 8 * 9 * 16
    assert conv1.at((5,)).cost == 5 * 8 * 3 * (4 * 8) + 16 * 5 * 3 * (4 * 4)
    conv1 = candidates(ResidualCnn().eval(), IMAGE, TARGET, convolution="tucker")[0]["conv1"]
    assert conv1.at((5, 7)).cost == 5 * 8 * 64 + 5 * 7 * 9 * 16 + 7 * 16 * 16
    conv1 = candidates(ResidualCnn().eval(), IMAGE, TARGET, convolution="channel")[0]["conv1"]
    assert conv1.at((5,)).cost == 5 * 8 * 9 * 16 + 5 * 16 * 16


def test_grouped_convolutions_are_left_alone_with_the_reason() -> None:
    found, left = candidates(Separable().eval(), IMAGE, TARGET)
    assert left == {"depthwise": "it is a depthwise convolution (12 groups)"}
    assert set(found) == {"expand", "squeeze", "excite", "project", "fc"}


def test_a_layer_that_is_not_there_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ModelError, match='no linear layer or convolution "fc11"') as caught:
        candidates(Mlp().eval(), ROW, TARGET, layers=["fc11"])
    assert "Did you mean 'fc1'?" in caught.value.cure


def test_only_the_layers_that_are_named_are_made_thin() -> None:
    found, left = candidates(Mlp().eval(), ROW, TARGET, layers=["fc2"])
    assert (list(found), left) == (["fc2"], {})


def test_a_layer_whose_weight_is_read_past_it_is_left_alone() -> None:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.unused = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = F.linear(F.relu(self.a(x)), self.b.weight) + self.b(x)
            return out

    model = Reads().eval()
    found, left = candidates(model, {"x": torch.rand(2, 8)}, TARGET)
    assert list(found) == ["a"]
    assert "has no attribute 'weight'" in left["b"]
    assert left["unused"] == "the network does not call it"


def test_a_layer_kept_in_a_list_of_the_users_own_is_left_alone() -> None:
    class Kept(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
            self.first = (self.a,)  # no submodule: the whole layer goes on running from here

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.b(self.first[0](x))
            return out

    found, left = candidates(Kept().eval(), {"x": torch.rand(2, 8)}, TARGET)
    assert list(found) == ["b"]
    assert "are wrong by" in left["a"]


def test_layers_of_an_encoder_that_its_fast_path_reads_are_left_alone() -> None:
    model = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    found, left = candidates(model, {"src": torch.rand(2, 5, 16)}, TARGET)
    assert not found
    assert {"linear1", "linear2", "self_attn.out_proj"} <= set(left)


def test_tied_layers_are_left_to_be_made_thin_before_they_are_tied() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 4)).eval()
    shared = tied(model, (("0.weight", "2.weight"),))
    found, left = candidates(shared, {"x": torch.rand(2, 8)}, TARGET)
    assert list(found) == ["3"]
    assert "put the stage share after" in left["0"]


def test_thin_layers_are_not_made_thinner() -> None:
    found, left = candidates(thin_of(Mlp().eval(), ROW), ROW, TARGET)
    assert not found
    assert set(left.values()) == {"it is a low-rank layer already"}


def test_a_network_in_the_graph_form_is_refused_with_the_order_that_works() -> None:
    model = Mlp().eval()
    groups = trace(model, ROW)
    plan = choose(groups, {group.name: torch.rand(group.size) for group in groups}, ratio=0.5)
    with pytest.raises(ModelError, match="graph form") as caught:
        candidates(apply(model, plan, groups, form="graph"), ROW, TARGET)
    assert "before the stage prune" in caught.value.cure


@pytest.mark.parametrize("form", ["module", "graph"])
def test_a_thin_network_is_pruned_and_rebuilt_from_a_fresh_one_by_its_plan(form: str) -> None:
    model = ResidualCnn().eval()
    thin = thin_of(model, IMAGE)
    groups = trace(thin, IMAGE)
    plan = choose(groups, {group.name: torch.rand(group.size) for group in groups}, ratio=0.5)
    small = apply(thin, plan, groups, form=form)
    done = plan_of(small)
    assert done is not None
    assert [step.form for step in (*done.earlier, done)] == ["layers", form]
    again = replay(ResidualCnn(), done, IMAGE)
    again.load_state_dict(small.state_dict())
    assert torch.allclose(run(again, IMAGE), run(small, IMAGE), atol=1e-6)
    assert sum(map(torch.numel, small.parameters())) < sum(map(torch.numel, thin.parameters()))


def test_a_pruned_network_is_made_thin_and_rebuilt_from_a_fresh_one_by_its_plan() -> None:
    model = ResidualCnn().eval()
    groups = trace(model, IMAGE)
    plan = choose(groups, {group.name: torch.rand(group.size) for group in groups}, ratio=0.5)
    thin = thin_of(apply(model, plan, groups), IMAGE)
    done = plan_of(thin)
    assert done is not None
    again = replay(ResidualCnn(), done, IMAGE)
    again.load_state_dict(thin.state_dict())
    assert torch.allclose(run(again, IMAGE), run(thin, IMAGE), atol=1e-6)
    assert done.widths["conv1.reduce"].kind == "rank"
