from __future__ import annotations

from dataclasses import replace

import numpy as np

from benchmarks.gate.ragged_widths import counted
from deadweight.targets.target import load_target
from deadweight.targets.timing.layer_reasons import explained
from deadweight.targets.timing.layers import Layer, judge_layers

X86 = load_target("x86-cpu")


def layer(time_us: float, *, weight: tuple[int, ...], name: str = "conv", kind: str = "Conv") -> Layer:
    """A layer that always takes so long, and has a hundred places to apply its weight to."""
    size = int(np.prod(weight))
    return Layer(
        name,
        kind,
        np.full((24, 3), 1e-6 * time_us),
        weight=weight,
        moved_bytes=4 * size,
        macs=100 * size,
        kernels=("Conv",),
    )


# Others in the network, so that the machine's rates and its shortest kernel are known.
OTHERS = {
    "tiny": layer(2, weight=(1, 1, 1, 1), name="tiny"),
    "fast": layer(50, weight=(64, 64, 3, 3), name="fast"),
}


def reason(before: Layer, after: Layer) -> str:
    baseline, candidate = {"conv": before, **OTHERS}, {"conv": after, **OTHERS}
    judged = judge_layers(baseline, candidate)
    return explained(judged, baseline, candidate, target=X86)[0].reason


def test_a_width_off_the_multiple_is_named_with_the_next_one_up() -> None:
    text = reason(layer(100, weight=(64, 64, 3, 3)), layer(130, weight=(63, 64, 3, 3)))
    assert "63 output channels are not a multiple of 16: 64 cost no more" in text


def test_an_advised_width_is_not_blamed_on_alignment() -> None:
    text = reason(layer(100, weight=(64, 64, 3, 3)), layer(101, weight=(48, 64, 3, 3)))
    assert "multiple of" not in text


def test_conversions_that_eat_the_gain_are_named() -> None:
    before = layer(100, weight=(64, 64, 3, 3))
    after = replace(layer(101, weight=(48, 64, 3, 3)), conversion_s=20e-6, kernels=("Conv", "ReorderOutput"))
    text = reason(before, after)
    assert "20 µs more go into conversions of layout or type (ReorderOutput)" in text


def test_a_layer_as_short_as_any_kernel_is_bound_by_launching() -> None:
    text = reason(layer(3, weight=(64, 64, 1, 1)), layer(3, weight=(32, 64, 1, 1)))
    assert "bound by its launch" in text


def test_a_layer_that_moves_much_for_little_is_bound_by_memory() -> None:
    before = replace(layer(500, weight=(512, 512)), kind="Gemm", moved_bytes=40_000_000, macs=262_144)
    after = replace(layer(500, weight=(256, 512)), kind="Gemm", moved_bytes=39_000_000, macs=131_072)
    text = reason(before, after)
    assert "bound by memory" in text
    assert "98 % of the bytes are left for 50 % of the products" in text


def test_a_faster_layer_and_one_that_was_not_pruned_need_no_reason() -> None:
    wide = layer(100, weight=(64, 64, 3, 3))
    assert reason(wide, layer(50, weight=(32, 64, 3, 3))) == ""
    assert reason(wide, layer(130, weight=(64, 64, 3, 3))) == ""


def noisy(time_us: float, *, weight: tuple[int, ...]) -> Layer:
    """A layer whose events differ by a tenth either way."""
    steady = layer(time_us, weight=weight)
    spread = 1 + 0.1 * np.sin(np.arange(24) ** 2)[:, None]
    return replace(steady, times_s=steady.times_s * spread, macs=10**9)


def test_a_gain_that_the_run_could_not_see_is_distinguished_from_no_gain() -> None:
    before = replace(layer(100, weight=(640, 64, 1, 1)), macs=10**9)
    text = reason(before, noisy(99, weight=(624, 64, 1, 1)))
    assert "a gain was not seen: 2.5 % of its weights were removed" in text
    text = reason(before, replace(layer(100, weight=(624, 64, 1, 1)), macs=10**9))
    assert text == "its profile shows none of the known reasons"  # 2.5 % would have shown in this one


def test_where_nothing_shows_that_is_said_and_reasons_are_counted_by_kind() -> None:
    busy = replace(layer(100, weight=(64, 64, 3, 3)), macs=10**9)
    after = replace(layer(100, weight=(48, 64, 3, 3)), macs=10**9)
    baseline, candidate = {"conv": busy, **OTHERS}, {"conv": after, **OTHERS}
    text = explained(judge_layers(baseline, candidate), baseline, candidate, target=X86)
    assert text[0].reason == "its profile shows none of the known reasons"
    assert counted(text) == {"unknown": 1}
