"""Engines on a machine whose Python has no TensorRT: a stand-in for trtexec builds, times and runs them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from support.onnx_files import save_mlp
from support.trtexec import stand_in

import deadweight
from deadweight.commands.engines import show_engine_layers
from deadweight.targets.engines.build import build_engine
from deadweight.targets.engines.build_settings import BuildSettings
from deadweight.targets.engines.content import runs_of
from deadweight.targets.errors import ModelError, TargetError
from deadweight.targets.remote.board import predict_on
from deadweight.targets.remote.on_board import ready_on
from deadweight.targets.remote.ssh import Local
from deadweight.targets.runtimes.infer import run_all
from deadweight.targets.runtimes.open import open_session, runtime_of
from deadweight.targets.runtimes.runtime import Runtime, runtime_named, usable
from deadweight.targets.runtimes.trtexec_session import open_trtexec
from deadweight.targets.timing.clock import time_together
from deadweight.targets.timing.measurement import Protocol
from deadweight.targets.timing.sequential import compare_until_decided

Make = Callable[..., Path]
QUICK = Protocol(events=3, event_s=0.02, runtime="trtexec", batch=2)
EXPORTS = Path(__file__).parents[1] / "engines" / "exports"


@pytest.fixture
def plan(mlp: Make, tmp_path: Path, trtexec_only: Make) -> Path:
    """An engine for batches of 1 to 8."""
    trtexec_only()
    build_engine(mlp(6, 4), tmp_path / "m.plan", settings=BuildSettings(batch=(1, 4, 8)))
    return tmp_path / "m.plan"


def test_trtexec_is_used_where_the_bindings_do_not_import_and_only_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("tensorrt", "tensorrt_bindings"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert runtime_of("m.plan").name == "tensorrt"  # neither: the message names what is usual
    program = stand_in(tmp_path)
    assert runtime_of("m.plan").name == "trtexec"
    assert usable(runtime_named("tensorrt+graph")).name == "trtexec+graph"
    assert runtime_named("trtexec").version == "10.3.0"
    monkeypatch.setitem(sys.modules, "tensorrt", type(sys)("tensorrt"))
    sys.modules["tensorrt"].__version__ = "10.3.0"  # type: ignore[attr-defined]
    assert runtime_of("m.plan").name == "tensorrt"
    program.unlink()
    assert not runtime_named("trtexec").installed


def test_every_event_is_a_new_process_of_each_engine(mlp: Make, tmp_path: Path, plan: Path) -> None:
    other = tmp_path / "small.plan"
    build_engine(mlp(6, 2, name="small.onnx"), other, settings=BuildSettings(batch=(1, 4, 8)))
    timed = time_together({"baseline": plan, "candidate": other}, protocol=QUICK)
    one = timed["baseline"]
    assert one.wall_ns.shape[:2] == (3, 1)
    assert one.wall_ns.shape[2] >= 10
    assert one.evidence == "simulated"
    assert one.cpu_ns is None
    assert one.protocol.runtime == "trtexec"
    assert one.conditions["inputs"] == {name: ["float32[2, 6]"] for name in ("baseline", "candidate")}
    assert "trtexec of TensorRT 10.3.0" in one.conditions["times"]
    assert "without copies" in one.conditions["times"]
    assert timed["candidate"].latency_s(50).value < one.latency_s(50).value


def test_a_comparison_is_judged_as_any_other_and_says_what_was_timed(plan: Path) -> None:
    found = compare_until_decided(plan, plan, protocol=replace(QUICK, events=8, cap_s=0.1))
    assert found.judgement.events == 8  # the time limit leaves enough events for an interval
    assert found.judgement.outcome == "cannot_tell"
    assert "simulated" in found.judgement.reason
    assert any("every event in a new process" in remark for remark in found.judgement.remarks)


def test_outputs_are_those_of_the_model_with_six_digits(plan: Path, mlp: Make) -> None:
    x = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
    session = open_session(plan, runtime=runtime_of(plan))
    found, expected = session.run({"x": x})["y"], open_session(mlp(6, 4)).run({"x": x})["y"]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert session.evidence == "simulated"
    session.close()
    with pytest.raises(ModelError, match="is closed"):
        session.run({"x": x})


@pytest.mark.parametrize("number", [8412, 8502, 100300, 110400])
def test_token_ids_halves_and_what_is_not_a_number_go_through_every_version(
    number: int, tmp_path: Path, trtexec_only: Make
) -> None:
    value = helper.make_tensor_value_info
    table = np.array([[1, np.nan], [np.inf, -np.inf], [3, 4]], np.float16)
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["w", "in:0"], ["y"]),
            helper.make_node("ArgMax", ["half"], ["best"], axis=1, keepdims=0),
        ],
        "g",
        [value("in:0", TensorProto.INT64, ["n", 2]), value("half", TensorProto.FLOAT16, ["n", 3])],
        [value("y", TensorProto.FLOAT16, ["n", 2, 2]), value("best", TensorProto.INT64, ["n"])],
        [numpy_helper.from_array(table, "w")],
    )
    imports = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=8), tmp_path / "a.onnx")
    trtexec_only(number=number)
    plan = tmp_path / "a.plan"
    build_engine(tmp_path / "a.onnx", plan, settings=BuildSettings(batch=(1, 1, 2)))
    session = open_trtexec(plan)
    half = np.array([[0.5, 2, 1]], np.float16)
    found = session.run({"in:0": np.array([[2, 1]]), "half": half})
    np.testing.assert_array_equal(found["y"], table[[[2, 1]]])
    assert found["y"].dtype == np.float16
    assert found["best"].tolist() == [1]
    timed = time_together({"a": plan}, protocol=replace(QUICK, events=2, batch=1))["a"]
    assert timed.wall_ns.min() > 0
    if number < 10_0000:
        with pytest.raises(ModelError, match="beyond 32 bits"):
            session.run({"in:0": np.array([[1 << 40, 1]]), "half": half})


def test_the_warm_up_that_old_versions_export_does_not_count() -> None:
    # The first entries of NVIDIA's own export of 8.4, which are within its warm-up of 200 ms.
    entries = json.loads((EXPORTS / "fp16.timing.json").read_text())
    later = [{**entry, "startComputeMs": entry["startComputeMs"] + 200} for entry in entries[:3]]
    assert runs_of([*entries, *later], after_s=0.2) == runs_of(entries)[:3]
    assert not runs_of(entries, after_s=0.2)


def test_a_wrong_batch_is_refused_before_trtexec_starts(plan: Path) -> None:
    with pytest.raises(ModelError, match=r"accepts 'x' from \[1, 6\] to \[8, 6\], but got \[9, 6\]"):
        open_trtexec(plan).run({"x": np.ones((9, 6), np.float32)})


def test_an_engine_without_a_record_is_timed_and_not_run(plan: Path) -> None:
    Path(f"{plan}.json").unlink()
    timed = time_together({"a": plan}, protocol=replace(QUICK, events=2, batch=1))["a"]
    assert timed.conditions["inputs"] == {"a": []}
    with pytest.raises(ModelError, match="there is no record") as caught:
        open_trtexec(plan).run({"x": np.ones((1, 6), np.float32)})
    assert "deadweight build" in caught.value.cure


def test_an_engine_of_another_tensorrt_is_refused(plan: Path, trtexec_only: Make) -> None:
    trtexec_only(number=110400)
    with pytest.raises(ModelError, match=r"built by tensorrt 10\.3\.0, but here is 11\.4\.0"):
        open_trtexec(plan)


def test_an_engine_that_the_bindings_built_is_compared_by_the_three_parts_that_trtexec_knows(
    plan: Path, trtexec_only: Make
) -> None:
    record = json.loads(Path(f"{plan}.json").read_text())
    record["tensorrt"]["version"] = "10.13.3.9"
    Path(f"{plan}.json").write_text(json.dumps(record))
    trtexec_only(number=101303)
    assert open_trtexec(plan).runtime == "trtexec of TensorRT 10.13.3"
    trtexec_only(number=101302)
    with pytest.raises(ModelError, match=r"built by tensorrt 10\.13\.3\.9, but here is 10\.13\.2"):
        open_trtexec(plan)


@pytest.mark.parametrize(
    ("fault", "says"), [("killed", "signal 9"), ("crashed", "signal 11"), ("lost", r"wrote no times\.json")]
)
def test_a_program_that_fails_while_it_times_is_reported(
    plan: Path, trtexec_only: Make, fault: str, says: str
) -> None:
    trtexec_only(fault=fault)
    with pytest.raises((ModelError, TargetError), match=says):
        time_together({"a": plan}, protocol=QUICK)


def test_profile_shows_times_layers_and_what_is_known_of_the_memory(
    plan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = deadweight.profile(plan, events=2, event_s=0.02)
    parts = {name: size for name, size, _ in found.engine_memory}
    assert parts["weights"] == 3 << 20
    assert parts["activations"] == 3 << 19
    assert parts["io"] == 4 * (6 + 4)
    assert parts["opening"] is None
    deadweight.show(found)
    show_engine_layers(plan, found.measured.protocol)
    printed = capsys.readouterr().out
    assert "simulated on" in printed
    assert "timed by trtexec of TensorRT 10.3.0" in printed
    assert "not known (trtexec does not say)" in printed
    times = json.loads(Path(f"{plan}.times.json").read_text())
    assert times == {"a": [0.5], "b": [0.5]}


def test_a_runtime_of_ones_own_may_time_in_its_own_process(tmp_path: Path, mlp: Make) -> None:
    """As for a vendor's benchmark program; and it may stand in where another is not installed."""
    (tmp_path / "mine.py").write_text(
        "import numpy as np\nfrom deadweight import ProcessTimes, Runtime\n"
        "def timed(path, *, protocol, inputs=None):\n"
        "    ns = np.full(protocol.min_rounds + len(path.name), 1000, np.int64)\n"
        "    return ProcessTimes(ns, evidence='measured', inputs=('float32[1]',), remark='by a vendor')\n"
        "def opened(path, *, threads=1):\n    raise AssertionError('it is never opened')\n"
        "VENDOR = Runtime(name='vendor', title='V', library='', cure='', open=opened, time_process=timed)\n"
    )
    from deadweight.targets.runtimes.runtime import own_runtime

    own: Runtime = own_runtime("mine.py:VENDOR", tmp_path)
    timed = time_together(
        {"a": mlp(2, 2), "b": mlp(2, 2, name="longer.onnx")}, protocol=replace(QUICK, runtime=own.name)
    )
    assert timed["a"].wall_ns.shape == (3, 1, 3 + len("model.onnx"))
    assert timed["b"].wall_ns.shape == (3, 1, 3 + len("longer.onnx"))
    assert timed["a"].conditions["times"] == "by a vendor"


def test_a_board_with_trtexec_alone_builds_times_and_scores_through_its_agent(
    tmp_path: Path, trtexec_only: Make
) -> None:
    trtexec_only()

    def asked(*arguments: str) -> tuple[int, dict[str, Any]]:
        return Local().run(["--cache", str(tmp_path / "cache"), *arguments])

    settings = json.dumps({"batch": [1, 2, 8]})
    plans = []
    for name, width in (("a", 4), ("b", 3)):
        model = save_mlp(tmp_path / f"{name}.onnx", 6, width)
        plans.append(str(tmp_path / f"{name}.plan"))
        assert asked("build", str(model), plans[-1], "--settings", settings)[0] == 0
    protocol = ["--protocol", json.dumps({"events": 2, "event_s": 0.02, "batch": 2})]
    code, result = asked("compare", *plans, *protocol, "--margin", "0.02")
    assert code == 3
    assert result["judgement"]["evidence"] == "simulated"
    assert result["measurements"]["baseline"]["protocol"]["runtime"] == "trtexec"
    inputs, outputs = tmp_path / "in.npz", tmp_path / "out.npz"
    np.savez(inputs, x=np.ones((3, 6), np.float32))
    code, result = asked("infer", plans[0], str(inputs), str(outputs), "--batch", "8")
    assert code == 0
    assert result["runtime"] == "trtexec of TensorRT 10.3.0"
    assert np.load(outputs)["y"].shape == (3, 4)


@pytest.mark.slow
def test_scores_take_a_process_for_64_samples_where_the_file_allows_it(
    tmp_path: Path, trtexec_only: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    program, calls = trtexec_only(), tmp_path / "calls"
    count = f"open({str(calls)!r}, 'a').write('x' * ('loadInputs' in str(sys.argv)))"
    program.write_text(program.read_text().replace("\nmain(", f"\n{count}\nmain("))
    x = np.random.default_rng(0).standard_normal((70, 6)).astype(np.float32)
    np.savez(tmp_path / "five.npz", x=x[:5])

    def processes(model: Path, samples: int, **sizes: Any) -> int:
        calls.write_text("")
        ready = ready_on(Local(), {"m": model}, scores=True, **sizes)
        found = predict_on(Local(), ready, "m")({"x": x[:samples]})
        expected = run_all(open_session(model), {"x": x[:samples]})
        np.testing.assert_allclose(found["y"], expected["y"], rtol=1e-4, atol=1e-5)
        return calls.stat().st_size

    dynamic = save_mlp(tmp_path / "dynamic.onnx", 6, 4)
    assert processes(dynamic, 70) == 2
    assert processes(dynamic, 70, inputs=tmp_path / "five.npz") == 2
    assert processes(save_mlp(tmp_path / "fixed.onnx", 6, 4, batch=2), 4) == 2
