"""When two networks are called the same: rounding is, a hair more is not, and nothing hides behind NaN."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from support import nets
from support.halving import done, halved
from torch import Tensor, nn

from deadweight.pipeline.pruning.compare import (
    Precision,
    compared,
    error_of,
    relative_error,
    run,
    tolerance,
)
from deadweight.pipeline.pruning.verify import verify
from deadweight.targets.errors import ModelError

INFINITE = math.inf


class Several(nn.Module):
    """A dict of a tensor, a tuple and a number."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)
        self.calls = 0

    def forward(self, x: Tensor) -> dict[str, object]:
        self.calls += 1
        return {"a": self.drop(x), "b": (x + 1, x * 2), "c": 7}


class Amplifying(nn.Module):
    """A sine of what is a thousand times too large: rounding, too, is a thousand times larger."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, width), nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(1e3 * self.fc2(torch.relu(self.fc1(x))).float())


def test_the_error_is_relative_to_the_largest_value_of_the_output() -> None:
    expected = torch.tensor([100.0, 0.001])
    assert error_of(expected, torch.tensor([100.0, 0.002])) == pytest.approx(1e-5)
    assert error_of(expected / 1000, torch.tensor([0.1, 1e-6])) == 0.0


def test_a_large_equal_value_that_is_no_fill_hides_rounding_beside_it() -> None:
    gradients = torch.tensor([0.0165, 1e-20], dtype=torch.float64)  # the second is 0 but for rounding
    assert error_of(gradients, gradients * torch.tensor([1.0, -3.0])) < 1e-15


def test_each_output_is_measured_by_its_own_scale() -> None:
    large, little = torch.tensor([1000.0]), torch.tensor([0.001])
    assert relative_error([large, little], [large, little * 2]) == pytest.approx(1)
    assert relative_error([large, little], [large * 1.5, little]) == pytest.approx(0.5)


def test_another_shape_or_number_of_outputs_is_no_agreement() -> None:
    assert error_of(torch.zeros(3), torch.zeros(1, 3)) == INFINITE
    assert relative_error([torch.zeros(3)], []) == INFINITE
    assert relative_error([torch.zeros(3)], [torch.zeros(3)] * 2) == INFINITE
    assert relative_error([], []) == 0.0


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_on_one_side_is_no_agreement(wrong: float) -> None:
    good, bad = torch.tensor([1.0, 2.0]), torch.tensor([1.0, wrong])
    assert error_of(good, bad) == error_of(bad, good) == INFINITE


def test_nan_agrees_with_nothing_and_an_infinity_with_itself() -> None:
    nan, masked = torch.tensor([1.0, math.nan]), torch.tensor([2.0, -math.inf])
    assert error_of(nan, nan) == INFINITE
    assert error_of(masked, masked) == 0.0
    assert error_of(masked, -masked) == INFINITE
    assert error_of(masked, torch.tensor([3.0, -math.inf])) == pytest.approx(0.5)


def test_a_value_that_was_filled_in_hides_no_difference_of_the_others() -> None:
    masked = torch.tensor([2.0, -1e9])
    assert error_of(masked, masked) == 0.0
    assert error_of(masked, torch.tensor([3.0, -1e9])) == pytest.approx(0.5)
    assert error_of(masked, torch.tensor([2.0, -2e9])) == pytest.approx(1)


def test_a_large_equal_gradient_is_no_fill_value() -> None:
    weight_and_bias = torch.tensor([2e3, 1e-4])  # that of a bias before a norm is 0 but for rounding
    found = torch.tensor([2e3, 2e-4])
    assert relative_error([weight_and_bias], [found]) > 0.1
    assert relative_error([weight_and_bias], [found], math.inf) < 1e-6


def test_a_large_output_is_one_output_wherever_in_it_the_values_are() -> None:
    one = torch.ones(3, 200_000)
    one[0, 1], one[2, -1] = -1e12, 1e4  # filled in; and the largest value, far behind what differs
    other = one.clone()
    other[0, 0] = 1.5
    assert error_of(one, other) == pytest.approx(0.5 / 1e4)
    other[2, -2] = math.nan
    assert error_of(one, other) == math.inf


def test_zeros_agree_with_zeros_alone() -> None:
    assert error_of(torch.zeros(3), torch.zeros(3)) == 0.0
    assert error_of(torch.zeros(3), torch.full((3,), 1e-30)) > 1
    assert error_of(torch.zeros(0, 4), torch.zeros(0, 4)) == 0.0


def test_places_and_decisions_must_be_equal() -> None:
    places = torch.tensor([3, 1])
    assert error_of(places, torch.tensor([3, 1])) == 0.0
    assert error_of(places, torch.tensor([3, 2])) == INFINITE
    assert error_of(torch.tensor([True]), torch.tensor([False])) == INFINITE
    assert error_of(7, 7) == 0.0
    assert error_of(7, 8) == error_of("mean", "sum") == INFINITE


def test_complex_outputs_are_compared_by_both_parts() -> None:
    expected = torch.tensor([1 + 1j, 2 + 0j])
    assert error_of(expected, expected + 1e-7j) == pytest.approx(5e-8, rel=0.3)
    assert error_of(expected, expected.conj()) == pytest.approx(1)
    assert tolerance([expected]) == tolerance([torch.zeros(1)])


def test_the_tolerance_is_that_of_the_coarsest_output() -> None:
    fine, coarse = torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.bfloat16)
    assert tolerance([fine]) < tolerance([torch.zeros(1)]) < tolerance([coarse]) == tolerance([fine, coarse])
    assert tolerance([torch.zeros(1, dtype=torch.long), "a word"]) == 0.0


def test_sums_in_another_order_are_the_same_and_a_dropped_unit_is_not() -> None:
    model = nets.lively(nets.Mlp())
    other = nets.lively(nets.Mlp())
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for name, axis in (("fc1.weight", 0), ("fc1.bias", 0), ("fc2.weight", 1)):
            parameter = other.get_parameter(name)
            parameter.copy_(parameter.index_select(axis, order))
    inputs = (nets.image(8, 1, 4, 4),)
    expected = run(model, inputs)
    assert relative_error(expected, run(other, inputs)) <= tolerance(expected)
    with torch.no_grad():
        other.get_parameter("fc2.weight")[:, 0] = 0
    assert relative_error(expected, run(other, inputs)) > 100 * tolerance(expected)


def test_a_run_is_flat_in_eval_mode_without_gradients_and_leaves_no_trace() -> None:
    model = Several().train()
    first, more, twice, number = run(model, (torch.ones(4, requires_grad=True),))
    assert first.tolist() == [1] * 4  # no dropout
    assert more.tolist() == twice.tolist() == [2] * 4
    assert not more.requires_grad
    assert number == 7
    assert model.training
    assert model.drop.training
    assert model.calls == 0


def test_rounding_that_a_network_amplifies_is_distinguished_from_a_mistake_in_double_precision() -> None:
    model, x = nets.lively(Amplifying()), nets.image(64, 6)
    other = nets.lively(Amplifying())
    with torch.no_grad():
        mixed = torch.randperm(16, generator=torch.Generator().manual_seed(0))
        for name, axis in (("fc1.weight", 0), ("fc1.bias", 0), ("fc2.weight", 1)):
            parameter = other.get_parameter(name)
            parameter.copy_(parameter.index_select(axis, mixed))  # the same function in another order of sums
    outcome = compared(partial(run, model, (x,)), partial(run, other, (x,)))
    assert outcome.error < 1e-11
    assert tolerance([x]) < outcome.rounding < 1e-2
    assert outcome.same
    with torch.no_grad():
        other.get_parameter("fc2.bias")[0] += 2e-6
    outcome = compared(partial(run, model, (x,)), partial(run, other, (x,)))
    assert outcome.error < 1e-2
    assert not outcome.same


def test_what_a_network_casts_itself_is_run_in_double_precision_too() -> None:
    model, x = nets.lively(Amplifying()), nets.image(64, 6)
    (found,) = run(model, (x,), Precision.DOUBLE)
    assert found.dtype == torch.float64
    with torch.no_grad():
        wide: Any = nets.lively(Amplifying()).double()
        exact = torch.sin(1e3 * wide.fc2(torch.relu(wide.fc1(x.double()))))
    assert error_of(exact, found) < 1e-11


def test_a_cut_of_such_a_network_is_made_and_verified() -> None:
    model, x = nets.lively(Amplifying(700)), nets.image(64, 6)  # on some processors 16 terms round alike
    small, plan, groups = halved(model, x)
    found = verify(model, small, plan, groups)
    assert found.max_relative_error < 1e-11
    assert 1e-5 < found.rounding < 1e-2
    assert done(small).form == "module"


class Stars(nn.Module):
    """Two branches multiplied, many times, as in StarNet: what is in the last place becomes the first."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(6, 16), nn.Linear(16, 5)
        self.first, self.second, self.back = (
            nn.ModuleList(nn.Linear(a, b) for _ in range(10)) for a, b in ((16, 500), (16, 500), (500, 16))
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for first, second, back in zip(self.first, self.second, self.back, strict=True):
            x = torch.sin(10 * back(first(x) * second(x)) + x)
        out: Tensor = self.head(x)
        return out


@pytest.mark.parametrize("form", ["module", "graph"])
def test_no_rounding_is_a_mistake_and_no_mistake_rounding_in_a_network_that_makes_ten_million_of_one(
    form: str,
) -> None:
    model, x = nets.lively(Stars()), nets.image(16, 6)
    small, plan, groups = halved(model, x, form)
    found = verify(model, small, plan, groups)
    assert 1e-11 < found.max_relative_error < 1e-5
    assert found.rounding > 1e-2
    for name, parameter in [*small.named_parameters()][::12]:
        right = parameter[0].clone()
        with torch.no_grad():
            parameter[0] = parameter[-1]
            with pytest.raises(ModelError, match=f'first layer that differs is "{name.rpartition(".")[0]}"'):
                verify(model, small, plan, groups)
            parameter[0] = right


class Single(Amplifying):
    """It knows single precision only."""

    def forward(self, x: Tensor) -> Tensor:
        if (hidden := self.fc1(x)).dtype != torch.float32:
            raise RuntimeError("expected Float, found Double")
        return torch.sin(1e3 * self.fc2(hidden))


def test_where_double_precision_cannot_be_had_the_networks_own_must_do() -> None:
    model, x = nets.lively(Single()), nets.image(64, 6)
    off = 1 + 1e-6
    outcome = compared(partial(run, model, (x,)), partial(run, model, (x * off,)))
    assert 1e-5 < outcome.error < 1e-2
    assert not outcome.same
