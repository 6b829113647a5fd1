"""The moments agree with a two-pass float64 reference, whatever the values, the shape and the layout."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from deadweight.pipeline.importance import moments as under_test
from deadweight.pipeline.importance.moments import Moments, fold, measure, merge

RELATIVE = 1e-5


def two_pass(values: Tensor, axes: tuple[int, ...]) -> dict[str, Tensor]:
    """The textbook way, in float64: first the mean, then the squares of what is left."""
    rest = [axis for axis in range(values.ndim) if axis not in axes]
    slots = math.prod(values.shape[axis] for axis in axes)
    rows = values.double().permute([*axes, *rest]).reshape(slots, -1)
    mean = rows.mean(1)
    return {
        "mean": mean,
        "std": ((rows - mean[:, None]) ** 2).mean(1).sqrt(),
        "magnitude": rows.abs().mean(1),
        "zero_share": (rows == 0).double().mean(1),
        "maximum": rows.amax(1),
    }


def figures(moments: Moments) -> dict[str, Tensor]:
    return {
        "mean": moments.mean,
        "std": (moments.deviation / moments.count).sqrt(),
        "magnitude": moments.magnitude / moments.count,
        "zero_share": 1 - moments.nonzero / moments.count,
        "maximum": moments.maximum,
    }


def assert_agree(moments: Moments, reference: dict[str, Tensor]) -> None:
    for name, found in figures(moments).items():
        # Of a mean that is a difference of large numbers, float64 itself keeps 16 digits of those numbers.
        floor = 1e-13 * reference["magnitude"].max() if name == "mean" else 0.0
        torch.testing.assert_close(found, reference[name], rtol=RELATIVE, atol=float(floor), msg=name)


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


CASES: dict[str, tuple[Callable[[], Tensor], tuple[int, ...]]] = {
    "linear": (lambda: noise(33, 10), (1,)),
    "linear, one sample": (lambda: noise(1, 10), (1,)),
    "linear after ReLU": (lambda: noise(64, 12).relu(), (1,)),
    "tokens": (lambda: noise(3, 9, 12), (2,)),
    "tokens, long": (lambda: noise(2, 4000, 8), (2,)),
    "conv after ReLU": (lambda: noise(8, 6, 20, 20).relu(), (1,)),
    "conv, 3x3 maps": (lambda: noise(8, 6, 3, 3).relu(), (1,)),
    "conv, 1x1 maps": (lambda: noise(8, 6, 1, 1), (1,)),
    "conv, one channel": (lambda: noise(4, 1, 9, 9), (1,)),
    "conv, channels last": (lambda: noise(8, 6, 17, 7).to(memory_format=torch.channels_last), (1,)),
    "conv, a map larger than a tile": (lambda: noise(1, 2, 600, 700), (1,)),
    "conv, more rows than a tile": (lambda: noise(300, 40, 6, 6), (1,)),
    "conv 1-D": (lambda: noise(4, 6, 50), (1,)),
    "conv 3-D": (lambda: noise(2, 3, 5, 6, 7), (1,)),
    "heads and their width": (lambda: noise(2, 3, 5, 8), (1, 3)),
    "heads, a transposed view": (lambda: noise(2, 5, 3, 8).transpose(1, 2), (1, 3)),
    "every second column": (lambda: noise(40, 24)[:, ::2], (1,)),
    "the leading axis": (lambda: noise(5, 7, 9), (0,)),
    "expanded": (lambda: noise(4, 1, 3).expand(4, 50, 3), (2,)),
    "no axis at all": (lambda: noise(4, 20), ()),
    "mean 1e4, deviation 1e-2": (lambda: noise(8, 6, 20, 20) * 1e-2 + 1e4, (1,)),
    "mean 1e4, deviation 1e-2, columns": (lambda: noise(500, 6) * 1e-2 + 1e4, (1,)),
    "mean -300, deviation 1": (lambda: noise(8, 6, 20, 20) - 300, (1,)),
    "mean far under deviation": (lambda: noise(8, 6, 50, 50) - noise(8, 6, 50, 50).mean(), (1,)),
    "first value an outlier": (lambda: torch.cat((torch.full((1, 4), 1e6), noise(9999, 4) + 1e5)), (1,)),
    "constant": (lambda: torch.full((3, 4, 30, 30), 0.1), (1,)),
    "constant, columns": (lambda: torch.full((300, 4), -0.1), (1,)),
    "all zero": (lambda: torch.zeros(3, 4, 30, 30), (1,)),
    "one value in 1e4 fires": (lambda: (noise(10, 4, 40, 40) - 3.7).relu(), (1,)),
    "negative only": (lambda: -noise(8, 6, 20, 20).abs(), (1,)),
    "subnormal": (lambda: noise(8, 6, 20, 20) * 1e-40, (1,)),
    "squares overflow float32": (lambda: noise(8, 6, 20, 20) * 1e37, (1,)),
    "largest float32": (lambda: torch.full((4, 3, 30), 3.4e38), (1,)),
    "magnitudes mixed": (lambda: noise(8, 6, 20, 20) * torch.logspace(-30, 30, 20), (1,)),
    "negative zero": (lambda: noise(8, 6, 20, 20).relu() * -1.0, (1,)),
    "float64": (lambda: noise(8, 6, 100).double() * 1e-3 + 1e5, (1,)),
    "bfloat16": (lambda: noise(8, 6, 100).bfloat16(), (1,)),
    "half": (lambda: noise(8, 6, 100).half(), (1,)),
    "whole numbers": (lambda: torch.arange(600).view(100, 6) % 7, (1,)),
}


@pytest.mark.parametrize("case", CASES)
def test_one_batch_agrees_with_two_passes_in_float64(case: str) -> None:
    make, axes = CASES[case]
    values = make()
    assert_agree(measure(values, axes), two_pass(values, axes))


@pytest.mark.parametrize("case", CASES)
def test_large_tensors_keep_to_float32_and_agree_too(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, axes = CASES[case]
    values = make()
    monkeypatch.setattr(under_test, "_SMALL", 0)
    assert_agree(measure(values, axes), two_pass(values, axes))


@pytest.mark.parametrize("case", CASES)
def test_a_tiny_tile_changes_nothing(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, axes = CASES[case]
    values = make()[..., :64]
    monkeypatch.setattr(under_test, "_SMALL", 0)
    monkeypatch.setattr(under_test, "_TILE", 37)
    assert_agree(measure(values, axes), two_pass(values, axes))


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    mean=st.sampled_from((0.0, 1e-6, -1.0, 30.0, 1e4, -1e7)),
    deviation=st.sampled_from((0.0, 1e-8, 1e-2, 1.0, 1e3)),
    drift=st.sampled_from((0.0, 1e-3, 5.0)),
    rectified=st.booleans(),
    small=st.sampled_from((0, 1 << 16)),
    seed=st.integers(0, 1000),
)
def test_batches_of_any_size_merge_to_the_whole(
    sizes: list[int], mean: float, deviation: float, drift: float, rectified: bool, small: int, seed: int
) -> None:
    random = torch.Generator().manual_seed(seed)
    batches = [
        torch.randn(size, 3, 5, generator=random) * deviation + mean + drift * step
        for step, size in enumerate(sizes)
    ]
    batches = [batch.relu() if rectified else batch for batch in batches]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(under_test, "_SMALL", small)
        merged = merge([measure(batch, (1,)) for batch in batches])
    assert_agree(merged, two_pass(torch.cat(batches), (1,)))
    assert merged.measured == 3 * len(sizes)


@pytest.mark.slow
def test_ten_thousand_batches_of_one_sample_lose_nothing() -> None:
    values = noise(10_000, 2) * 1e-2 + 1e4
    merged = measure(values[:1], (1,))
    for row in values[1:].unsqueeze(1):
        merged = merge((merged, measure(row, (1,))))
    assert_agree(merged, two_pass(values, (1,)))


def test_batches_whose_means_cancel_keep_the_digits_of_the_mean() -> None:
    first, second = torch.full((64, 3), 1.0), torch.full((64, 3), -1.0 + 2**-16)
    merged = merge((measure(first, (1,)), measure(second, (1,))))
    torch.testing.assert_close(merged.mean, torch.full((3,), 2.0**-17).double(), rtol=1e-12, atol=0)


def test_only_slots_whose_mean_dwarfs_their_deviation_are_measured_twice() -> None:
    values = noise(8, 6, 20, 20).relu()
    values[:, 2] = noise(8, 20, 20) * 1e-2 + 1e4
    values[:, 4] = 0.5
    values[:, 5] = 0.0
    moments = measure(values, (1,))
    assert (moments.shifted, moments.measured) == (2, 6)


def test_a_plain_sum_of_squares_would_have_failed() -> None:
    """The planted case is a real one: without the shifted pass float32 sums lose the deviation altogether."""
    values = noise(8, 1, 20, 20) * 1e-2 + 1e4
    squares = torch.linalg.vector_norm(values) ** 2 / values.numel()
    naive = (squares - values.mean() ** 2).clamp_min(0).sqrt()
    assert abs(float(naive) / float(two_pass(values, (1,))["std"]) - 1) > 0.5


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("shape", [(8, 6, 20, 20), (50, 6)])
def test_one_value_that_is_no_number_is_seen_in_its_slot_alone(bad: float, shape: tuple[int, ...]) -> None:
    values = noise(*shape)
    values[3, 4] = bad
    moments = measure(values, (1,))
    assert not moments.finite
    assert torch.isnan(moments.deviation).tolist() == [False, False, False, False, True, False]


def test_slots_of_one_unit_are_folded_into_it() -> None:
    """A convolution's channels, flattened: three units over four positions each, and two slots of nobody."""
    values = noise(30, 14) * 1e-2 + torch.arange(14) * 10
    units = torch.tensor([0] * 4 + [1] * 4 + [-1] * 2 + [2] * 4)
    folded = fold(measure(values, (1,)), units, 3)
    whole = torch.stack([values[:, units == unit].reshape(-1) for unit in range(3)], dim=1)
    assert_agree(folded, two_pass(whole, (1,)))
    assert folded.count.tolist() == [120, 120, 120]


def test_equal_slots_fold_to_a_deviation_of_exactly_zero() -> None:
    folded = fold(measure(torch.full((7, 6), 0.1), (1,)), torch.tensor([0, 0, 0, 1, 1, 1]), 2)
    assert folded.deviation.tolist() == [0.0, 0.0]


def test_a_unit_without_a_slot_is_empty_and_merges_as_nothing() -> None:
    values = noise(30, 4)
    moments = measure(values, (1,))
    left = fold(moments, torch.tensor([0, 0, -1, -1]), 2)
    right = fold(moments, torch.tensor([-1, -1, 1, 1]), 2)
    assert left.count.tolist() == [60, 0]
    whole = values.view(30, 2, 2).permute(0, 2, 1).reshape(60, 2)
    assert_agree(merge((left, right)), two_pass(whole, (1,)))
