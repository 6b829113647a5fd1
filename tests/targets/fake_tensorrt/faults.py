"""The fake's own tests: it can fail at every step, with messages of real TensorRT."""

from __future__ import annotations

import contextlib
import ctypes
import io
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import double
import numpy as np
from contract import THREE, plan_of, raised

from deadweight.targets.engines.build import build_engine
from deadweight.targets.engines.build_settings import BuildSettings
from deadweight.targets.engines.record import record_path
from deadweight.targets.errors import DeadweightError, ModelError, RecipeError, TargetError
from deadweight.targets.runtimes.open import open_session
from deadweight.targets.timing.clock import Protocol, time_together
from deadweight.targets.timing.judge import judge

X = {"x": np.zeros((4, 16), "f4")}


class Set:
    """An environment variable for the time of a block."""

    def __init__(self, name: str, value: str) -> None:
        self.name, self.value = name, value

    def __enter__(self) -> None:
        self.before = os.environ.get(self.name)
        os.environ[self.name] = self.value

    def __exit__(self, *_: object) -> None:
        if self.before is None:
            del os.environ[self.name]
        else:
            os.environ[self.name] = self.before


def failing_build(bench: Any, words: str, settings: BuildSettings = THREE) -> DeadweightError:
    double.faults["build"] = words
    out = bench.folder / "failing.plan"
    error = raised(ModelError, lambda: build_engine(bench.folder / "mlp.onnx", out, settings=settings))
    assert not out.exists()
    assert not record_path(out).exists()
    assert "could not build mlp.onnx" in error.what, error.what
    return error


def check_a_builder_without_memory_says_so_and_what_helps(bench: Any) -> None:
    error = failing_build(
        bench,
        "IBuilder::buildSerializedNetwork: Error Code 2: OutOfMemory (no further information) "
        "Requested size was 1073741824 bytes.",
    )
    assert "OutOfMemory" in error.what, error
    assert "--workspace-bytes" in error.cure, error


def check_a_builder_without_a_profile_says_which_option_is_missing(bench: Any) -> None:
    error = failing_build(
        bench,
        "IBuilder::buildSerializedNetwork: Error Code 4: API Usage Error (Network has dynamic or shape "
        "inputs, but no optimization profile has been defined.)",
    )
    assert "--batch" in error.cure, error
    assert "no optimization profile" in error.what, error


def check_any_other_refusal_is_quoted(bench: Any) -> None:
    error = failing_build(bench, "Internal Error (Could not find any implementation for node conv1.)")
    assert "Could not find any implementation for node conv1" in error.what
    assert "deadweight lint" in error.cure


def check_a_builder_that_does_not_start_gives_the_logs_reason(bench: Any) -> None:
    double.faults["start"] = "CUDA initialization failure with error: 35"
    error = raised(
        TargetError, lambda: build_engine(bench.folder / "mlp.onnx", bench.folder / "a.plan", settings=THREE)
    )
    assert "CUDA initialization failure with error: 35" in error.what, error
    assert "--runtime nvidia" in error.cure, error


def check_a_plan_of_another_version_is_refused_by_tensorrt_itself(bench: Any) -> None:
    error = foreign_plan(bench, version=80502)
    assert "Version tag does not match" in error.what, error
    assert "deadweight build" in error.cure, error


def check_a_plan_of_another_gpu_is_refused_by_tensorrt_itself(bench: Any) -> None:
    error = foreign_plan(bench, sm="7.2")
    assert "expecting compute 8.7 got compute 7.2" in error.what, error
    assert "deadweight build" in error.cure, error


def foreign_plan(bench: Any, **changed: object) -> DeadweightError:
    """A plan without a record whose header says something else."""
    plan = plan_of(bench, "mlp")
    record_path(plan).unlink()
    head, _, model = plan.read_bytes()[len(double.MAGIC) :].partition(b"\n")
    result = {**json.loads(head), **changed}
    plan.write_bytes(double.MAGIC + json.dumps(result).encode() + b"\n" + model)
    return raised(ModelError, lambda: open_session(plan, runtime="tensorrt"))


def check_a_context_without_memory_is_an_error_with_what_is_free(bench: Any) -> None:
    plan = plan_of(bench, "mlp")
    double.faults["context"] = "IExecutionContext: Error Code 1: Cuda Runtime (out of memory)"
    error = raised(ModelError, lambda: open_session(plan, runtime="tensorrt"))
    assert "out of memory" in error.what, error
    assert "MB are free" in error.what, error


def check_a_run_that_fails_is_an_error_in_tensorrts_words(bench: Any) -> None:
    session = open_session(plan_of(bench, "mlp"), runtime="tensorrt")
    double.faults["execute"] = (
        "IExecutionContext::enqueueV3: Error Code 1: Cuda Runtime (an illegal memory access)"
    )
    try:
        error = raised(ModelError, lambda: session.run(X))
    finally:
        del double.faults["execute"]
    assert "illegal memory access" in error.what, error.what
    assert session.run(X)["y"].shape == (4, 3)
    session.close()


def check_a_gpu_with_200_mb_free_says_so_when_it_is_spent(bench: Any) -> None:
    with Set("FAKE_CUDA_FREE_MB", "0"):
        session = open_session(plan_of(bench, "mlp"), runtime="tensorrt")
        error = raised(TargetError, lambda: session.run(X))
        assert "GPU is out of memory" in error.what, error
        assert "smaller batch" in error.cure, error
    assert session.run(X)["y"].shape == (4, 3), "once there is room, the same session must run"
    session.close()


def check_a_board_with_200_mb_free_builds_nothing(bench: Any) -> None:
    root = bench.folder / "root"
    (root / "proc").mkdir(parents=True, exist_ok=True)
    (root / "proc" / "meminfo").write_text("MemTotal: 8000000 kB\nMemAvailable: 195312 kB\n")
    out = bench.folder / "small.plan"
    error = raised(
        TargetError, lambda: build_engine(bench.folder / "mlp.onnx", out, settings=THREE, root=root)
    )
    assert "Only 200 MB of memory are free" in error.what, error
    assert "swap" in error.cure, error
    assert not out.exists()


def check_a_damaged_timing_cache_is_made_anew(bench: Any) -> None:
    folder = bench.folder / "damaged"
    first = build_engine(
        bench.folder / "mlp.onnx", bench.folder / "d.plan", settings=THREE, timing_folder=folder
    )
    path = Path(first.record["timing_cache"]["file"])
    assert path.parent == folder
    assert first.record["timing_cache"]["used"] is False
    path.write_bytes(b"something else")
    again = build_engine(
        bench.folder / "mlp.onnx", bench.folder / "d.plan", settings=THREE, timing_folder=folder
    )
    assert again.record["timing_cache"]["used"] is False
    assert path.read_bytes().startswith(b"timings")


def check_a_run_that_found_no_room_leaves_the_session_right(bench: Any) -> None:
    held = np.load(str(bench.folder / "mlp.npz"))
    session = open_session(plan_of(bench, "mlp"), runtime="tensorrt")
    for batch in (2, 4):
        session.run({"x": held["x"][:batch]})
    with Set("FAKE_CUDA_FREE_MB", "0"):
        raised(TargetError, lambda: session.run({"x": held["x"][:8]}))
    for batch in (4, 8):
        assert np.array_equal(session.run({"x": held["x"][:batch]})["y"], held["y"][:batch])
    session.close()


def check_code_that_a_plan_brings_is_never_run(bench: Any) -> None:
    plan = bench.folder / "compatible.plan"
    settings = replace(THREE, version_compatible=True)
    build_engine(bench.folder / "mlp.onnx", plan, settings=settings)
    error = raised(ModelError, lambda: open_session(plan, runtime="tensorrt"))
    assert "contains a runtime" in error.what, error
    open_session(plan_of(bench, "mlp"), runtime="tensorrt").close()
    assert bench.fake.allowed is False


def check_the_plan_holds_the_profile_and_the_type_of_network_that_were_asked_for(bench: Any) -> None:
    head = plan_of(bench, "mlp").read_bytes()[len(double.MAGIC) :].partition(b"\n")[0]
    answer = json.loads(head)
    assert answer["profiles"] == [{"x": [[1, 16], [4, 16], [8, 16]]}], answer["profiles"]
    import tensorrt  # pyright: ignore[reportMissingImports]

    creation = tensorrt.NetworkDefinitionCreationFlag
    kind = creation.STRONGLY_TYPED if hasattr(creation, "STRONGLY_TYPED") else creation.EXPLICIT_BATCH
    assert answer["strong"] == 1 << int(kind), answer["strong"]


def check_everything_that_was_taken_is_given_back(bench: Any) -> None:
    taken = bench.fake.cudart.fake_taken
    taken.restype = ctypes.c_size_t
    before = taken()
    session = open_session(plan_of(bench, "mlp"), runtime="tensorrt")
    session.run(X)
    session.run({"x": np.zeros((8, 16), "f4")})
    assert taken() > before
    session.close()
    assert taken() == before


def check_a_captured_graph_runs_the_engine_once_a_launch(bench: Any) -> None:
    session = open_session(plan_of(bench, "mlp"), runtime="tensorrt+graph")
    timed = session.prepare(X)
    before = bench.fake.executions
    for _ in range(3):
        timed()
    assert bench.fake.executions == before + 3
    session.close()


def check_times_of_the_fake_are_simulated_and_enter_no_verdict(bench: Any) -> None:
    slow, fast = plan_of(bench, "mlp"), plan_of(bench, "mlp")
    protocol = Protocol(events=8, event_s=0.01, block_s=0.001, settle_s=0.001, runtime="tensorrt", batch=4)
    measured = time_together({"slow": slow, "fast": fast}, protocol=protocol)
    assert {each.evidence for each in measured.values()} == {"simulated"}
    judgement = judge(measured["slow"], measured["fast"], margin=0.9)
    assert judgement.outcome == "cannot_tell", judgement.outcome
    assert "simulated" in judgement.sentence() + " ".join(judgement.remarks), judgement


def check_a_plan_that_a_fake_built_stays_simulated(bench: Any) -> None:
    plan = plan_of(bench, "mlp")
    record = json.loads(record_path(plan).read_text())
    assert record["evidence"] == "simulated"
    session = open_session(plan, runtime="tensorrt")
    assert session.evidence == "simulated"
    session.close()


def check_the_commands_build_profile_and_compare_engines(bench: Any) -> None:
    from deadweight.cli import app

    model, plan = str(bench.folder / "qdq.onnx"), bench.folder / "command.plan"
    to = ["--out", str(plan), "--batch", "1,4,8", "--timing-cache", str(bench.folder / "timing")]
    few = ["--events", "6", "--event-s", "0.01"]
    result = {}
    for words, code in (
        (["build", model, *to], 0),
        (["profile", str(plan), "--layers", "--batch", "4", *few], 0),
        (["compare", str(plan), str(plan), *few, "--cuda-graph", "--buffers", "mapped"], 3),
    ):
        with contextlib.redirect_stdout(io.StringIO()) as shown, contextlib.redirect_stderr(io.StringIO()):
            assert (app(words, standalone_mode=False) or 0) == code, words
        result[words[0]] = shown.getvalue()
    assert "proves nothing about speed" in result["build"], result["build"]
    assert "memory, activations" in result["profile"], result["profile"]
    assert "MatMul_y" in result["profile"], result["profile"]
    assert "cannot tell: the times are simulated" in result["compare"], result["compare"]
    assert "graph, mapped" in " ".join(result["compare"].split()), result["compare"]
    times = json.loads(Path(f"{plan}.times.json").read_text())
    assert len(times["MatMul_m0"]) == 50
    assert min(each[0] for each in times.values()) == 0.5, "TensorRT's milliseconds"
    assert json.loads(Path(f"{plan}.layers.json").read_text())["Layers"]
    error = raised(
        RecipeError, lambda: app(["compare", str(plan), str(plan), "--layers"], standalone_mode=False)
    )
    assert "are not judged" in error.what
