import gc
import os
import subprocess
import sys
import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from deadweight.targets.errors import MeasurementError, ModelError
from deadweight.targets.runtimes.open import open_session
from deadweight.targets.runtimes.session import Session
from deadweight.targets.timing.clock import Protocol, time_together
from deadweight.targets.timing.judge import judge
from deadweight.targets.timing.measurement import Measurement

MakeMlp = Callable[..., Path]
QUICK = Protocol(events=3, event_s=0.01, block_s=0.001, settle_s=0.0005)


def test_models_are_timed_together_and_every_sample_is_kept(mlp: MakeMlp) -> None:
    small, big = mlp(64, 32, 10, name="small.onnx"), mlp(64, 512, 10, name="big.onnx")
    calls: list[tuple[int, int]] = []
    timed = time_together(
        {"big": big, "small": small}, protocol=QUICK, progress=lambda done, total: calls.append((done, total))
    )
    assert list(timed) == ["big", "small"]
    assert calls == [(1, 3), (2, 3), (3, 3)]
    for name, path in (("big", big), ("small", small)):
        measurement = timed[name]
        assert measurement.events == 3
        assert measurement.wall_ns.shape[1] >= QUICK.min_rounds
        assert measurement.cpu_ns is not None
        assert measurement.cpu_ns.shape == measurement.wall_ns.shape[:2]
        assert measurement.file_bytes == path.stat().st_size
        assert measurement.evidence == "measured"
        assert measurement.protocol == QUICK
        assert measurement.conditions["machine"]["cores"] >= 1
        # One thread: its CPU time is no more than the wall time, but for what the two clocks cost.
        assert (measurement.cpu_ns <= 1.05 * measurement.wall_ns.sum(axis=2) + 20_000).mean() > 0.9
    assert timed["big"].run_id == timed["small"].run_id
    assert judge(timed["big"], timed["small"]).events == 3


def test_more_threads_have_no_cpu_clock(mlp: MakeMlp) -> None:
    protocol = Protocol(events=1, event_s=0.01, threads=2)
    assert time_together({"a": mlp(64, 32)}, protocol=protocol)["a"].cpu_ns is None


def test_a_batch_takes_longer_than_one_sample(mlp: MakeMlp) -> None:
    path = mlp(256, 512, 10)
    one = time_together({"a": path}, protocol=QUICK)["a"]
    many = time_together({"a": path}, protocol=replace(QUICK, batch=64))["a"]
    assert np.median(many.wall_s) > 3 * np.median(one.wall_s)


def test_a_fixed_batch_is_not_timed_as_another_one(mlp: MakeMlp) -> None:
    models = {"open": mlp(64, 10), "fixed": mlp(64, 10, name="fixed.onnx", batch=1)}
    with pytest.raises(ModelError, match=r"fixed.onnx cannot be timed with batch 8: .* x \[1, 64\]"):
        time_together(models, protocol=replace(QUICK, batch=8))
    assert time_together(models, protocol=QUICK)["fixed"].protocol.batch == 1


def test_the_inputs_of_a_model_are_recorded_and_different_ones_are_a_remark_of_the_judgement(
    mlp: MakeMlp,
) -> None:
    models = {"a": mlp(64, 10), "b": mlp(64, 32, 10, name="b.onnx"), "c": mlp(32, 10, name="c.onnx")}
    measured = time_together(models, protocol=QUICK)
    assert measured["a"].conditions["inputs"]["c"] == ["float32[1, 32]"]
    assert not any("different inputs" in remark for remark in judge(measured["a"], measured["b"]).remarks)
    remark = "the two models have different inputs: float32[1, 64] and float32[1, 32]"
    assert remark in judge(measured["a"], measured["c"]).remarks


def test_given_inputs_are_fed_and_become_part_of_the_protocol(mlp: MakeMlp) -> None:
    inputs = {"x": np.ones((3, 64), np.float32)}
    timed = time_together({"a": mlp(64, 32)}, protocol=QUICK, inputs=inputs)
    assert timed["a"].protocol.inputs.startswith("given:")
    other = time_together({"a": mlp(64, 32)}, protocol=QUICK, inputs={"x": np.zeros((3, 64), np.float32)})
    assert other["a"].protocol != timed["a"].protocol


def test_inputs_that_do_not_fit_are_refused(mlp: MakeMlp) -> None:
    with pytest.raises(ModelError, match="cannot run on these inputs"):
        time_together({"a": mlp(64, 32)}, protocol=QUICK, inputs={"x": np.zeros((1, 65), np.float32)})


def test_nothing_to_time_is_refused() -> None:
    with pytest.raises(MeasurementError, match="no models to time"):
        time_together({})


def test_a_missing_model_is_refused_before_anything_is_timed(mlp: MakeMlp, tmp_path: Path) -> None:
    calls: list[int] = []
    models = {"a": mlp(64, 32), "b": tmp_path / "none.onnx"}
    with pytest.raises(ModelError, match="There is no model at"):
        time_together(models, progress=lambda done, _: calls.append(done))
    assert calls == []


def test_a_model_that_cannot_be_opened_stops_the_timing_with_its_own_reason(
    mlp: MakeMlp, tmp_path: Path
) -> None:
    (tmp_path / "b.onnx").write_bytes(b"not a model")
    with pytest.raises(ModelError, match=r"b\.onnx is not a complete ONNX file"):
        time_together({"a": mlp(64, 32), "b": tmp_path / "b.onnx"}, protocol=QUICK)


def test_a_model_that_changes_while_it_is_timed_is_refused(mlp: MakeMlp) -> None:
    def overwrite(done: int, total: int) -> None:
        mlp(64, 33)

    with pytest.raises(MeasurementError, match="changed while it was timed"):
        time_together({"a": mlp(64, 32)}, protocol=QUICK, progress=overwrite)


def test_an_interruption_passes_through_and_leaves_collection_on(mlp: MakeMlp) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        time_together({"a": mlp(64, 32)}, protocol=QUICK, progress=interrupt)
    assert gc.isenabled()


def test_the_models_of_one_event_are_gone_before_the_next_is_loaded(mlp: MakeMlp) -> None:
    loaded: list[weakref.ref[Any]] = []
    alive: list[int] = []

    def opened(path: Path, *, runtime: str, threads: int) -> Session:
        alive.append(sum(one() is not None for one in loaded))
        session: Any = open_session(path, runtime=runtime, threads=threads)
        loaded.append(weakref.ref(session._session))  # ONNX Runtime's own, which holds the weights
        return cast(Session, session)

    path = mlp(64, 32, 10)
    time_together({"a": path, "b": path}, protocol=replace(QUICK, events=6), opened=opened)
    assert alive == [0, 1] * 6


@pytest.mark.slow
def test_the_same_file_twice_is_not_called_faster_nor_slower(mlp: MakeMlp) -> None:
    path = mlp(784, 512, 10)
    outcomes = []
    for _ in range(3):
        timed = time_together({"a": path, "b": path})
        outcomes.append(judge(timed["a"], timed["b"]).outcome)
    # One false alarm in a hundred is allowed for; two in three are not.
    assert sum(outcome in ("equal", "cannot_tell") for outcome in outcomes) >= 2


@pytest.mark.slow
def test_a_layer_more_is_found_to_be_slower_and_a_narrower_net_faster(mlp: MakeMlp) -> None:
    timed = time_together(
        {
            "base": mlp(784, 512, 10, name="a.onnx"),
            "deeper": mlp(784, 512, 256, 10, name="b.onnx"),
            "narrower": mlp(784, 256, 10, name="c.onnx"),
        }
    )
    assert judge(timed["base"], timed["deeper"]).outcome == "slower"
    assert judge(timed["base"], timed["narrower"]).outcome == "faster"


@pytest.mark.slow
def test_a_busy_machine_is_marked_and_no_sample_is_dropped(mlp: MakeMlp) -> None:
    path = mlp(784, 512, 10)
    burn = "while True: pass"
    others = [subprocess.Popen([sys.executable, "-c", burn]) for _ in range(2 * (os.cpu_count() or 1))]
    try:
        timed = time_together({"a": path, "b": path}, protocol=Protocol(events=3, event_s=0.05))
    finally:
        for other in others:
            other.kill()
            other.wait()
    assert any("other programs left" in mark.what for mark in timed["a"].marks)
    assert timed["a"].events == 3
    assert judge(timed["a"], timed["b"]).remarks


def test_it_ends_when_decided_accepts_and_asks_only_at_the_looks(mlp: MakeMlp) -> None:
    asked: list[int] = []

    def decided(measured: Mapping[str, Measurement]) -> bool:
        asked.append(measured["a"].events)
        return len(asked) == 2

    protocol = replace(QUICK, events=9)
    timed = time_together({"a": mlp(64, 32)}, protocol=protocol, looks=(2, 5, 7), decided=decided)
    assert asked == [2, 5]
    assert timed["a"].events == 5


def test_no_event_is_begun_after_the_time_cap(mlp: MakeMlp) -> None:
    timed = time_together({"a": mlp(64, 32)}, protocol=replace(QUICK, events=100, cap_s=0.001))
    assert timed["a"].events == 1


def test_whatever_can_be_opened_can_be_timed_and_gets_runtime_and_threads(mlp: MakeMlp) -> None:
    calls = []

    def opened(path: Path, *, runtime: str, threads: int) -> Session:
        calls.append((path, runtime, threads))
        return open_session(path, threads=threads)

    path = mlp(64, 32)
    timed = time_together({"a": path}, protocol=replace(QUICK, events=1, runtime="torch"), opened=opened)
    assert calls == [(path, "torch", 1)]
    assert timed["a"].cpu_ns is not None
