"""Two engines side by side, however each was fused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from deadweight.targets.engines.compare import UNJUDGED, compare_engines
from deadweight.targets.engines.content import Engine, engine_of, read_engine, timed

EXPORTS = Path(__file__).parent / "exports"


def engine(times: dict[str, float], name: str = "e", **types: str) -> Engine:
    layers: list[dict[str, Any]] = [
        {"Name": each, "LayerType": types.get(each.replace("/", ""), "CaskConvolution")} for each in times
    ]
    return timed(engine_of({"Layers": layers}, name=name), times)


def test_layers_are_matched_by_their_nodes_however_they_were_fused() -> None:
    before = engine({"a/Conv": 2.0, "a/Relu": 1.0, "b/Conv + b/Relu": 4.0})
    after = engine({"a/Conv + a/Relu": 1.0, "b/Conv": 1.0, "b/Relu": 1.0})
    found = compare_engines(before, after)
    assert found.matched_by == "nodes"
    assert [(pair.before_s, pair.after_s, pair.speedup) for pair in found.pairs] == [(3, 1, 3), (4, 2, 2)]
    assert found.speedup == pytest.approx(7 / 3)
    assert UNJUDGED in found.remarks


def test_a_copy_is_counted_to_the_layer_that_it_serves() -> None:
    copy = "Reformatting CopyNode for Input Tensor 0 to a/Conv"
    found = compare_engines(engine({copy: 1.0, "a/Conv": 2.0}), engine({"a/Conv": 2.0}))
    assert [(pair.before_s, pair.after_s) for pair in found.pairs] == [(3, 2)]


def test_a_layer_that_was_pruned_away_stands_alone() -> None:
    found = compare_engines(
        engine({"a/Conv": 1.0, "b/Conv": 1.0, "c/Conv": 1.0}), engine({"a/Conv": 1.0, "c/Conv": 1.0})
    )
    assert [(bool(pair.before), bool(pair.after)) for pair in found.pairs] == [
        (True, True),
        (True, False),
        (True, True),
    ]
    assert found.pairs[1].speedup is None
    assert "1 of 3 groups are in one engine only." in found.remarks


def test_modules_match_where_nodes_were_renamed() -> None:
    found = compare_engines(
        engine({"a.weight + Conv_0": 2.0}), engine({"a.weight + QuantizeLinear_3 + Conv_5": 1.0})
    )
    assert found.matched_by == "modules"
    assert [pair.speedup for pair in found.pairs] == [2]
    assert found.pairs[0].name == "a"


def test_the_published_engines_share_no_names_and_are_matched_in_order() -> None:
    before, after = (
        read_engine(EXPORTS / f"{name}.graph.json", profile=EXPORTS / f"{name}.profile.json")
        for name in ("fp16", "qat")
    )
    found = compare_engines(before, after)
    assert found.matched_by == "order"
    pairs = {pair.name: pair for pair in found.pairs}
    assert pairs["layer1.0.conv1"].speedup == pytest.approx(53.248 / 32.768)
    assert pairs["MaxPool_2"].after_s == pytest.approx((95.232 + 36.864) * 1e-6)  # with the copy after it
    products = [pair for pair in found.pairs if any(layer.product for layer in pair.before)]
    assert len(products) == 21
    assert all(pair.after for pair in products)
    assert found.speedup == pytest.approx(1.016832 / 1.09568)


def test_no_layer_is_lost_or_counted_twice() -> None:
    before, after = (read_engine(EXPORTS / f"{name}.graph.json") for name in ("fp16", "qat"))
    found = compare_engines(before, after)
    assert sorted(layer.name for pair in found.pairs for layer in pair.before) == sorted(
        layer.name for layer in before.layers
    )
    assert sorted(layer.name for pair in found.pairs for layer in pair.after) == sorted(
        layer.name for layer in after.layers
    )


def test_engines_that_were_not_timed_have_no_ratio() -> None:
    found = compare_engines(engine_of({"Layers": ["a"]}, name="a"), engine_of({"Layers": ["a"]}, name="b"))
    assert found.speedup is None
    assert found.pairs[0].speedup is None
