import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deadweight.targets.errors import ArtifactError, MeasurementError
from deadweight.targets.timing.measurement import Mark, Measurement, Protocol, load, save

WALL_NS = np.random.default_rng(0).integers(50_000, 60_000, size=(6, 5, 4))


def a_measurement(wall_ns: np.ndarray = WALL_NS, *, runs: int = 2) -> Measurement:
    return Measurement(
        name="pruned",
        model_sha256="ab" * 32,
        file_bytes=1234,
        run_id="run",
        wall_ns=wall_ns,
        cpu_ns=wall_ns.sum(axis=-1),
        runs=runs,
        protocol=Protocol(events=6),
        conditions={"machine": {"cpu": "a CPU"}},
        marks=(Mark(3, "throttled 2 times"),),
    )


def test_a_measurement_comes_back_from_its_file_sample_by_sample(tmp_path: Path) -> None:
    before = a_measurement()
    assert before.cpu_ns is not None
    save({"pruned": before, "int8": replace(before, name="int8", cpu_ns=None)}, tmp_path / "m.json")
    after = load(tmp_path / "m.json")
    assert list(after) == ["pruned", "int8"]
    assert after["int8"].cpu_ns is None
    assert np.array_equal(after["pruned"].wall_ns, before.wall_ns)
    assert after["pruned"].cpu_ns is not None
    assert np.array_equal(after["pruned"].cpu_ns, before.cpu_ns)
    assert after["pruned"].to_json() == before.to_json()
    assert after["pruned"].marks == before.marks


def test_a_sample_costs_no_more_than_its_digits_in_the_file() -> None:
    measurement = a_measurement()
    digits = sum(len(str(time)) + 1 for time in measurement.wall_ns.ravel().tolist())
    assert len(json.dumps(measurement.to_json()["wall_ns"])) < digits + 100


def test_times_are_seconds_of_one_run() -> None:
    measurement = a_measurement(np.full((2, 3, 4), 1000), runs=2)
    assert measurement.wall_s[0, 0, 0] == pytest.approx(500e-9)
    assert measurement.cpu_s is not None
    assert measurement.cpu_s[0, 0] == pytest.approx(500e-9)


def test_one_interruption_does_not_move_a_blocks_wall_time() -> None:
    wall_ns = np.full((1, 1, 5), 1000)
    wall_ns[0, 0, 2] = 1_000_000
    assert a_measurement(wall_ns, runs=1).block_s("wall")[0, 0] == pytest.approx(1000e-9)


def test_a_clock_that_was_not_read_is_an_error() -> None:
    with pytest.raises(MeasurementError, match="no times by the clock 'cpu'"):
        replace(a_measurement(), cpu_ns=None).block_s("cpu")


@pytest.mark.parametrize(
    ("wall_ns", "message"),
    [
        (np.zeros((0, 5, 4), np.int64), "no usable samples"),
        (np.full((2, 3), 5), "no usable samples"),
        (np.full((2, 3, 4), 0), "not positive"),
        (np.full((2, 3, 4), -7), r"not positive \(smallest: -7 ns\)"),
        (np.full((2, 3, 4), np.nan), "not positive"),
    ],
)
def test_samples_that_no_clock_gives_are_refused(wall_ns: np.ndarray, message: str) -> None:
    with pytest.raises(MeasurementError, match=message):
        a_measurement(wall_ns)


def test_cpu_times_of_another_shape_are_refused() -> None:
    measurement = a_measurement()
    assert measurement.cpu_ns is not None
    with pytest.raises(MeasurementError, match=r"CPU times of shape \[5, 5\]"):
        replace(measurement, cpu_ns=measurement.cpu_ns[1:])


def test_evidence_of_an_unknown_kind_is_refused() -> None:
    with pytest.raises(MeasurementError, match="no evidence 'guessed'"):
        replace(a_measurement(), evidence="guessed")


@pytest.mark.parametrize("key", sorted(a_measurement().to_json()))
def test_a_file_that_lacks_something_is_refused(key: str) -> None:
    value = a_measurement().to_json()
    del value[key]
    with pytest.raises(MeasurementError, match=f"'{key}'|schema None"):
        Measurement.from_json(value)


@pytest.mark.parametrize(
    ("key", "wrong", "message"),
    [
        ("schema", 2, "schema 2; this version reads 1"),
        ("wall_ns", ["1 2 x"], "is incomplete"),
        ("wall_ns", ["1 2"], "is incomplete"),
        ("protocol", {"evnts": 3}, "A protocol has the unknown key evnts"),
        ("marks", [[1]], "is incomplete"),
        ("wall_ns", [7], "is incomplete"),
        ("shape", [0, 4, 1], "is incomplete"),
        ("runs", 0, "is incomplete"),
        ("conditions", {"machine": 3, "software": {}}, "is incomplete"),
    ],
)
def test_a_file_with_something_wrong_in_it_is_refused(key: str, wrong: Any, message: str) -> None:
    with pytest.raises(MeasurementError, match=message):
        Measurement.from_json({**a_measurement().to_json(), key: wrong})


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MeasurementError, match="schema None"):
        Measurement.from_json(json.loads("[]"))
    for empty in ("{}", '{"measurements": []}'):
        (tmp_path / "a.json").write_text(empty)
        with pytest.raises(MeasurementError, match="contains no measurements"):
            load(tmp_path / "a.json")
    with pytest.raises(ArtifactError, match="does not exist"):
        load(tmp_path / "b.json")


@pytest.mark.parametrize(
    "wrong",
    [{"events": 0}, {"threads": 0}, {"event_s": -1.0}, {"block_s": float("nan")}, {"clock_share": 0.0}],
)
def test_a_protocol_that_cannot_be_followed_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(MeasurementError):
        Protocol(**wrong)


def test_a_protocol_comes_back_from_json() -> None:
    protocol = Protocol(events=7, inputs="given:abc")
    assert Protocol.from_json(json.loads(json.dumps(asdict(protocol)))) == protocol


def test_a_percentile_is_that_of_all_samples() -> None:
    wall_ns = np.arange(1, 101).reshape(4, 5, 5) * 1000
    assert a_measurement(wall_ns, runs=1).latency_s(50).value == pytest.approx(51e-6)
    assert a_measurement(wall_ns, runs=1).latency_s(99).value == pytest.approx(100e-6)
    assert a_measurement(wall_ns, runs=1).latency_s(100).value == pytest.approx(100e-6)


def test_the_interval_of_a_median_covers_it_though_samples_depend_on_each_other() -> None:
    # Events differ by 3 %, samples within one by 0.3 %: 24 events tell 24 things, not 2,400.
    generator = np.random.default_rng(1)
    draws, hits, hits_if_independent = 100, 0, 0
    for _ in range(draws):
        events = 1e6 * np.exp(0.03 * generator.standard_normal((24, 1, 1)))
        wall_ns = (events * np.exp(0.003 * generator.standard_normal((24, 10, 10)))).astype(np.int64)
        interval = a_measurement(wall_ns, runs=1).latency_s(50)
        hits += interval.low <= 1e-3 <= interval.high
        flat = np.sort(wall_ns.ravel())
        half = 0.98 * np.sqrt(flat.size)
        low, high = flat[int(flat.size / 2 - half)], flat[int(flat.size / 2 + half)]
        hits_if_independent += low <= 1e6 <= high
    assert hits / draws > 0.88  # 95 % nominal; a bootstrap of 24 events is a little short
    assert hits_if_independent / draws < 0.5
