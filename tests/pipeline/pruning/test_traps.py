"""Networks that are easily cut wrong without anyone noticing: each is cut right, or left whole."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from support import nets
from torch import Tensor, nn

from deadweight.pipeline.pruning.groups import choose
from deadweight.pipeline.pruning.plan import plan_of
from deadweight.pipeline.pruning.surgery import apply
from deadweight.pipeline.pruning.trace import trace
from deadweight.pipeline.pruning.verify import verify
from deadweight.targets.errors import ModelError


class Stale(nn.Module):
    """Attention whose scale is taken from an attribute that also shapes the heads."""

    def __init__(self, *, masked: bool = False, gated: bool = False) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.masked = 2, 8, masked
        self.qkv, self.out = nn.Linear(16, 48, bias=False), nn.Linear(16, 16)
        self.gamma = nn.Parameter(torch.full((16,), 1e-6)) if gated else None

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, t, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) / self.head_dim**0.5).softmax(-1)
        y: Tensor = self.out((weights @ v).transpose(1, 2).reshape(b, t, self.num_heads * self.head_dim))
        if self.gamma is not None:
            return x + self.gamma * y
        return y.masked_fill((torch.arange(t) > 2)[:, None], -1e9) if self.masked else y


def halved(model: nn.Module, *example: Tensor) -> nn.Module:
    groups = trace(model, example)
    generator = torch.Generator().manual_seed(3)
    scores = {one.name: torch.rand(one.size, generator=generator) for one in groups if one.kind != "heads"}
    plan = choose(groups, scores, ratio=0.5)
    small = apply(model, plan, groups)
    verify(model, small, plan, groups)
    return small


def form(small: nn.Module) -> str:
    done = plan_of(small)
    assert done is not None
    return done.form


@pytest.mark.parametrize(
    ("settings", "example"),
    [
        ({}, torch.zeros(2, 5, 16)),
        ({}, torch.ones(2, 5, 16)),
        ({"masked": True}, nets.image(2, 5, 16)),
        ({"gated": True}, nets.image(2, 5, 16)),
    ],
    ids=["an input of zeros", "an input of ones", "scores masked with -1e9", "a layer scale of 1e-6"],
)
def test_a_stale_scale_is_seen_whatever_hides_it(settings: dict[str, bool], example: Tensor) -> None:
    model = Stale(**settings)
    with torch.no_grad():
        model.qkv.weight.normal_(0, 0.5, generator=torch.Generator().manual_seed(1))
    assert form(halved(model.eval(), example)) == "graph"


def test_a_stale_scale_is_seen_behind_weights_that_leave_the_attention_uniform() -> None:
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.attention, self.out = nn.LayerNorm(16), Stale(), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.out((x + self.attention(self.norm(x))).mean(1))
            return y

    model = Deep().eval()
    with torch.no_grad():
        for parameter in (model.attention.qkv.weight, model.attention.out.weight, model.out.weight):
            parameter.normal_(0, 0.02, generator=torch.Generator().manual_seed(1))
        for bias in (model.attention.out.bias, model.out.bias):
            bias.zero_()
    assert form(halved(model, nets.image(2, 50, 16))) == "graph"


class Counted(nn.Module):
    """Keeps what it saw last in a buffer and in a dict, at inference too."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.out = nn.Linear(6, 8), nn.Linear(8, 3)
        self.register_buffer("seen", torch.zeros(()))
        self.kept: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        self.seen: Tensor
        self.seen.add_(1)
        if "bias" not in self.kept:
            self.kept["bias"] = self.out.bias * 2
        out: Tensor = F.linear(F.relu(self.fc(x)), self.out.weight, self.kept["bias"])
        return out


def test_what_a_network_keeps_of_a_run_is_not_kept_of_ours() -> None:
    model = nets.lively(Counted())
    before = float(model.get_buffer("seen"))
    small = halved(model, nets.image(2, 6))
    assert float(model.get_buffer("seen")) == float(small.get_buffer("seen")) == before
    assert model.kept == {}


def test_what_only_training_adds_is_cut_with_the_rest() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.h, self.b = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            hidden = F.relu(self.a(x))
            y: Tensor = self.h(hidden)
            if self.training:
                y = y + hidden
            out: Tensor = self.b(y)
            return out

    groups = trace(nets.lively(Residual()), (nets.image(2, 6),))
    (group,) = groups
    assert {piece.parameter for piece in group.slices} >= {"a.weight", "h.weight", "b.weight"}


class Around(nn.Module):
    """A convolution, something, and a linear layer."""

    def __init__(self, inner: Callable[[Tensor], Tensor], width: int) -> None:
        super().__init__()
        self.conv, self.inner, self.out = nn.Conv2d(3, 16, 3, padding=1), inner, nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(self.inner(self.conv(x)))
        return out


@pytest.mark.parametrize(
    ("inner", "width"),
    [
        (lambda x: F.pixel_shuffle(x, 2).mean((2, 3)), 4),
        (lambda x: F.normalize(x, dim=1).mean((2, 3)), 16),
        (lambda x: x.mean((2, 3)).cumsum(1), 16),
        (lambda x: (x * x.sigmoid()).amax((2, 3)), 16),
    ],
    ids=["pixel shuffle and mean", "normalize", "cumsum over channels", "a gate of itself"],
)
def test_what_lies_between_is_right_in_float64(inner: Callable[[Tensor], Tensor], width: int) -> None:
    model = nets.lively(Around(inner, width)).double()
    groups = trace(model, (nets.image(2, 3, 8, 8).double(),))
    if len(groups):
        scores = {one.name: torch.arange(one.size).double() for one in groups}
        plan = choose(groups, scores, ratio=0.5)
        assert verify(model, apply(model, plan, groups), plan, groups).max_relative_error < 1e-12


def test_a_diagonal_of_a_weight_ties_or_freezes_it() -> None:
    class Diagonal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.b(self.a(x) * self.a.weight.diagonal())
            return out

    halved(nets.lively(Diagonal()).double(), nets.image(2, 8).double())


def test_a_mask_made_of_units_and_a_state_made_of_layers_stay_whole() -> None:
    class Stateful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.start = nn.Linear(4, 2 * 6)
            self.lstm, self.out = nn.LSTM(4, 6, 2, batch_first=True), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            state = self.start(x[:, 0]).view(-1, 2, 6).transpose(0, 1).contiguous()
            y, _ = self.lstm(x, (state, torch.zeros_like(state)))
            out: Tensor = self.out(y)
            return out

    halved(nets.lively(Stateful()).double(), nets.image(2, 5, 4).double())


def test_a_plan_for_the_same_shapes_wired_otherwise_is_refused() -> None:
    class Wired(nn.Module):
        def __init__(self, residual: bool) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)
            self.residual = residual

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            out: Tensor = self.c(self.b(y) + y if self.residual else self.b(y))
            return out

    one, other = (trace(Wired(residual), (nets.image(2, 8),)) for residual in (False, True))
    plan = choose(one, {group.name: torch.arange(8.0) for group in one}, ratio=0.5)
    with pytest.raises(ModelError, match="made for another network"):
        apply(Wired(True), plan, other)


def test_the_graph_form_keeps_nothing_of_the_original_alive() -> None:
    model = nets.lively(nets.Mlp())
    groups = trace(model, (nets.image(2, 1, 4, 4),))
    plan = choose(groups, {group.name: torch.rand(group.size) for group in groups}, ratio=0.5)
    small = apply(model, plan, groups, form="graph")
    original = weakref.ref(next(model.parameters()))
    del model, groups, plan
    gc.collect()
    assert original() is None
    assert small(nets.image(3, 1, 4, 4)).shape == (3, 4)


def test_a_ratio_is_the_share_it_says() -> None:
    groups = trace(nn.Sequential(nn.Linear(4, 100), nn.ReLU(), nn.Linear(100, 2)), (nets.image(2, 4),))
    for ratio, left in ((0.29, 71), (0.57, 43)):
        plan = choose(groups, {"0": torch.arange(100.0)}, ratio=ratio)
        assert plan.widths["0"].after == left


def test_settings_that_name_nothing_are_refused() -> None:
    groups = trace(nets.Mlp(), (nets.image(2, 1, 4, 4),))
    scores = {"fc1": torch.arange(12.0)}
    with pytest.raises(ModelError, match='no group "typo"'):
        choose(groups, scores, keep={"typo": 3})
    with pytest.raises(ModelError, match="cannot be aligned"):
        choose(groups, scores, ratio=0.5, align=-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_a_gpu_that_multiplies_in_tensor_float_32_is_no_mistake(kind: torch.dtype) -> None:
    torch.set_float32_matmul_precision("high")
    model = nets.lively(nets.ResidualCnn()).to("cuda", kind)
    small = halved(model, nets.image(2, 3, 8, 8).to("cuda", kind))
    assert {one.device.type for one in small.parameters()} == {"cuda"}
    with torch.no_grad():
        small.get_parameter("fc.weight")[0, 0] += 0.01
    groups = trace(model, (nets.image(2, 3, 8, 8).to("cuda", kind),))
    done = plan_of(small)
    assert done is not None
    with pytest.raises(ModelError, match='"fc"'):
        verify(model, small, done, groups)
