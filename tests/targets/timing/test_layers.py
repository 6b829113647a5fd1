from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import stats

from deadweight.targets.errors import MeasurementError
from deadweight.targets.plain import plain
from deadweight.targets.timing.layers import Layer, LayerJudgement, holm, judge_layers, matching


def network(generator: np.random.Generator, ratios: list[float], *, events: int = 24) -> dict[str, Layer]:
    """Layers that take 1 ms over their ratio, with the luck of each load and the noise of each round."""
    return {
        f"layer{at}": Layer(
            f"layer{at}",
            "Conv",
            1e-3
            / ratio
            * np.exp(
                0.01 * generator.standard_normal((events, 1)) + 0.02 * generator.standard_normal((events, 5))
            ),
            weight=(16, 16, 3, 3) if ratio == 1 else (12, 16, 3, 3),
        )
        for at, ratio in enumerate(ratios)
    }


def test_null_layers_are_called_faster_in_no_more_families_than_it_says() -> None:
    generator = np.random.default_rng(0)
    wrong = 0
    for _ in range(200):
        judged = judge_layers(network(generator, [1.0] * 20), network(generator, [1.0] * 20))
        wrong += any(one.outcome == "faster" for one in judged)
    # 2.5 % of 200 families are 5; the binomial's upper end at p = 0.001 is 13.
    assert wrong <= 13


def test_without_the_correction_many_more_families_would_be_wrong() -> None:
    generator = np.random.default_rng(1)
    wrong = 0
    for _ in range(100):
        before, after = network(generator, [1.0] * 20), network(generator, [1.0] * 20)
        wrong += any(
            judge_layers({name: before[name]}, {name: after[name]})[0].p_value < 0.05 for name in before
        )
    assert wrong > 15


def test_planted_layers_are_found_and_their_intervals_hold_them_all() -> None:
    generator = np.random.default_rng(2)
    planted = [1.0, 1.33, 1.0, 0.8, 1.33]
    judged = judge_layers(network(generator, [1.0] * 5), network(generator, planted))
    assert [one.outcome for one in judged][1] == "faster"
    assert [one.outcome for one in judged][3] == "slower"
    assert all(one.low <= ratio <= one.high for one, ratio in zip(judged, planted, strict=True))
    assert [one.pruned for one in judged] == [False, True, False, True, True]
    assert [one.outcome for one in judged].count("faster") == 2


def test_too_few_events_for_so_many_layers_cannot_tell() -> None:
    generator = np.random.default_rng(3)
    judged = judge_layers(network(generator, [1.0] * 20, events=6), network(generator, [2.0] * 20, events=6))
    assert {one.outcome for one in judged} == {"cannot_tell"}
    assert plain(judged[0])["high"] is None
    assert json.dumps(plain(judged[0]), allow_nan=False)


def test_holms_correction_is_that_of_the_books() -> None:
    p_values = [0.01, 0.04, 0.03, 0.005]
    assert holm(p_values) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


def test_the_sign_test_is_scipys() -> None:
    generator = np.random.default_rng(4)
    before, after = network(generator, [1.0]), network(generator, [1.02])
    ratios = np.median(np.log(before["layer0"].times_s / after["layer0"].times_s), axis=1)
    most = max((ratios > 0).sum(), (ratios < 0).sum())
    expected = stats.binomtest(int(most), ratios.size).pvalue
    assert judge_layers(before, after)[0].p_value == pytest.approx(expected)


def test_layers_of_other_names_are_matched_by_their_order_where_their_kinds_agree() -> None:
    generator = np.random.default_rng(5)
    before = network(generator, [1.0, 1.0])
    after = {f"node_{at}": layer for at, layer in enumerate(network(generator, [1.0, 1.0]).values())}
    assert matching(before, after) == {"layer0": "node_0", "layer1": "node_1"}
    after["node_2"] = after["node_1"]
    with pytest.raises(MeasurementError, match="cannot be matched"):
        matching(before, after)


def test_a_profile_without_layers_is_refused() -> None:
    with pytest.raises(MeasurementError, match="names no layers"):
        judge_layers({}, network(np.random.default_rng(6), [1.0]))


@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf])
def test_times_that_no_clock_gives_are_refused(bad: float) -> None:
    before = network(np.random.default_rng(7), [1.0])
    after = network(np.random.default_rng(8), [1.0])
    after["layer0"].times_s[3, 2] = bad
    with pytest.raises(MeasurementError, match="not positive and finite"):
        judge_layers(before, after)


def test_times_of_another_shape_are_refused() -> None:
    generator = np.random.default_rng(9)
    with pytest.raises(MeasurementError, match="cannot be paired"):
        judge_layers(network(generator, [1.0], events=6), network(generator, [1.0], events=7))


def test_a_layer_within_one_tick_of_the_clock_is_neither_equal_nor_faster() -> None:
    ticks = {us: np.full((24, 5), us * 1e-6) for us in (2.5, 3.5, 250.5)}

    def judged(before_us: float, after_us: float, resolution_s: float) -> LayerJudgement:
        before, after = (
            {"layer": Layer("layer", "Relu", ticks[us], resolution_s=resolution_s)}
            for us in (before_us, after_us)
        )
        return judge_layers(before, after)[0]

    same = judged(2.5, 2.5, 0.5e-6)  # 2.1 against 2.9 would be called equal
    assert same.outcome == "cannot_tell"
    assert same.low < 2.1 / 2.9
    assert same.high > 2.9 / 2.1
    assert judged(2.5, 2.5, 0.0).outcome == "equal"
    assert judged(3.5, 2.5, 0.5e-6).outcome == "cannot_tell"  # 3.1 against 2.9, perhaps
    assert judged(3.5, 2.5, 0.0).outcome == "faster"
    assert judged(250.5, 250.5, 0.5e-6).outcome == "equal"
