"""The user's own class, narrowed: what is tied, listed, held in attributes or kept of a run goes along."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support import nets
from support.halving import done, halved
from torch import Tensor, nn
from torch.fx import Graph

from deadweight.pipeline.pruning.narrow import (
    cut_tensors,
    guessed_attributes,
    named_tensors,
    narrowed,
    set_attributes,
)
from deadweight.pipeline.pruning.plan import Plan
from deadweight.pipeline.pruning.resize import Change
from deadweight.pipeline.pruning.verify import verify


class Tied(nn.Module):
    """An autoencoder whose decoder is the encoder transposed; a list and a dict that hold parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(6, 8)
        self.twin = nn.Linear(6, 8)
        self.twin.weight = self.encoder.weight
        self.decoder = nn.Linear(16, 3)
        self.regularised = [self.encoder.weight, self.decoder.weight]
        self.named = {"bias": self.twin.bias}
        self.register_buffer("mean", torch.linspace(0, 1, 8))
        self.register_buffer("alias", self.get_buffer("mean"))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([self.encoder(x) - self.get_buffer("mean"), self.twin(x) + self.get_buffer("alias")], 1)
        out: Tensor = self.decoder(F.relu(y))
        return out


class Heads(nn.Module):
    """Widths in attributes: an int, a list and a tuple of sizes; one that is equal to a width by chance."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 4
        self.sizes, self.pair = [8, 4], (3, 7)
        self.exact = True
        self.qkv, self.proj = nn.Linear(6, 24), nn.Linear(8, 12)
        self.split, self.out = nn.Linear(12, 10), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v, scale=1.0).transpose(1, 2).reshape(b, n, -1)
        wide, narrow = torch.split(self.proj(y), self.sizes, 2)
        one, other = torch.split_with_sizes(self.split(torch.cat([narrow, wide], 2)), self.pair, 2)
        out: Tensor = self.out(F.relu(torch.cat([other, one], 2)))
        return out if self.exact else -out


class Keeping(nn.Module):
    """It keeps what it computed: a cached activation, in an attribute and in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(4, 8), nn.Linear(8, 2)
        self.seen: list[Tensor] = []
        self.last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.last = F.relu(self.fc1(x))
        self.seen = [self.last]
        out: Tensor = self.fc2(self.last)
        return out


def module(model: nn.Module, example: Tensor) -> Any:
    """Half of each group less, in the user's own class, and right."""
    model = nets.lively(model)
    small, plan, groups = halved(model, example, "module")
    assert len(groups) > 0
    verify(model, small, plan, groups)
    assert type(small) is type(model)
    assert done(small).removed == plan.removed
    return small


def test_what_is_tied_stays_tied_parameters_and_buffers() -> None:
    small = module(Tied(), nets.image(2, 6))
    assert small.encoder.weight is small.twin.weight
    assert small.mean is small.alias
    assert (small.encoder.weight.shape, small.mean.shape) == ((4, 6), (4,))


def test_lists_and_dicts_of_parameters_hold_the_narrow_ones() -> None:
    small = module(Tied(), nets.image(2, 6))
    assert small.regularised[0] is small.encoder.weight
    assert small.regularised[1] is small.decoder.weight
    assert small.named["bias"] is small.twin.bias


def test_widths_in_attributes_are_set_anew_as_int_list_and_tuple() -> None:
    small = module(Heads(), nets.image(2, 5, 6))
    assert isinstance(small.sizes, list)
    assert isinstance(small.pair, tuple)
    assert sum(small.sizes) == small.proj.out_features == 6
    assert sum(small.pair) == small.split.out_features == 5
    assert small.qkv.out_features % (3 * small.heads) == 0
    assert small.exact is True
    assert "changed attributes" in done(small).reason
    assert {"sizes", "pair"} <= done(small).attributes[""].keys()


def test_attributes_of_the_original_stay_as_they_were() -> None:
    model = nets.lively(Heads())
    halved(model, nets.image(2, 5, 6), "module")
    assert vars(model)["heads"] == 4
    assert (vars(model)["sizes"], vars(model)["pair"]) == ([8, 4], (3, 7))


def test_what_a_forward_keeps_of_a_run_is_no_obstacle() -> None:
    model = Keeping()
    model(nets.image(2, 4))
    kept = model.last
    assert kept is not None
    small = module(model, nets.image(2, 4))
    assert model.last is kept
    small(nets.image(5, 4))
    assert small.last.shape == (5, 4)


def test_the_old_weight_norm_is_cut_though_its_weight_is_no_parameter() -> None:
    with pytest.warns(FutureWarning):
        normed = torch.nn.utils.weight_norm(nn.Linear(4, 8))
    small = module(nn.Sequential(normed, nn.ReLU(), nn.Linear(8, 2)), nets.image(2, 4))
    assert (small[0].weight_v.shape, small[0].weight_g.shape) == ((4, 4), (4, 1))


LAYERS: dict[str, tuple[nn.Module, tuple[int, ...], dict[str, Any]]] = {
    "linear": (nn.Linear(8, 6), (2, 8), {"in_features": 4, "out_features": 3}),
    "conv": (nn.Conv1d(8, 6, 1), (2, 8, 5), {"in_channels": 4, "out_channels": 3}),
    "depthwise": (
        nn.Conv1d(8, 8, 1, groups=8),
        (2, 8, 5),
        {"in_channels": 4, "out_channels": 4, "groups": 4},
    ),
    "grouped": (nn.Conv1d(8, 8, 1, groups=2), (2, 8, 5), {"in_channels": 2, "out_channels": 2, "groups": 1}),
    "transposed": (nn.ConvTranspose2d(8, 6, 2), (2, 8, 5, 5), {"in_channels": 4, "out_channels": 3}),
    "batch norm": (nn.BatchNorm1d(8), (2, 8, 5), {"num_features": 4}),
    "instance norm": (nn.InstanceNorm1d(8, affine=True), (2, 8, 5), {"num_features": 4}),
    "layer norm": (nn.LayerNorm(8), (2, 5, 8), {"normalized_shape": (4,)}),
    "rms norm": (nn.RMSNorm(8), (2, 5, 8), {"normalized_shape": (4,)}),
    "group norm": (nn.GroupNorm(8, 8), (2, 8, 5), {"num_channels": 4, "num_groups": 4}),
    "prelu": (nn.PReLU(8), (2, 8, 5), {"num_parameters": 4}),
}


class Around(nn.Module):
    """A layer of torch's between two linear ones; its 8 channels are on the axis where the example has 8."""

    def __init__(self, layer: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.axis = shape.index(8)
        made = 6 if vars(layer).get("out_features", vars(layer).get("out_channels")) == 6 else 8
        self.before, self.layer, self.after = nn.Linear(8, 8), layer, nn.Linear(made, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(self.before(x.transpose(self.axis, -1)).transpose(self.axis, -1))
        out: Tensor = self.after(y.transpose(self.axis, -1))
        return out


@pytest.mark.parametrize("name", LAYERS)
def test_torchs_own_layers_say_the_widths_that_they_have(name: str) -> None:
    layer, shape, expected = LAYERS[name]
    small = module(Around(layer, shape), nets.image(*shape))
    assert {attribute: getattr(small.layer, attribute) for attribute in expected} == expected


def test_recurrent_layers_and_embeddings_say_theirs_too() -> None:
    class Read(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.gru = nn.Embedding(9, 8), nn.GRU(8, 6, batch_first=True)
            self.cell, self.out = nn.LSTMCell(6, 10), nn.Linear(10, 2)

        def forward(self, tokens: Tensor) -> Tensor:
            steps, _ = self.gru(self.embed(tokens))
            out: Tensor = self.out(self.cell(steps[:, -1])[0])
            return out

    small = module(Read(), torch.zeros(2, 3, dtype=torch.long))
    assert (small.embed.num_embeddings, small.embed.embedding_dim) == (9, 4)
    assert (small.gru.input_size, small.gru.hidden_size) == (4, 3)
    assert (small.cell.input_size, small.cell.hidden_size) == (3, 5)
    assert done(small).attributes == {}  # shapes tell them all


def test_cut_tensors_are_copies_in_the_same_type_and_layout() -> None:
    first, second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 3)
    model: Any = nn.Sequential(first.requires_grad_(False), second).bfloat16()
    model.to(memory_format=torch.channels_last)
    tensors = cut_tensors(
        named_tensors(model), {"0.weight": {0: (0, 5)}, "0.bias": {0: (0, 5)}, "1.weight": {1: (0, 5)}}
    )
    weight = tensors["0.weight"]
    assert torch.equal(weight, first.weight[[1, 2, 3, 4, 6, 7]])
    assert (weight.dtype, weight.requires_grad) == (torch.bfloat16, False)
    assert all(
        tensors[name].is_contiguous(memory_format=torch.channels_last) for name in ("0.weight", "1.weight")
    )
    assert isinstance(tensors["1.weight"], nn.Parameter)
    assert tensors["1.bias"].data_ptr() != model[1].bias.data_ptr()


def test_cut_tensors_share_what_the_originals_share() -> None:
    model = Tied()
    cut = {name: {0: (1,)} for name in ("encoder.weight", "twin.weight", "mean", "alias")}
    tensors = cut_tensors(named_tensors(model), cut)
    assert tensors["encoder.weight"] is tensors["twin.weight"]
    assert tensors["mean"] is tensors["alias"]
    assert tensors["encoder.bias"] is not tensors["twin.bias"]


def test_an_attribute_that_is_a_truth_is_not_taken_for_a_width() -> None:
    class Held(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.on, self.first, self.sizes, self.name = True, 1, [1, 3], "1"

    node = Graph().placeholder("x")
    changes = [
        Change(node, "", "slice", "start", 1, 0, ()),
        Change(node, "", "split", "sizes", [1, 3], [0, 2], ()),
    ]
    assert guessed_attributes(Held(), changes) == [{}, {"": {"first": 0, "sizes": [0, 2]}}]


@dataclass
class Settings:
    width: int = 24


class Stores(nn.Module):
    """It holds its width in one of many ways."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.fc1, self.fc2, self.part = nn.Linear(6, 24), nn.Linear(24, 2), nn.Unflatten(1, (3, 8))
        self.channels, self.shape, self.size = 24, (-1, 24), torch.Size([3, 8])
        self.settings, self.table = Settings(), {"model": {"width": 24}, "layers": 2}
        self.view = functools.partial(torch.reshape, shape=(-1, 24))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.fc1(x))
        if self.how == "derived":
            y = y.view(-1, 2, self.channels // 2).flatten(1)
        elif self.how == "tuple":
            y = y.view(self.shape)
        elif self.how == "size":
            y = y.view(-1, *self.size).flatten(1)
        elif self.how == "settings":
            y = y.view(-1, self.settings.width)
        elif self.how == "table":
            y = y.view(-1, self.table["model"]["width"])  # type: ignore[index]
        elif self.how == "partial":
            y = self.view(y)
        else:
            y = self.part(y).flatten(1)
        out: Tensor = self.fc2(torch.cat([y, y], 1)[:, : y.shape[1]])
        return out


@pytest.mark.parametrize("how", ["derived", "tuple", "size", "settings", "table", "partial", "unflatten"])
def test_a_stored_width_is_set_anew_wherever_it_is_stored(how: str) -> None:
    model = nets.lively(Stores(how))
    small, plan, groups = halved(model, nets.image(2, 6))
    assert type(small) is Stores
    assert small.fc1.out_features < 24
    assert verify(model, small, plan, groups).max_relative_error < 1e-5
    assert vars(model)["settings"] == Settings(24)
    assert model.table == {"model": {"width": 24}, "layers": 2}
    again = load_through_json(model, small)
    assert torch.equal(again(nets.image(3, 6)), small(nets.image(3, 6)))


def test_settings_that_the_code_does_not_need_keep_their_values() -> None:
    small, _, _ = halved(nets.lively(Stores("tuple")), nets.image(2, 6))
    assert type(small) is Stores
    assert small.shape[1] < 24  # what forward reads
    assert small.settings == Settings(24)


def load_through_json(model: nn.Module, small: nn.Module) -> nn.Module:
    """The same from its plan, as it is written."""
    plan = Plan.from_json(json.loads(json.dumps(done(small).to_json())))
    return narrowed(model, cut_tensors(named_tensors(model), plan.cut), plan.attributes)


class Fused(nn.Module):
    """Attention that takes its scale from the width, unless a switch selects its own."""

    def __init__(self) -> None:
        super().__init__()
        self.fused, self.scale = True, 8**-0.5
        self.q, self.k, self.v, self.out = (nn.Linear(6, 8) for _ in range(4))
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.q(x), self.k(x), self.v(x)
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = (q * self.scale @ k.transpose(-1, -2)).softmax(-1) @ v
        out: Tensor = self.out(y)
        return out


def test_an_attention_with_the_scale_of_the_width_keeps_its_class_by_its_other_code() -> None:
    small, _, _ = halved(nets.lively(Fused()), nets.image(2, 5, 6))
    assert (type(small), small.fused, small.q.out_features) == (Fused, False, 4)
    assert "with changed attributes: fused" in done(small).reason


def test_hooks_come_along() -> None:
    model = nets.lively(nets.Mlp())

    def double(_layer: nn.Module, _given: Any, result: Tensor) -> Tensor:
        return result * 2

    model.get_submodule("fc1").register_forward_hook(double)
    small = narrowed(model, cut_tensors(named_tensors(model), {}), {})
    assert torch.equal(small(nets.image(2, 1, 4, 4)), model(nets.image(2, 1, 4, 4)))


def test_what_a_shape_tells_is_not_overruled_by_an_attribute_that_was_guessed() -> None:
    small = nn.Sequential(nn.Linear(4, 6))
    set_attributes(small, {"0": {"out_features": 3}})
    assert small.get_submodule("0").out_features == 6
