from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from support.onnx_files import numbers, op, write_network

from benchmarks.budget.planted import Clock, chain
from deadweight.export.onnx_graph.graph import load, save
from deadweight.pipeline.budget.advice import curves, front, sentences, steps
from deadweight.pipeline.budget.grids import Network
from deadweight.pipeline.budget.latency import of_table
from deadweight.pipeline.budget.measured import table_of
from deadweight.pipeline.budget.resized import of_file
from deadweight.pipeline.budget.table import SegmentTable, load_table, smooth
from deadweight.targets.errors import ArtifactError, MeasurementError, ModelError, RecipeError
from deadweight.targets.machine.jetson import BoardState
from deadweight.targets.machine.nvidia_tools import PowerMode
from deadweight.targets.plain import plain
from deadweight.targets.target import load_target
from deadweight.targets.timing.measurement import Measurement, Protocol


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Network:
    """Two convolutions of 32 and 40 channels, at every eighth of them and above."""
    path = chain(tmp_path_factory.mktemp("chain") / "m.onnx", [32, 40])
    made = of_file(load(path), load_target("x86-cpu"))
    return Network(made.file_at, dict.fromkeys(made.levels, (8, 16, 24, 32, 40, 48)), made.dense)


def measured(network: Network, clock: Clock, path: Path) -> SegmentTable:
    return table_of(network, clock.together, path, runtime="onnxruntime", networks=24, twice=6)


@pytest.fixture(scope="module")
def table(network: Network, tmp_path_factory: pytest.TempPathFactory) -> SegmentTable:
    return measured(network, Clock(16, noise=0.002), tmp_path_factory.mktemp("table") / "t.json")


def test_a_planted_clock_is_found_with_its_steps_and_its_free_widths(table: SegmentTable) -> None:
    latency = of_table(table)
    truth = Clock(16)
    held = [table.drawn(key) for key in table.again]
    true = truth.chain_s(np.array([[*one.values()] for one in held]))
    assert np.abs(latency.predicted(held) / true - 1).max() < 0.03
    assert set(steps(table).values()) == {16}
    second = curves(latency, table.dense)[1]
    assert (second.width, second.free, second.cliff) == (40, 48, None)
    assert second.pays
    said = sentences(latency, table.dense)
    assert said[0] == "conv1 is 40 wide and may be 48 in the same time"


def test_a_killed_call_goes_on_and_a_finished_one_measures_nothing(network: Network, tmp_path: Path) -> None:
    class CutError(Exception):
        pass

    clock, calls = Clock(8), 0

    def cut(files: Mapping[str, Path], protocol: Protocol) -> Mapping[str, Measurement]:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise CutError
        return clock.together(files, protocol)

    with pytest.raises(CutError):
        table_of(network, cut, tmp_path / "t.json", runtime="onnxruntime", networks=24, twice=6)
    before = load_table(tmp_path / "t.json")
    assert len(before.seconds) > 10
    whole = measured(network, clock, tmp_path / "t.json")
    assert {key: whole.seconds[key] for key in before.seconds} == before.seconds
    clock.timings = 0
    plans: list[str] = []
    table_of(
        network,
        clock.together,
        tmp_path / "t.json",
        runtime="onnxruntime",
        networks=24,
        twice=6,
        begun=plans.append,
    )
    assert (clock.timings, plans) == (6, [])  # the trial, for the conditions


@pytest.mark.parametrize(("step", "added"), [(32, True), (8, False)])
def test_where_the_time_bends_between_widths_more_are_timed_and_a_killed_call_goes_on(
    step: int, added: bool, tmp_path: Path
) -> None:
    made = of_file(load(chain(tmp_path / "m.onnx", [64, 64])), load_target("x86-cpu"))
    coarse, fine = (dict.fromkeys(made.levels, tuple(range(at, 97, at))) for at in (32, 8))
    network = Network(made.file_at, coarse, made.dense, fine)
    clock, path, calls = Clock(step, noise=0.002), tmp_path / "t.json", 0

    def cut(files: Mapping[str, Path], protocol: Protocol) -> Mapping[str, Measurement]:
        nonlocal calls
        calls += 1
        if calls == 4:  # the trial, the segments, and those timed twice were measured
            raise KeyboardInterrupt
        return clock.together(files, protocol)

    with pytest.raises(KeyboardInterrupt):
        table_of(network, cut, path, runtime="onnxruntime", networks=16)
    assert load_table(path).levels == coarse
    table = table_of(network, clock.together, path, runtime="onnxruntime", networks=16)
    assert 0 < table.entry_noise < 0.005
    if not added:
        assert table.levels == coarse
        return
    for own in table.levels.values():
        assert {*own} > {32, 64, 96}
        assert {*own} <= {*fine["conv0"]}
    assert set(steps(table).values()) == {32}
    assert all(seen.free == 64 for seen in curves(of_table(table), dict.fromkeys(table.levels, 40)))
    clock.timings = 0
    again = table_of(network, clock.together, path, runtime="onnxruntime", networks=16)
    assert (clock.timings, again.seconds) == (6, table.seconds)


def test_noise_is_taken_out_of_the_times_of_a_segment_and_structure_is_not() -> None:
    rng = np.random.default_rng(0)
    one, other = np.ceil(np.arange(1, 13) / 2), np.ceil(np.arange(1, 17) / 4)
    true = 1e-5 + 1e-6 * one[:, None] * other
    noisy = true * np.exp(0.05 * rng.standard_normal(true.shape))
    assert np.abs(smooth(noisy, 0.05) / true - 1).mean() < 0.65 * np.abs(noisy / true - 1).mean()
    assert np.allclose(smooth(noisy, 0.0), noisy)


def test_the_plan_is_said_before_the_timing_begins(network: Network, tmp_path: Path) -> None:
    plans: list[str] = []
    table_of(
        network,
        Clock(8).together,
        tmp_path / "t.json",
        runtime="onnxruntime",
        networks=24,
        begun=plans.append,
    )
    assert "timings are left" in plans[0]
    assert "25 whole networks" in plans[0]


@pytest.mark.parametrize("field", ["power_mode", "clocks", "runtime", "processor"])
def test_a_table_of_other_conditions_is_refused_with_a_cure(
    field: str, network: Network, table: SegmentTable, tmp_path: Path
) -> None:
    change: dict[str, Any] = {field: ("gpu 1 to 2",) if field == "clocks" else "another"}
    other = dataclasses.replace(table, conditions=dataclasses.replace(table.conditions, **change))
    other.save(tmp_path / "t.json")
    with pytest.raises(
        RecipeError, match=rf"other conditions: the {field.replace('_', ' ')} is .* there"
    ) as caught:
        measured(network, Clock(16), tmp_path / "t.json")
    assert "another --out" in str(caught.value)


def test_a_table_of_another_network_is_refused(network: Network, table: SegmentTable, tmp_path: Path) -> None:
    dataclasses.replace(table, network="0" * 64).save(tmp_path / "t.json")
    with pytest.raises(RecipeError, match="the table of another network"):
        measured(network, Clock(16), tmp_path / "t.json")
    other = load(chain(tmp_path / "other.onnx", [32, 44]))
    with pytest.raises(
        RecipeError, match="is not the network of the table: its segment conv1 has other sizes"
    ):
        table.widths_of(other)
    more = load(chain(tmp_path / "more.onnx", [8], size=9))
    with pytest.raises(RecipeError, match="is not the network of the table"):
        table.widths_of(more)


def test_the_widths_of_a_cut_network_are_read_from_its_file(
    network: Network, table: SegmentTable, tmp_path: Path
) -> None:
    save(network.file_at({"conv0": 16, "conv1": 24}), tmp_path / "cut.onnx")
    assert table.widths_of(load(tmp_path / "cut.onnx")) == {"conv0": 16, "conv1": 24}


def test_a_board_that_throttles_ends_it_and_what_was_measured_is_kept(
    network: Network, tmp_path: Path
) -> None:
    clock = Clock(8)

    def hot(files: Mapping[str, Path], protocol: Protocol) -> Mapping[str, Measurement]:
        found = clock.together(files, protocol)
        if clock.timings < 60:
            return found
        before, after = (plain(BoardState(PowerMode(name, None))) for name in ("MAXN", "15W"))
        states = {"state": {"board": before}, "state_after": {"board": after}}
        return {
            name: dataclasses.replace(one, conditions={**one.conditions, **states})
            for name, one in found.items()
        }

    with pytest.raises(MeasurementError, match="power mode went from MAXN to 15W") as caught:
        table_of(network, hot, tmp_path / "t.json", runtime="onnxruntime", networks=24)
    assert "is kept" in str(caught.value)
    assert load_table(tmp_path / "t.json").seconds


def test_a_network_whose_time_depends_on_its_input_is_refused(tmp_path: Path) -> None:
    nodes = [op("MatMul", ["x", "w"], ["h"], name="first"), op("Relu", ["h"], ["r"])]
    nodes += [op("MatMul", ["r", "v"], ["k"], name="second"), op("NonZero", ["k"], ["y"])]
    out = [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.INT64, [2, None])]
    weights = {"w": numbers(4, 8), "v": numbers(8, 3)}
    path = write_network(tmp_path / "m.onnx", nodes, weights, [1, 4], outputs=out)
    network = of_file(load(path), load_target("x86-cpu"))
    with pytest.raises(ModelError, match="NonZero: its time depends on what it is given"):
        table_of(network, Clock(8).together, tmp_path / "t.json", runtime="onnxruntime")


def test_a_damaged_table_is_refused(table: SegmentTable, tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    table.save(path)
    assert load_table(path).networks == table.networks
    whole = json.loads(path.read_text())
    changes: tuple[dict[str, Any], ...] = (
        {"schema": 9},
        {"seconds": {"empty": "fast"}},
        {"choices": [["conv0", [8]]]},
        {"segments": []} | {"dense": {"conv0": 8}},
        {"networks": {"8": 1.0}},
        {"again": {"8/7": 1.0}},
    )
    for change in changes:
        path.write_text(json.dumps({**whole, **change}))
        with pytest.raises(ArtifactError):
            load_table(path)
    path.write_text("no table")
    with pytest.raises(ArtifactError, match="not readable as JSON") as caught:
        load_table(path)
    assert "Delete" not in caught.value.cure  # it may be any file of the user's


def test_the_next_millisecond_costs_damage_where_that_is_known(table: SegmentTable) -> None:
    damage = {
        name: {str(width): 0.01 * (own[-1] - width) for width in own} for name, own in table.levels.items()
    }
    known = dataclasses.replace(table, damage=damage)
    latency = of_table(known)
    plans = front(latency, known.damages())
    times, losses = [seconds for seconds, _ in plans], [plan.value for _, plan in plans]
    assert losses == sorted(losses, reverse=True)
    assert times[0] < 0.5 * times[-1]
    assert any("of the validation loss" in one for one in sentences(latency, known.dense))
    with pytest.raises(RecipeError, match="has no damage"):
        table.damages()
