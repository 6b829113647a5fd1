"""trtexec: its flags by version, its exports, and a build through a program that stands in for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from support.trtexec import TIMINGS, stand_in

from deadweight.targets.engines.build import build_engine
from deadweight.targets.engines.build_settings import BuildSettings, Prepared
from deadweight.targets.engines.trtexec import (
    build_flags,
    lines_of,
    loading_flags,
    profile_flags,
    run_trtexec,
    run_with_timings,
    shapes_flag,
    timing_flags,
    version_in,
    version_of,
)
from deadweight.targets.errors import ModelError, TargetError
from deadweight.targets.onnx_file import Node, Nodes

MakeMlp = Callable[..., Path]
MODEL, PLAN = Path("m.onnx"), Path("m.plan")
QDQ = Nodes((Node("q", "QuantizeLinear", ("x", "s"), ("y",)),), {})
FLOAT = Nodes((Node("m", "MatMul", ("x", "w"), ("y",)),), {"w": (3, 2)})
HALF = replace(FLOAT, half=True)
SHAPES = {"x": ((1, 3), (4, 3), (8, 3))}


def flags_of(version: str, settings: BuildSettings, file: Nodes) -> list[str]:
    """The flags of a build of fixed shapes without limits."""
    return build_flags(Prepared(MODEL, settings, file, version, {}, None, None), PLAN, {})


@pytest.mark.parametrize(
    ("number", "version"),
    [(8412, "8.4.12"), (8502, "8.5.2"), (100300, "10.3.0"), (101303, "10.13.3"), (110400, "11.4.0")],
)
def test_a_version_is_read_from_the_banner(number: int, version: str) -> None:
    assert version_in(f"&&&& RUNNING TensorRT.trtexec [TensorRT v{number}] # trtexec --help") == version


def test_no_banner_is_an_error() -> None:
    with pytest.raises(TargetError, match="does not print its TensorRT version"):
        version_in("usage: trtexec")


@pytest.mark.parametrize(
    ("version", "has", "has_not"),
    [
        ("8.5.2", {"--int8", "--fp16", "--buildOnly"}, {"--stronglyTyped", "--skipInference"}),
        ("8.6.1", {"--int8", "--fp16", "--skipInference"}, {"--stronglyTyped", "--buildOnly"}),
        ("10.3.0", {"--stronglyTyped", "--skipInference"}, {"--int8", "--fp16"}),
        ("11.4.0", {"--skipInference"}, {"--stronglyTyped", "--int8", "--fp16"}),
    ],
)
def test_a_build_asks_for_what_its_version_has(version: str, has: set[str], has_not: set[str]) -> None:
    settings = BuildSettings(shapes=SHAPES, sparse=True, optimization_level=4)
    prepared = Prepared(MODEL, settings, QDQ, version, {"workspace_bytes": 64 << 20}, None, None)
    flags = build_flags(prepared, PLAN, SHAPES)
    common = {
        "--onnx=m.onnx",
        "--saveEngine=m.plan",
        "--minShapes=x:1x3",
        "--optShapes=x:4x3",
        "--maxShapes=x:8x3",
        "--memPoolSize=workspace:64",
        "--sparsity=enable",
        "--builderOptimizationLevel=4",
    }
    assert has | common <= set(flags)
    assert not has_not & set(flags)


@pytest.mark.parametrize(
    ("version", "file", "precision", "has"),
    [
        ("8.5.2", FLOAT, "fp32", set()),
        ("8.5.2", FLOAT, "fp16", {"--fp16"}),
        ("8.5.2", FLOAT, "best", {"--fp16"}),
        ("10.3.0", FLOAT, "fp32", {"--stronglyTyped"}),
        ("10.3.0", FLOAT, "fp16", {"--fp16"}),
        ("10.3.0", FLOAT, "best", {"--fp16", "--bf16"}),
        ("10.3.0", HALF, "fp16", {"--stronglyTyped"}),
        ("10.3.0", QDQ, "best", {"--stronglyTyped"}),
        ("11.4.0", FLOAT, "fp32", set()),
        ("11.4.0", HALF, "fp16", set()),
        ("11.4.0", QDQ, "fp16", set()),
    ],
)
def test_each_version_has_fp16_by_its_flag_or_by_the_file(
    version: str, file: Nodes, precision: str, has: set[str]
) -> None:
    settings = BuildSettings(precision=precision)
    flags = flags_of(version, settings, file)
    assert {"--fp16", "--bf16", "--int8", "--stronglyTyped"} & set(flags) == has


@pytest.mark.parametrize(
    ("version", "file", "precision", "words"),
    [
        ("11.4.0", FLOAT, "fp16", "has no flag for FP16"),
        ("11.4.0", FLOAT, "best", "has no flag for FP16"),
        ("10.3.0", HALF, "fp32", "cannot be built in FP32"),
    ],
)
def test_a_precision_that_neither_flag_nor_file_can_give_is_refused(
    version: str, file: Nodes, precision: str, words: str
) -> None:
    with pytest.raises(ModelError, match=words) as caught:
        flags_of(version, BuildSettings(precision=precision), file)
    assert "--precision" in caught.value.cure


def test_dla_is_asked_for_with_its_flags() -> None:
    flags = flags_of("10.3.0", BuildSettings(dla_core=1), QDQ)
    assert {"--useDLACore=1", "--allowGPUFallback", "--int8"} <= set(flags)
    assert "--stronglyTyped" not in flags


def test_ranges_loadables_plugins_and_hidden_names_have_their_flags() -> None:
    settings = BuildSettings(
        dla_core=0,
        calibration_cache="ranges.cache",
        standalone=True,
        plugins=("libours.so",),
        hide_layers=True,
    )
    for version, plugin in (("8.5.2", "--plugins=libours.so"), ("10.3.0", "--staticPlugins=libours.so")):
        flags = flags_of(version, settings, FLOAT)
        has = {"--int8", "--fp16", "--calib=ranges.cache", "--buildDLAStandalone", plugin}
        assert {*has, "--profilingVerbosity=none", "--inputIOFormats=fp16:chw16"} <= set(flags)
        assert "--allowGPUFallback" not in flags


def test_what_dla_cannot_take_is_refused_before_trtexec_builds(
    mlp: MakeMlp, tmp_path: Path, trtexec_only: Callable[..., Path]
) -> None:
    trtexec_only()
    settings = BuildSettings(dla_core=0, batch=(1, 4, 8))
    with pytest.raises(TargetError, match="DLA has no dynamic dimensions, but the batch 1, 4, 8"):
        build_engine(mlp(3, 4), tmp_path / "m.plan", settings=settings)


@pytest.mark.parametrize(("version", "core"), [("8.5.2", None), ("8.6.1", 0), ("10.3.0", 0)])
def test_a_model_without_qdq_is_not_given_ranges_at_random(version: str, core: int | None) -> None:
    settings = BuildSettings(dla_core=core)
    flags = flags_of(version, settings, FLOAT)
    assert "--int8" not in flags
    assert "--fp16" in flags


def test_two_versions_are_timed_alike_whatever_their_defaults() -> None:
    old = set(timing_flags(version="10.3.0", graph=True, duration_s=0.25))
    new = set(timing_flags(version="11.4.0", graph=True, duration_s=0.25))
    # Version 11 spins, leaves transfers out and uses a graph by itself.
    assert old - new == {"--useSpinWait", "--noDataTransfers", "--useCudaGraph"}
    assert new == {"--warmUp=500", "--duration=0.25"}
    assert "--useCudaGraph" not in timing_flags(version="10.3.0", graph=False, duration_s=1)
    assert "--noCudaGraph" in timing_flags(version="11.4.0", graph=False, duration_s=1)


def test_layers_are_profiled_in_a_run_of_their_own() -> None:
    assert "--separateProfileRun" in profile_flags(version="10.3.0")
    assert "--separateProfileRun" not in profile_flags(version="11.4.0")


def test_a_name_with_a_colon_is_quoted() -> None:
    assert shapes_flag("shapes", {"in:0": (1, 3), "y": (2,)}) == ["--shapes='in:0':1x3,y:2"]
    assert loading_flags({"in:0": "0.bin"}) == ["--loadInputs='in:0':0.bin"]
    assert shapes_flag("shapes", {}) == loading_flags({}) == []


def test_a_log_is_read_as_the_bindings_would_give_it() -> None:
    # Lines of a board (TensorRT 8.4.12 on Orin), and a text of more than one line.
    output = (
        "&&&& RUNNING TensorRT.trtexec [TensorRT v8412] # trtexec --onnx=a.onnx\n"
        "[01/10/2024-21:52:50] [I] === Device Information ===\n"
        "[01/10/2024-21:52:53] [I] [TRT] [GpuLayer] COPY: /conv/_input_quantizer/QuantizeLinear\n"
        "[01/10/2024-21:55:12] [V] [TRT] Layers:\nName: conv1\n"
    )
    assert lines_of(output) == [
        ("info", "=== Device Information ==="),
        ("info", "[GpuLayer] COPY: /conv/_input_quantizer/QuantizeLinear"),
        ("verbose", "Layers:\nName: conv1"),
    ]


def test_a_failure_is_reported_in_tensorrts_words(tmp_path: Path) -> None:
    program = stand_in(tmp_path / "bin", fault="Error Code 2: OutOfMemory (no further information)")
    with pytest.raises(ModelError, match="OutOfMemory") as caught:
        run_trtexec(program, ["--onnx=m.onnx"], doing="build m.onnx")
    assert "--workspace-bytes" in caught.value.cure


def test_a_program_that_does_not_start_is_a_target_error(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="cannot be started"):
        run_trtexec(tmp_path / "no", [], doing="build m.onnx")


@pytest.mark.parametrize(
    ("fault", "says", "cure"),
    [
        ("killed", "signal 9 ended it", "memory runs out"),
        ("crashed", "signal 11 ended it", "Run it in a shell"),
        ("silent", "does not print its TensorRT version", "--help"),
    ],
)
def test_a_program_that_is_killed_crashes_or_says_nothing_is_reported(
    tmp_path: Path, fault: str, says: str, cure: str
) -> None:
    program = stand_in(tmp_path / "bin", fault=fault)
    with pytest.raises((ModelError, TargetError), match=says) as caught:
        run_trtexec(program, ["--onnx=m.onnx"], doing="build m.onnx")
    assert cure in caught.value.cure


def test_a_program_that_hangs_is_ended_with_its_command(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"did not build m\.onnx in 1 s, and was ended") as caught:
        run_trtexec(
            stand_in(tmp_path / "bin", fault="hung"), ["--onnx=m.onnx"], doing="build m.onnx", limit_s=1
        )
    assert "trtexec --onnx=m.onnx" in caught.value.cure


def test_a_version_before_the_flags_that_are_known_is_refused(tmp_path: Path) -> None:
    assert version_of(stand_in(tmp_path / "new", number=8412)) == "8.4.12"
    with pytest.raises(TargetError, match=r"TensorRT 8\.2\.1; 8\.4 is the oldest"):
        version_of(stand_in(tmp_path / "old", number=8201))


def test_without_python_bindings_the_command_builds_by_trtexec(
    mlp: MakeMlp, tmp_path: Path, trtexec_only: Callable[..., Path]
) -> None:
    program, plan = trtexec_only(), tmp_path / "m.plan"
    model = mlp(3, 4)
    build_engine(model, plan, settings=BuildSettings(batch=(1, 4, 8)))
    record = json.loads(Path(f"{plan}.json").read_text())
    assert model.read_bytes() in plan.read_bytes()
    assert record["by"] == str(program)
    assert record["tensorrt"]["version"] == "10.3.0"
    assert record["evidence"] == "simulated"
    # The shapes come from the file: trtexec knows no batch.
    assert record["profiles"] == {"x": [[1, 3], [4, 3], [8, 3]]}
    assert {"--minShapes=x:1x3", "--optShapes=x:4x3", "--maxShapes=x:8x3"} <= set(record["flags"])
    assert record["inputs"] == [["x", "float32", [-1, 3]]]
    assert record["findings"]["reformats"] == 1
    assert record["findings"]["bytes"] == {"weights": 4096}
    assert record["plan"]["bytes"] == plan.stat().st_size


def test_kernel_timings_are_kept_and_used_and_damaged_ones_are_replaced(mlp: MakeMlp, tmp_path: Path) -> None:
    program, timings = stand_in(tmp_path / "bin"), tmp_path / "cache" / "t.cache"
    flags = [f"--onnx={mlp(3, 4)}", f"--saveEngine={tmp_path / 'm.plan'}"]

    def built(cache: Path | None) -> tuple[bool, str]:
        _, used, why = run_with_timings(program, flags, cache, doing="build m.onnx")
        assert cache is None or cache.read_bytes() == TIMINGS
        return used, why

    assert built(None) == (False, "the GPU is unknown here")
    assert built(timings) == (False, "there were none")
    assert built(timings) == (True, "")
    timings.write_bytes(b"cut")
    used, why = built(timings)
    assert not used
    assert "Failed to create timingCache" in why


def test_an_engine_that_was_not_written_is_an_error_and_nothing_is_left(
    mlp: MakeMlp, tmp_path: Path, trtexec_only: Callable[..., Path]
) -> None:
    trtexec_only(fault="lost")
    with pytest.raises(ModelError, match="wrote no engine"):
        build_engine(mlp(3, 4), tmp_path / "m.plan")
    assert not list(tmp_path.glob("*plan*"))
