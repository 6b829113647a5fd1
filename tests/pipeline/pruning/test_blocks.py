"""Blocks are recognised by their behaviour, tested before they are offered, and refused with a reason."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support import block_nets, nets, sequence_nets
from support.halving import halved
from torch import Tensor, nn

from deadweight.pipeline.pruning.blocks import Block, find, removable
from deadweight.pipeline.pruning.plan import Bypass
from deadweight.targets.errors import ModelError

IMAGE = (nets.image(2, 3, 8, 8),)


def able(blocks: tuple[Block, ...]) -> dict[str, Bypass]:
    return {block.path: block.bypass for block in blocks if block.bypass is not None}


def reasons(blocks: tuple[Block, ...]) -> dict[str, str]:
    return {block.path: block.reason for block in blocks if block.reason}


def test_residual_blocks_are_found_inside_their_stages_with_and_without_a_projection() -> None:
    found = find(nets.lively(block_nets.Stages()), IMAGE)
    past = Bypass(shortcut="downsample", branch="bn2", activation="relu")
    assert able(found) == {
        "layer1.0": Bypass(),
        "layer1.1": Bypass(),
        "layer2.0": past,
        "layer2.1": Bypass(),
    }
    assert reasons(found) == {}
    first = found[0]
    assert (first.kind, first.parameters) == ("Basic", 2 * 8 * 8 * 9 + 4 * 8)


def test_the_network_that_is_searched_stays_as_it_is() -> None:
    model = nets.lively(block_nets.Stages()).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    find(model, IMAGE)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_encoder_layers_that_return_tuples_are_blocks() -> None:
    found = find(nets.lively(block_nets.Encoder()), (nets.image(2, 5, 4),))
    assert able(found) == {f"layers.{number}": Bypass(outputs=2) for number in range(3)}


def test_layers_of_an_encoder_of_torch_are_blocks_but_the_first_which_it_asks() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True)
    model = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False, norm=nn.LayerNorm(8)).eval()
    found = find(model, (nets.image(2, 5, 8),))
    assert set(able(found)) == {"layers.1", "layers.2"}
    assert "self_attn" in reasons(found)["layers.0"]


def test_layers_with_the_norm_behind_the_sum_are_blocks_too() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    assert set(able(find(model, (nets.image(2, 5, 8),)))) == {"layers.1"}


def test_what_looks_like_a_block_and_changes_the_shape_is_listed_with_the_reason() -> None:
    found = find(nets.lively(block_nets.Unlike()), IMAGE)
    assert set(able(found)) == {"b"}
    assert reasons(found)["a"] == "it turns 2 x 3 x 8 x 8 (float32) into 2 x 5 x 8 x 8 (float32)"
    assert set(reasons(found)) == {"a", "c"}


def test_a_block_whose_insides_are_used_elsewhere_is_refused() -> None:
    found = find(nets.lively(block_nets.Asking()), IMAGE)
    assert set(able(found)) == {"second"}
    assert "fails without it" in reasons(found)["first"]


def test_a_block_under_two_names_goes_once_with_its_parameters() -> None:
    found = find(nets.lively(block_nets.Shared()), (nets.image(2, 4, 5, 5),))
    assert [(block.path, block.parameters) for block in found] == [("first", 304), ("third", 304)]


def test_a_sublayer_that_gates_its_input_is_no_block() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate = nn.Sequential(nn.Linear(4, 4), nn.Sigmoid())

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = x * self.gate(x)
            return out

    assert find(nn.Sequential(Gated(), nn.Linear(4, 3)).eval(), (nets.image(2, 4),)) == ()


def test_an_input_that_is_written_over_is_not_carried_on() -> None:
    class Overwritten(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = x.clone()
            x.mul_(self.inner(x))
            out: Tensor = x + self.inner(x)
            return out

    assert find(nn.Sequential(Overwritten(), nn.Linear(4, 3)).eval(), (nets.image(2, 4),)) == ()


def test_layers_are_those_as_wide_as_their_input() -> None:
    model = nn.Sequential(
        nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(6, 2)
    ).eval()
    found = find(model, (nets.image(2, 4),), kind="layers")
    assert set(able(found)) == {"2"}
    assert set(reasons(found)) == {"0", "4"}


def test_modules_that_are_named_are_tried_whatever_they_are() -> None:
    model = nets.lively(block_nets.Stages())
    assert set(able(find(model, IMAGE, only=("layer1",)))) == {"layer1"}
    assert set(able(find(model, IMAGE, only=("layer[12].1",)))) == {"layer1.1", "layer2.1"}
    assert set(able(find(model, IMAGE, only=("layer1*",)))) == {"layer1"}  # the outermost
    assert reasons(find(model, IMAGE, only=("fc",)))["fc"].startswith("it turns 2 x 16 (float32) into 2 x 10")
    with pytest.raises(ModelError, match='named "layer3"'):
        find(model, IMAGE, only=("layer3",))


def test_a_network_without_blocks_is_refused_with_a_cure() -> None:
    mlp = nets.lively(nets.Mlp())
    with pytest.raises(ModelError, match="no block or layer that can be dropped") as error:
        removable(find(mlp, (nets.image(2, 16),)))
    assert "prune neurons" in error.value.cure
    with pytest.raises(ModelError, match=r"fc1 \(Linear\): it turns 2 x 16 \(float32\) into 2 x 12"):
        removable(find(mlp, (nets.image(2, 16),), kind="layers"))


def test_a_network_in_the_graph_form_is_refused_with_a_cure() -> None:
    small, _, _ = halved(nets.lively(block_nets.Stages()), IMAGE[0], "graph")
    with pytest.raises(ModelError, match="not modules any more") as error:
        find(small, IMAGE)
    assert "first" in error.value.cure


def test_a_network_that_does_not_run_is_refused() -> None:
    with pytest.raises(ModelError, match="does not run on its example"):
        find(block_nets.Stages(), (nets.image(2, 5, 8, 8),))


def test_a_module_that_forward_does_not_call_is_no_candidate() -> None:
    model: Any = nets.lively(block_nets.Stages())
    model.spare = nn.Linear(3, 3)
    assert reasons(find(model, IMAGE, only=("spare",)))["spare"] == "forward does not call it"


def test_attention_is_no_block_of_its_own_where_its_layer_is() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.attention = nn.LayerNorm(8), sequence_nets.Attention(8, 2)
            self.mlp = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.attention(self.norm(x))
            out: Tensor = x + self.mlp(x)
            return out

    model = nn.Sequential(nn.Linear(4, 8), Block(), Block(), nn.Linear(8, 3)).eval()
    assert set(able(find(model, (nets.image(2, 5, 4),)))) == {"1", "2"}
