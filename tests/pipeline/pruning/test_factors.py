from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.nets import Mlp, ResidualCnn, Separable
from torch import Tensor, nn

from deadweight.pipeline.pruning.factors import (
    METHODS,
    composed,
    cut,
    energies,
    full_ranks,
    most_ranks,
    relaid,
    thin_layers,
    why_not,
)
from deadweight.pipeline.pruning.plan import Factors, Plan, fingerprint
from deadweight.targets.errors import ModelError

CONVOLUTIONS = [name for name in METHODS if name != "svd"]
sizes = st.integers(1, 7)


def plan_for(model: nn.Module, **factors: Factors) -> Plan:
    named = {name.replace("__", "."): one for name, one in factors.items()}
    return Plan(fingerprint(model), {}, {}, {}, {}, form="layers", factors=named)


def filled(layer: nn.Module, method: str, ranks: tuple[int, ...]) -> nn.Sequential:
    """The thin layers of a layer, with their weights."""
    thin = thin_layers(layer, Factors(method, ranks))
    parts = cut(METHODS[method](layer.get_parameter("weight").detach()), ranks)
    with torch.no_grad():
        for one, part in zip(thin.children(), parts, strict=True):
            one.get_parameter("weight").copy_(part)
        if isinstance(layer.bias, Tensor):
            thin.get_submodule("expand").get_parameter("bias").copy_(layer.bias)
    return thin


def relative(found: Tensor, right: Tensor) -> float:
    found, right = found.detach(), right.detach()
    return float((found - right).abs().max() / right.abs().max().clamp_min(1e-12))


@given(
    method=st.sampled_from(CONVOLUTIONS),
    channels=st.tuples(sizes, sizes),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    mode=st.sampled_from(["zeros", "reflect", "replicate", "circular"]),
    bias=st.booleans(),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=60, deadline=None)
def test_at_full_rank_thin_convolutions_compute_what_the_whole_one_does(
    method: str,
    channels: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    mode: str,
    bias: bool,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    layer = nn.Conv2d(
        *channels,
        kernel,
        stride,
        padding,
        dilation,
        bias=bias,
        padding_mode=mode,  # type: ignore[arg-type]
    )
    thin = filled(layer, method, full_ranks(METHODS[method](layer.weight.detach())))
    x = torch.randn(2, channels[0], 11, 12)
    assert relative(thin(x), layer(x)) < 1e-5


@given(rows=st.integers(1, 20), columns=st.integers(1, 20), bias=st.booleans(), seed=st.integers(0, 2**16))
@settings(max_examples=40, deadline=None)
def test_at_full_rank_thin_linear_layers_compute_what_the_whole_one_does(
    rows: int, columns: int, bias: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    layer = nn.Linear(columns, rows, bias=bias)
    x = torch.randn(3, 2, columns)
    assert relative(filled(layer, "svd", (min(rows, columns),))(x), layer(x)) < 1e-5


@given(
    method=st.sampled_from(list(METHODS)),
    channels=st.tuples(sizes, sizes),
    share=st.floats(0.1, 1),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_the_error_of_a_cut_is_the_root_of_the_energy_that_is_missing(
    method: str, channels: tuple[int, int], share: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    kernel = () if method == "svd" else (3, 2)
    weight = torch.randn(*channels, *kernel, generator=generator, dtype=torch.float64)
    parts = METHODS[method](weight)
    ranks = tuple(max(1, round(share * top)) for top in full_ranks(parts))
    error = float((composed(method, cut(parts, ranks)) - weight).norm() / weight.norm())
    missing = 1 - float(energies(parts)[tuple(rank - 1 for rank in ranks)])
    assert error == pytest.approx(max(missing, 0.0) ** 0.5, abs=1e-7)


@pytest.mark.parametrize("method", list(METHODS))
def test_the_full_ranks_are_those_of_the_decomposition(method: str) -> None:
    for outputs, inputs in ((3, 8), (8, 3), (30, 2), (2, 30)):
        weight = torch.randn(outputs, inputs, *(() if method == "svd" else (3, 3)))
        assert most_ranks(method, tuple(weight.shape)) == full_ranks(METHODS[method](weight))


def test_a_weight_of_lower_rank_is_found_again_at_that_rank() -> None:
    torch.manual_seed(0)
    down, up = torch.randn(2, 4, 3, 1), torch.randn(5, 2, 1, 3)
    weight = composed("spatial", (down, up))
    assert float(energies(METHODS["spatial"](weight))[1]) == pytest.approx(1)
    assert torch.allclose(composed("spatial", cut(METHODS["spatial"](weight), (2,))), weight)


def test_a_weight_of_zeros_keeps_all_its_energy_at_rank_one() -> None:
    for method in METHODS:
        weight = torch.zeros(4, 4) if method == "svd" else torch.zeros(4, 4, 3, 3)
        assert float(energies(METHODS[method](weight)).flatten()[0]) == 1


def test_padding_that_keeps_the_size_is_kept() -> None:
    layer = nn.Conv2d(3, 4, 5, padding="same", dilation=2)
    x = torch.randn(2, 3, 9, 8)
    for method in CONVOLUTIONS:
        thin = filled(layer, method, full_ranks(METHODS[method](layer.weight.detach())))
        assert relative(thin(x), layer(x)) < 1e-5


def test_thin_layers_keep_type_mode_and_what_is_frozen_and_draw_no_numbers() -> None:
    layer = nn.Linear(6, 5).double().requires_grad_(False).eval()
    state = torch.random.get_rng_state()
    thin = thin_layers(layer, Factors("svd", (2,)))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not thin.training
    assert {(one.dtype, one.requires_grad) for one in thin.parameters()} == {(torch.float64, False)}


def test_layers_that_cannot_be_thin_say_why() -> None:
    depthwise = Separable().depthwise
    assert why_not(depthwise) == "it is a depthwise convolution (12 groups)"
    assert why_not(nn.Conv2d(8, 8, 3, groups=2)) == "it is a grouped convolution (2 groups)"
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
    assert "only torch's own" in why_not(normed)
    hooked = nn.Linear(4, 4)
    hooked.register_forward_hook(lambda *_: None)
    assert why_not(hooked) == "it has hooks"
    assert why_not(nn.Linear(4, 4)) == why_not(nn.Conv2d(4, 4, 3)) == ""
    with pytest.raises(ModelError, match="depthwise"):
        thin_layers(depthwise, Factors("spatial", (1,)))


def test_a_rank_beyond_what_a_layer_has_is_refused_with_what_it_has() -> None:
    with pytest.raises(ModelError, match=r"shape \(12, 8\) cannot have the rank 9: .* full rank is 8"):
        thin_layers(nn.Linear(8, 12), Factors("svd", (9,)))
    with pytest.raises(ModelError, match="full rank is 4 and 6"):
        thin_layers(nn.Conv2d(4, 6, 3), Factors("tucker", (2,)))
    with pytest.raises(ModelError, match="is not for a Linear"):
        thin_layers(nn.Linear(8, 12), Factors("spatial", (2,)))


def test_a_plan_puts_thin_layers_in_and_leaves_the_network_as_it_was() -> None:
    model = ResidualCnn()
    before = fingerprint(model)
    thin = relaid(model, plan_for(model, conv2=Factors("tucker", (3, 5)), fc=Factors("svd", (2,))))
    assert fingerprint(model) == before
    names = [name for name, _ in thin.named_parameters() if name.startswith(("conv2", "fc"))]
    assert names == [
        "conv2.reduce.weight",
        "conv2.core.weight",
        "conv2.expand.weight",
        "fc.reduce.weight",
        "fc.expand.weight",
        "fc.expand.bias",
    ]
    assert thin(torch.rand(2, 3, 8, 8)).shape == (2, 5)


def test_a_layer_that_stands_at_two_places_stays_one() -> None:
    layer = nn.Linear(6, 6)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    thin = relaid(model, plan_for(model, **{"0": Factors("svd", (2,))}))
    assert isinstance(thin, nn.Sequential)
    assert thin[0] is thin[2]


def test_plans_of_layers_and_ties_come_back_from_json() -> None:
    plan = Plan(
        "x", {}, {}, {}, {}, "layers", factors={"a": Factors("tucker", (2, 3))}, ties=(("b.w", "c.w"),)
    )
    assert Plan.from_json(plan.to_json()) == plan
    older = {name: value for name, value in plan.to_json().items() if name not in ("factors", "ties")}
    assert Plan.from_json(older).factors == {}


def test_a_plan_for_another_network_is_refused() -> None:
    with pytest.raises(ModelError, match='no layer "fc9"'):
        relaid(Mlp(), plan_for(Mlp(), fc9=Factors("svd", (2,))))
    tie = Plan("x", {}, {}, {}, {}, "layers", ties=(("fc1.weight", "fc2.weight"),))
    with pytest.raises(
        ModelError, match=r"fc1.weight and fc2.weight cannot be tied: .*\(12, 16\) and \(8, 12\)"
    ):
        relaid(Mlp(), tie)
