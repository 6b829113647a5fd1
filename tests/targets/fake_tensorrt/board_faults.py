"""What a board can do that a plain fake hides: plugins, DLA, timings of another device, late failures."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import double
import numpy as np
from contract import THREE, plan_of, raised
from faults import Set, X

from deadweight.targets.engines.build import build_engine
from deadweight.targets.engines.build_settings import BuildSettings
from deadweight.targets.engines.content import engine_of
from deadweight.targets.engines.record import record_path
from deadweight.targets.errors import DeadweightError, ModelError, TargetError
from deadweight.targets.runtimes.open import open_session
from deadweight.targets.runtimes.trt import open_trt

FIXED = BuildSettings(precision="fp32")
DLA = BuildSettings(dla_core=0)
CACHE = "TRT-8502-EntropyCalibration2\nx: 3d010a14\nm0: 3c010a14\ny: 3b810a14\n"


def built(bench: Any, model: str, settings: BuildSettings, **options: Any) -> Any:
    plan = bench.folder / f"{model}-board.plan"
    return build_engine(bench.folder / f"{model}.onnx", plan, settings=settings, **options)


def refused(bench: Any, model: str, settings: BuildSettings, kind: Any = ModelError) -> DeadweightError:
    """The error of a build that must leave nothing behind."""
    plan = bench.folder / "refused.plan"
    error = raised(kind, lambda: build_engine(bench.folder / f"{model}.onnx", plan, settings=settings))
    assert not plan.exists()
    assert not record_path(plan).exists()
    return error


def head(plan: Path) -> dict[str, Any]:
    """What the fake's builder was asked for."""
    text = plan.read_bytes()[len(double.MAGIC) :].partition(b"\n")[0]
    found: dict[str, Any] = json.loads(text)
    return found


def library(bench: Any, name: str, code: str) -> Path:
    """A plugin library: as a real one, it needs libnvinfer and registers itself when it is loaded."""
    source, path = bench.folder / f"{name}.c", Path(bench.folder) / f"lib{name}.so"
    source.write_text(code)
    engine = bench.libraries / f"libnvinfer.so.{bench.major}"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", str(path), str(source), str(engine)], check=True)
    return path


REGISTERS = (
    "void fake_register(const char *);\n"
    '__attribute__((constructor)) static void at_load(void) { fake_register("NormOfOurs"); }\n'
)


# plugin libraries


def check_a_plugin_library_is_loaded_recorded_and_asked_for_again(bench: Any) -> None:
    lib, settings = library(bench, "ours", REGISTERS), FIXED
    assert "Plugin not found" in refused(bench, "ours", THREE).what
    assert "--plugin" in refused(bench, "ours", THREE).cure
    settings = replace(THREE, plugins=(str(lib),))
    made = built(bench, "ours", settings)
    assert [each["file"] for each in made.record["plugins"]] == [str(lib)]
    assert len(made.record["plugins"][0]["sha256"]) == 64
    assert f"--plugin {lib}" in made.record["rebuild"], made.record["rebuild"]
    error = raised(ModelError, lambda: open_session(made.plan, runtime="tensorrt"))
    assert "libours.so" in error.what, error.what
    assert f"--plugin {lib}" in error.cure, error.cure
    other = library(bench, "other", REGISTERS + "int another;\n")
    with Set("DEADWEIGHT_PLUGINS", str(other)):
        error = raised(ModelError, lambda: open_session(made.plan, runtime="tensorrt"))
        assert "libours.so" in error.what, error.what
    with Set("DEADWEIGHT_PLUGINS", str(lib)):
        session = open_session(made.plan, runtime="tensorrt")
        assert np.array_equal(session.run(X)["y"], X["x"])
        session.close()


def check_a_library_that_cannot_be_loaded_is_refused_with_the_reason(bench: Any) -> None:
    lib = library(bench, "good", "int nothing;\n")
    for name, change, words in (
        ("arm64.so", {18: b"\xb7\x00"}, "is built for aarch64, but this is x86_64"),
        ("text.so", {0: b"ours"}, "is not a library"),
        ("cut.so", {32: b"\xff" * 8}, "cannot be loaded"),
    ):
        data = bytearray(lib.read_bytes())
        for at, content in change.items():
            data[at : at + len(content)] = content
        path = bench.folder / name
        path.write_bytes(bytes(data))
        error = refused(bench, "mlp", replace(THREE, plugins=(str(path),)), TargetError)
        assert words in error.what, error.what
        assert error.cure
    missing = refused(bench, "mlp", replace(THREE, plugins=("no.so",)), TargetError)
    assert "There is no plugin library at no.so" in missing.what


# timings and limits


def check_timings_of_another_device_are_not_used_and_the_record_says_so(bench: Any) -> None:
    folder = bench.folder / "devices"
    with Set("FAKE_DEVICE", "another board"):
        first = built(bench, "mlp", THREE, timing_folder=folder).record["timing_cache"]
    assert (first["used"], first["why"]) == (False, "there were none")
    path = Path(first["file"])
    assert path.read_bytes() == b"timings of another board"
    second = built(bench, "mlp", THREE, timing_folder=folder).record["timing_cache"]
    assert second["used"] is False
    assert "other CUDA device properties" in second["why"], second
    assert path.read_bytes() == b"timings of the fake", "the next build must find the timings of this one"
    third = built(bench, "mlp", THREE, timing_folder=folder).record["timing_cache"]
    assert (third["used"], third["why"]) == (True, "")


def check_timings_are_kept_by_power_mode(bench: Any) -> None:
    files = set()
    for number, name in enumerate(("15W", "25W")):
        root = bench.folder / name
        for path, text in (
            ("var/lib/nvpmodel/status", f"pmode:{number:04}"),
            ("etc/nvpmodel.conf", "< POWER_MODEL ID=0 NAME=15W >\n< POWER_MODEL ID=1 NAME=25W >\n"),
            ("proc/meminfo", "MemTotal: 8000000 kB\nMemAvailable: 6000000 kB\n"),
        ):
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text)
        record = built(bench, "mlp", THREE, timing_folder=bench.folder / "modes", root=root).record
        files.add(record["timing_cache"]["file"])
        assert name in record["timing_cache"]["file"], record["timing_cache"]
    assert len(files) == 2


def check_the_memory_of_kernel_trials_is_left_to_tensorrt(bench: Any) -> None:
    made = built(bench, "mlp", THREE)
    assert list(made.record["limits"]) == ["workspace_bytes"], made.record["limits"]
    assert made.record["limits"]["workspace_bytes"] > 0
    assert not made.findings.errors, made.findings.errors
    root = bench.folder / "less"
    (root / "proc").mkdir(parents=True, exist_ok=True)
    (root / "proc" / "meminfo").write_text("MemTotal: 8000000 kB\nMemAvailable: 600000 kB\n")
    for settings in (THREE, replace(THREE, workspace_bytes=1 << 20)):
        limits = [built(bench, "mlp", settings, **where).record["limits"] for where in ({}, {"root": root})]
        # A pair to be compared is built under one limit.
        assert (limits[0] == limits[1]) is (settings.workspace_bytes is not None), limits


# DLA


def has_dla() -> bool:
    """Whether this version can use a DLA: 10.7 is the last before 11.4.1."""
    import tensorrt  # pyright: ignore[reportMissingImports]

    return tuple(int(part) for part in tensorrt.__version__.split(".")[:2]) < (10, 8)


def check_a_board_without_dla_says_so(bench: Any) -> None:
    if bench.major >= 11:  # a float file in FP16 is refused before
        return
    with Set("FAKE_DLA_CORES", "0"):
        error = refused(bench, "fixed", DLA, TargetError)
    assert "finds 0 here" in error.what, error


def check_explicit_pairs_on_dla_are_refused_before_the_build(bench: Any) -> None:
    error = refused(bench, "qdq", replace(DLA, batch=(4, 4, 4)))
    assert "Q/DQ" in error.what, error.what
    assert "--calibration-cache" in error.cure, error.cure


def check_a_batch_that_varies_on_dla_is_refused_before_the_build(bench: Any) -> None:
    error = refused(bench, "mlp", replace(DLA, batch=(1, 8, 16)), TargetError)
    assert "1, 8, 16" in error.what, error.what
    assert "--batch 8,8,8" in error.cure, error.cure
    shapes = {"x": ((1, 16), (4, 16), (8, 16))}
    assert "'x'" in refused(bench, "mlp", replace(DLA, shapes=shapes), TargetError).what


def check_dla_gets_fp16_and_its_layers_are_counted(bench: Any) -> None:
    if not has_dla():
        return
    error = refused(bench, "fixed", replace(DLA, precision="fp32"), TargetError)
    assert "FP16 and INT8" in error.what, error.what
    made = built(bench, "tokens", replace(DLA, batch=(4, 4, 4), dla_core=1))
    assert made.record["flags"] == ["FP16", "GPU_FALLBACK"], made.record["flags"]
    assert made.record["tensorrt"]["strongly_typed"] is False
    assert made.record["refused_by_dla"] == ["Gather_y"] == list(made.findings.fallbacks)
    assert "--dla-core 1" in made.record["rebuild"]
    error = refused(bench, "tokens", replace(DLA, batch=(4, 4, 4), max_gpu_fallbacks=0))
    assert "cannot run on DLA, 0 are allowed" in error.what, error.what
    double.faults["moved"] = "COPY: Reformatting CopyNode for Output Tensor 0"
    error = refused(bench, "fixed", replace(DLA, max_gpu_fallbacks=0))
    assert "1 layers of fixed.onnx were built for the GPU, 0 are allowed" in error.what, error.what


def check_int8_on_dla_takes_its_ranges_from_a_calibration_cache(bench: Any) -> None:
    cache = bench.folder / "ranges.cache"
    cache.write_text(CACHE)
    settings = replace(DLA, calibration_cache=str(cache))
    if not has_dla():
        refused(bench, "fixed", settings, DeadweightError)
        return
    made = built(bench, "fixed", settings)
    assert made.record["flags"][:2] == ["INT8", "FP16"], made.record["flags"]
    assert made.record["tensorrt"]["strongly_typed"] is False
    assert made.record["calibration_cache"]["file"] == str(cache)
    assert len(made.record["calibration_cache"]["sha256"]) == 64
    assert head(made.plan)["calibration"] == CACHE
    assert f"--calibration-cache {cache}" in made.record["rebuild"]
    error = refused(bench, "qdq", replace(settings, batch=(4, 4, 4)))
    assert "Q/DQ" in error.what, error.what
    for text, words in (
        ("TRT-8502-EntropyCalibration2\nx: 0.01\n", "line 2"),
        ("x: 3c010a14\n", "line 1"),
        ("TRT-8502-EntropyCalibration2\n", "no ranges"),
        ("TRT-8502-EntropyCalibration2\nx: 7fc00000\n", "line 2"),
    ):
        cache.write_text(text)
        assert words in refused(bench, "fixed", settings).what, text


def check_explicit_pairs_run_on_dla_from_11_4_1_on(bench: Any) -> None:
    import tensorrt  # pyright: ignore[reportMissingImports]

    if bench.major < 11:
        return
    # 11.4.0's bindings are the newest that can be had, and have the same names.
    real, tensorrt.__version__ = tensorrt.__version__, "11.4.1.10"
    try:
        with Set("FAKE_VERSION", "110401"):
            made = built(bench, "qdq", replace(DLA, batch=(4, 4, 4)))
            assert made.record["flags"] == ["GPU_FALLBACK"], made.record["flags"]
            assert made.record["tensorrt"]["strongly_typed"] is True
            assert bench.fake.parser_flags == {"ADJUST_FOR_DLA", "REPORT_CAPABILITY_DLA"}
            cache = bench.folder / "late.cache"
            cache.write_text(CACHE)
            error = refused(bench, "qdq", replace(DLA, batch=(4, 4, 4), calibration_cache=str(cache)))
            assert "has no calibration caches" in error.what, error.what
    finally:
        tensorrt.__version__ = real


def check_a_loadable_for_cudla_has_no_gpu_layers_and_is_not_opened(bench: Any) -> None:
    settings = replace(DLA, standalone=True)
    if not has_dla():
        refused(bench, "fixed", settings, DeadweightError)
        return
    made = built(bench, "fixed", settings)
    assert head(made.plan)["capability"] == 2
    assert "GPU_FALLBACK" not in made.record["flags"]
    assert made.record["io_formats"] == {"x": "fp16:chw16", "y": "fp16:chw16"}, made.record["io_formats"]
    assert "--standalone" in made.record["rebuild"]
    error = raised(ModelError, lambda: open_session(made.plan, runtime="tensorrt"))
    assert "cuDLA" in error.what, error.what
    error = refused(bench, "tokens", replace(settings, batch=(4, 4, 4)))
    assert "Gather_y" in error.what, error.what


# types, names


def check_mixed_types_are_an_error_with_node_and_cure(bench: Any) -> None:
    if bench.major == 8:  # no strongly typed networks
        return
    error = refused(bench, "mixed", BuildSettings())
    assert "'Add_y'" in error.what, error.what
    assert "must have same input types" in error.what, error.what
    assert "Cast" in error.cure, error.cure


def check_layer_names_are_in_the_plan_unless_they_are_hidden(bench: Any) -> None:
    assert head(built(bench, "mlp", THREE).plan)["verbosity"] == 2
    hidden = built(bench, "mlp", replace(THREE, hide_layers=True))
    assert head(hidden.plan)["verbosity"] == 1
    assert "--hide-layers" in hidden.record["rebuild"]
    session = open_trt(hidden.plan)
    assert "--hide-layers" in engine_of(json.loads(session.inspect()), name="hidden").remarks[0]
    session.close()


# running


def check_a_failure_after_the_enqueue_is_an_error_that_closing_does_not_hide(bench: Any) -> None:
    for runtime in ("tensorrt", "tensorrt+graph"):
        for timed in (False, True):
            session = open_session(plan_of(bench, "mlp"), runtime=runtime)
            call = session.prepare(X) if timed else (lambda opened=session: opened.run(X))
            try:
                with Set("FAKE_CUDA_FAILS", "700"):
                    error = raised(ModelError, call)
                assert "cudaErrorIllegalAddress" in error.what, error.what
                assert "mlp" in error.what, error.what
                assert "new process" in error.cure, error.cure
                session.close()
            finally:
                bench.fake.cudart.fake_recover()


def check_an_output_that_finds_no_room_is_an_error_and_the_session_stays(bench: Any) -> None:
    made = built(bench, "nonzero", THREE)
    session = open_session(made.plan, runtime="tensorrt")
    assert session.run({"x": np.zeros((8, 16), "f4")})["y"].shape == (2, 0)
    with Set("FAKE_CUDA_FREE_MB", "0"):
        error = raised(TargetError, lambda: session.run({"x": np.ones((8, 16), "f4")}))
        assert "GPU is out of memory" in error.what, error.what
    assert session.run({"x": np.ones((8, 16), "f4")})["y"].shape == (2, 128)
    session.close()


def check_buffers_are_in_device_memory_or_mapped_as_chosen(bench: Any) -> None:
    held = np.load(str(bench.folder / "mlp.npz"))
    copied = bench.fake.cudart.fake_copied
    for runtime, copies in (("tensorrt", True), ("tensorrt+mapped", False), ("tensorrt+graph+mapped", False)):
        before = copied()
        session = open_session(plan_of(bench, "mlp"), runtime=runtime)
        for batch in (2, 8):
            assert np.array_equal(session.run({"x": held["x"][:batch]})["y"], held["y"][:batch])
        assert (copied() > before) is copies, runtime
        timed = session.prepare({"x": held["x"][:4]})
        before = copied()
        timed()
        assert copied() == before, "no copy is timed"
        assert ("mapped" in session.runtime) is not copies, session.runtime
        session.close()


def check_the_host_spins_or_sleeps_as_chosen(bench: Any) -> None:
    for runtime, flags in (("tensorrt", 1), ("tensorrt+block", 4), ("tensorrt", 1)):
        session = open_session(plan_of(bench, "mlp"), runtime=runtime)
        found = ctypes.c_uint()
        bench.fake.cudart.cudaGetDeviceFlags(ctypes.byref(found))
        assert found.value == flags, runtime
        assert ("blocking" in session.runtime) is (flags == 4), session.runtime
        session.close()
    assert "DEADWEIGHT_PLUGINS" not in os.environ
