"""What building and running an engine must do: the same checks over the fake and on a board.

    python contract.py FOLDER [--fake LIBRARIES --bindings PACKAGES --major 10]

FOLDER holds the models and, as .npz, inputs with ONNX Runtime's outputs (see support/tensorrt_versions.py).
Standard library and numpy only, because a board has no pytest. It prints one JSON object, by check: ""
where it holds, else what was raised.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import traceback
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from deadweight.targets.engines.build import build_engine
from deadweight.targets.engines.build_settings import BuildSettings
from deadweight.targets.engines.record import record_path
from deadweight.targets.errors import DeadweightError, ModelError
from deadweight.targets.runtimes.open import open_session
from deadweight.targets.runtimes.trt import open_trt

THREE = BuildSettings(batch=(1, 4, 8), precision="fp32")


def raised(kind: type[DeadweightError], call: Callable[[], object]) -> DeadweightError:
    """The error that a call raises; anything else is a failure of the check."""
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"{kind.__name__} was not raised")


def plan_of(bench: Any, model: str, settings: BuildSettings = THREE) -> Path:
    """A plan of a model, built once and then copied into a place of its own."""
    plan = bench.folder / f"{model}.plan"
    if not plan.exists():
        build_engine(
            bench.folder / f"{model}.onnx", plan, settings=settings, timing_folder=bench.folder / "timing"
        )
    bench.copies += 1
    mine = Path(bench.folder) / f"{model}{bench.copies}.plan"
    shutil.copy(str(plan), str(mine))
    shutil.copy(str(record_path(plan)), str(record_path(mine)))
    return mine


def runs_as_onnx_runtime_does(
    bench: Any, model: str, settings: BuildSettings, batches: Sequence[int], tolerance: float
) -> None:
    session = open_session(plan_of(bench, model, settings), runtime="tensorrt")
    held = np.load(str(bench.folder / f"{model}.npz"))
    try:
        for batch in batches:
            got = session.run({"x": held["x"][:batch]})["y"]
            want = held["y"][:batch]
            assert got.shape == want.shape, got.shape
            assert np.abs(got - want).max() <= tolerance * np.abs(want).max(), np.abs(got - want).max()
    finally:
        session.close()


def check_outputs_are_onnx_runtimes_at_every_batch(bench: Any) -> None:
    # Rising and falling: buffers grow, and smaller shapes reuse them.
    runs_as_onnx_runtime_does(bench, "mlp", THREE, (1, 8, 3, 1, 8), 1e-2)


def check_outputs_of_one_run_outlive_the_next(bench: Any) -> None:
    held = np.load(str(bench.folder / "mlp.npz"))
    session = open_session(plan_of(bench, "mlp"), runtime="tensorrt")
    first = session.run({"x": held["x"][:4]})["y"]
    kept = first.copy()
    session.run({"x": held["x"][4:8]})
    assert np.array_equal(first, kept)
    session.close()
    assert np.array_equal(first, kept)


def check_a_fixed_batch_needs_no_profile(bench: Any) -> None:
    runs_as_onnx_runtime_does(bench, "fixed", BuildSettings(precision="fp32"), (2,), 1e-2)


def check_explicit_qdq_gives_what_onnx_runtime_gives(bench: Any) -> None:
    runs_as_onnx_runtime_does(bench, "qdq", THREE, (1, 8), 5e-2)


def check_what_is_timed_runs_again_and_again(bench: Any) -> None:
    held = np.load(str(bench.folder / "mlp.npz"))
    for runtime in ("tensorrt", "tensorrt+graph"):
        session = open_session(plan_of(bench, "mlp"), runtime=runtime)
        timed = session.prepare({"x": held["x"][:4]})
        for _ in range(3):
            timed()
        want = held["y"][:4]
        got = session.run({"x": held["x"][:4]})["y"]
        assert np.abs(got - want).max() <= 1e-2 * np.abs(want).max()
        session.close()


def check_a_graph_is_not_launched_for_other_inputs(bench: Any) -> None:
    held = np.load(str(bench.folder / "mlp.npz"))
    session = open_session(plan_of(bench, "mlp"), runtime="tensorrt+graph")
    timed = session.prepare({"x": held["x"][:4]})
    session.run({"x": held["x"][:2]})
    assert "Call prepare again" in raised(ModelError, timed).cure
    session.close()


def check_the_record_says_what_was_built_from_what_for_what(bench: Any) -> None:
    plan = plan_of(bench, "qdq")
    record = json.loads(record_path(plan).read_text())
    assert record["plan"]["bytes"] == plan.stat().st_size
    assert record["evidence"] == ("simulated" if bench.fake else "measured"), record["evidence"]
    assert record["profiles"] == {"x": [[1, 16], [4, 16], [8, 16]]}
    assert record["device"]["compute_capability"].count(".") == 1
    assert record["tensorrt"]["strongly_typed"] is (record["tensorrt"]["version"].split(".")[0] != "8")
    assert record["rebuild"].startswith("deadweight build ")
    assert "--batch 1,4,8" in record["rebuild"]
    assert (bench.folder / "qdq.plan.log").stat().st_size > 0


def check_a_float_file_is_in_fp16_by_the_flag_or_refused(bench: Any) -> None:
    plan, settings = bench.folder / "half.plan", BuildSettings(batch=(1, 4, 8))
    version = json.loads(record_path(plan_of(bench, "mlp")).read_text())["tensorrt"]["version"]
    if int(version.split(".")[0]) >= 11:
        error = raised(ModelError, lambda: build_engine(bench.folder / "mlp.onnx", plan, settings=settings))
        assert "no flag for FP16" in error.what, error.what
        assert "--precision fp32" in error.cure, error.cure
        assert not plan.exists()
        return
    record = build_engine(bench.folder / "mlp.onnx", plan, settings=settings).record
    assert record["flags"] == ["FP16"], record["flags"]
    assert record["tensorrt"]["strongly_typed"] is False
    assert record["settings"]["precision"] == "fp16"
    session = open_session(plan, runtime="tensorrt")
    held = np.load(str(bench.folder / "mlp.npz"))
    assert np.abs(session.run({"x": held["x"]})["y"] - held["y"]).max() <= 5e-2 * np.abs(held["y"]).max()
    session.close()


def check_timings_of_kernels_are_kept_and_used_again(bench: Any) -> None:
    plan_of(bench, "mlp")
    again = build_engine(
        bench.folder / "mlp.onnx",
        bench.folder / "again.plan",
        settings=THREE,
        timing_folder=bench.folder / "timing",
    )
    assert again.record["timing_cache"]["used"] is True
    assert Path(again.record["timing_cache"]["file"]).stat().st_size > 0


def check_layer_times_are_there_for_every_run(bench: Any) -> None:
    held = np.load(str(bench.folder / "mlp.npz"))
    session = open_trt(plan_of(bench, "mlp"))
    times = session.layer_times({"x": held["x"][:4]}, runs=5)
    assert times
    assert all(len(each) % 5 == 0 and min(each) >= 0 for each in times.values()), times
    assert max(max(each) for each in times.values()) > 0
    session.close()


def check_the_inspector_tells_the_layers_as_json(bench: Any) -> None:
    session = open_trt(plan_of(bench, "mlp"))
    answer = json.loads(session.inspect())
    assert answer["Layers"]
    assert "Bindings" in answer or "I/O Tensors" in answer, list(answer)
    session.close()


def check_memory_is_told_in_parts(bench: Any) -> None:
    held = np.load(str(bench.folder / "mlp.npz"))
    plan = plan_of(bench, "mlp")
    session = open_trt(plan)
    session.run({"x": held["x"][:8]})
    memory = session.memory()
    sizes = {part.name: part.bytes for part in memory}
    assert sizes["plan"] == plan.stat().st_size
    io_bytes = sizes["io"]
    assert io_bytes is not None
    assert io_bytes >= held["x"][:8].nbytes + held["y"][:8].nbytes
    assert sizes["activations"] is not None
    assert all(part.how for part in memory)
    session.close()


def check_what_a_session_says_of_itself(bench: Any) -> None:
    session = open_session(plan_of(bench, "mlp"), runtime="tensorrt")
    assert session.evidence == ("simulated" if bench.fake else "measured"), session.evidence
    assert session.runtime.startswith("tensorrt ")
    assert [str(spec) for spec in session.inputs] == ["x: float32[?, 16]"], session.inputs
    session.close()
    session.close()
    assert "was closed" in raised(ModelError, lambda: session.run({"x": np.zeros((1, 16), "f4")})).what


def check_a_batch_outside_the_profile_is_refused_with_the_rebuild_line(bench: Any) -> None:
    session = open_session(plan_of(bench, "mlp"), runtime="tensorrt")
    error = raised(ModelError, lambda: session.run({"x": np.zeros((9, 16), "f4")}))
    assert "from [1, 16] to [8, 16]" in error.what, error.what
    assert "[9, 16]" in error.what, error.what
    assert "deadweight build" in error.cure
    assert session.run({"x": np.zeros((8, 16), "f4")})["y"].shape[0] == 8, "the session must stay usable"
    session.close()


def check_inputs_that_do_not_fit_are_all_named(bench: Any) -> None:
    session = open_session(plan_of(bench, "mlp"), runtime="tensorrt")
    for given, words in (
        ({}, "'x' is missing"),
        ({"x": np.zeros((1, 16), "f8")}, "float64, not float32"),
        ({"x": np.zeros((1, 17), "f4")}, "has the shape [1, 17]"),
        ({"x": np.zeros((1, 16), "f4"), "z": np.zeros(1)}, "'z' is not an input"),
    ):
        error = raised(ModelError, partial(session.run, given))
        assert words in error.what, error.what
    session.close()


def check_a_cut_plan_is_refused_with_and_without_its_record(bench: Any) -> None:
    for keep_record in (True, False):
        plan = plan_of(bench, "mlp")
        plan.write_bytes(plan.read_bytes()[: plan.stat().st_size // 2])
        if not keep_record:
            record_path(plan).unlink()
        error = raised(ModelError, partial(open_session, plan, runtime="tensorrt"))
        assert "deadweight build" in error.cure, error
        assert "bytes" in error.what, error


def check_what_is_no_plan_is_refused(bench: Any) -> None:
    error = raised(ModelError, lambda: open_session(bench.folder / "mlp.onnx", runtime="tensorrt"))
    assert "cannot open mlp.onnx" in error.what, error
    assert "deadweight build" in error.cure, error


def check_a_missing_plan_is_named(bench: Any) -> None:
    assert (
        "no engine at"
        in raised(ModelError, lambda: open_session(bench.folder / "no.plan", runtime="tensorrt")).what
    )


def check_a_plan_of_another_tensorrt_gpu_or_board_is_refused_before_it_is_opened(bench: Any) -> None:
    for part, key, value, words in (
        ("tensorrt", "version", "7.1.3", "was built by tensorrt 7.1.3, but here is"),
        ("device", "compute_capability", "5.3", "was built for compute capability 5.3, but this GPU has"),
        ("platform", "machine", "sparc", "was built on sparc"),
    ):
        plan = plan_of(bench, "mlp")
        record = json.loads(record_path(plan).read_text())
        record[part][key] = value
        record_path(plan).write_text(json.dumps(record))
        error = raised(ModelError, partial(open_session, plan, runtime="tensorrt"))
        assert words in error.what, error.what
        assert record["rebuild"] in error.cure, error.cure


def check_an_operator_that_tensorrt_lacks_is_named(bench: Any) -> None:
    out = bench.folder / "unsupported.plan"
    error = raised(ModelError, lambda: build_engine(bench.folder / "unsupported.onnx", out, settings=THREE))
    assert "cannot read unsupported.onnx" in error.what, error.what
    assert bench.unsupported in error.what, error.what
    assert "deadweight lint" in error.cure
    assert not out.exists(), "nothing may be half-written"
    assert not record_path(out).exists(), "nothing may be half-written"


def check_a_free_dimension_without_sizes_is_named(bench: Any) -> None:
    free = BuildSettings(precision="fp32")
    error = raised(
        ModelError,
        lambda: build_engine(bench.folder / "free.onnx", bench.folder / "free.plan", settings=free),
    )
    assert "more than its batch is dynamic" in error.what, error
    assert "--shapes" in error.cure, error


def check_shapes_serve_inputs_with_more_than_a_free_batch(bench: Any) -> None:
    settings = BuildSettings(shapes={"x": ((1, 4), (2, 8), (4, 16))}, precision="fp32")
    plan = bench.folder / "shapes.plan"
    build_engine(bench.folder / "free.onnx", plan, settings=settings)
    session = open_session(plan, runtime="tensorrt")
    x = np.arange(24, dtype="f4").reshape(3, 8)
    assert np.allclose(session.run({"x": x})["y"], x + x)
    session.close()


def check_a_plugin_of_tensorrts_own_is_there_without_asking(bench: Any) -> None:
    plan = bench.folder / "roi.plan"
    build_engine(bench.folder / "roi.onnx", plan, settings=BuildSettings(precision="fp32"))
    session = open_session(plan, runtime="tensorrt")
    x = np.arange(192, dtype="f4").reshape(1, 3, 8, 8)
    got = session.run({"x": x})["y"]
    assert got.shape == (2, 3, 2, 2), got.shape
    assert np.isfinite(got).all()
    session.close()


def check_an_output_whose_size_depends_on_the_data_is_served(bench: Any) -> None:
    plan = bench.folder / "nonzero.plan"
    build_engine(bench.folder / "nonzero.onnx", plan, settings=THREE)
    session = open_session(plan, runtime="tensorrt")
    assert session.outputs[0].shape == (2, None), session.outputs
    x = np.random.default_rng(0).standard_normal((8, 16)).astype("f4")
    for batch in (1, 8, 3):
        got = session.run({"x": x[:batch]})["y"]
        assert np.array_equal(got, np.stack(np.nonzero(np.maximum(x[:batch], 0)))), got
    nothing = session.run({"x": np.zeros((2, 16), "f4")})["y"]
    assert nothing.shape == (2, 0), nothing.shape
    timed = session.prepare({"x": x[:4]})
    timed()
    timed()
    session.close()
    session = open_session(plan, runtime="tensorrt+graph")
    error = raised(ModelError, lambda: session.prepare({"x": x[:4]}))
    assert "depends on the data" in error.what, error.what
    session.close()


def check_ids_in_int64_run_also_where_tensorrt_has_no_int64(bench: Any) -> None:
    plan = bench.folder / "tokens.plan"
    build_engine(bench.folder / "tokens.onnx", plan, settings=THREE)
    session = open_session(plan, runtime="tensorrt")
    old = json.loads(record_path(plan).read_text())["tensorrt"]["version"].startswith("8.")
    assert session.inputs[0].dtype == ("int32" if old else "int64"), session.inputs
    ids = np.array([[0, 7, 7, 49], [1, 2, 3, 4]])
    got = session.run({"x": ids})["y"]
    assert got.shape == (2, 4, 8), got.shape
    assert np.array_equal(got[0, 1], got[0, 2])
    timed = session.prepare({"x": ids})
    timed()
    if old:
        ids[1, 1] = 1 << 40
        error = raised(ModelError, lambda: session.run({"x": ids}))
        assert "1099511627776" in error.what, error.what
    session.close()


def main() -> None:
    """Runs the checks of this file, and over the fake also those of faults.py and board_faults.py."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--fake", type=Path)
    parser.add_argument("--bindings", type=Path)
    parser.add_argument("--major", default="10")
    asked = parser.parse_args()
    bench = SimpleNamespace(folder=asked.folder, fake=None, copies=0, unsupported="NonMaxSuppressionOfOurs")
    bench.major, bench.libraries = int(asked.major), asked.fake
    checks: dict[str, Any] = dict(globals())
    if asked.fake:
        os.environ["FAKE_MAJOR"] = asked.major
        os.environ["DEADWEIGHT_CUDA"] = f"ctypes:{asked.fake / 'libcudart.so'}"
        sys.path[:0] = [str(Path(__file__).parent), str(asked.bindings)]
        import board_faults
        import double
        import faults

        bench.fake = double.Fake(asked.fake, major=asked.major)
        # It finds the libraries that are loaded already, by their names.
        import tensorrt_bindings  # pyright: ignore[reportMissingImports]

        sys.modules["tensorrt"] = tensorrt_bindings
        checks.update(vars(faults))
        checks.update(vars(board_faults))
    results: dict[str, str] = {}
    for name, check in list(checks.items()):
        if name.startswith("check_"):
            try:
                check(bench)
                results[name] = ""
            except (Exception, DeadweightError):
                results[name] = traceback.format_exc()
    print("\n" + json.dumps(results))


if __name__ == "__main__":
    main()
