"""trtexec: its flags by version, its exports, and a build through a program that stands in for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from deadweight.targets.engines.build_settings import BuildSettings
from deadweight.targets.engines.trtexec import (
    build_flags,
    lines_of,
    profile_flags,
    run_trtexec,
    timing_flags,
    version_in,
)
from deadweight.targets.errors import ModelError, TargetError
from deadweight.targets.onnx_file import Node, Nodes

MakeMlp = Callable[..., Path]
MODEL, PLAN = Path("m.onnx"), Path("m.plan")
QDQ = Nodes((Node("q", "QuantizeLinear", ("x", "s"), ("y",)),), {})
FLOAT = Nodes((Node("m", "MatMul", ("x", "w"), ("y",)),), {"w": (3, 2)})
HALF = replace(FLOAT, half=True)
SHAPES = {"x": ((1, 3), (4, 3), (8, 3))}

STAND_IN = """#!{python}
import pathlib, sys
print("&&&& RUNNING TensorRT.trtexec [TensorRT v{number}] # trtexec " + " ".join(sys.argv[1:]))
if {fails!r} and "--help" not in sys.argv:
    print("[11/22/2026-10:00:00] [E] [TRT] {fails}")
    print("[11/22/2026-10:00:00] [E] Engine could not be created from network")
    sys.exit(1)
for flag in sys.argv[1:]:
    if flag.startswith("--saveEngine="):
        pathlib.Path(flag.split("=", 1)[1]).write_bytes(b"a plan of the stand-in")
print("[11/22/2026-10:00:00] [W] [TRT] [simulated] This is no TensorRT.")
print("[11/22/2026-10:00:01] [V] [TRT] Adding reformat layer: Reformatted Input Tensor 0 to conv1")
print("[11/22/2026-10:00:02] [I] [TRT] Total Weights Memory: 4096 bytes")
print("&&&& PASSED TensorRT.trtexec [TensorRT v{number}]")
"""


def stand_in(folder: Path, *, number: int = 100300, fails: str = "") -> Path:
    """A program that speaks as trtexec does, and says that it is none."""
    folder.mkdir(exist_ok=True)
    program = folder / "trtexec"
    program.write_text(STAND_IN.format(python=sys.executable, number=number, fails=fails))
    program.chmod(0o755)
    return program


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
    flags = build_flags(
        MODEL, PLAN, settings, version=version, limits={"workspace_bytes": 64 << 20}, file=QDQ
    )
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
    flags = build_flags(MODEL, PLAN, settings, version=version, limits={}, file=file)
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
        build_flags(MODEL, PLAN, BuildSettings(precision=precision), version=version, limits={}, file=file)
    assert "--precision" in caught.value.cure


def test_dla_is_asked_for_with_its_flags() -> None:
    flags = build_flags(MODEL, PLAN, BuildSettings(dla_core=1), version="10.3.0", limits={}, file=QDQ)
    assert {"--useDLACore=1", "--allowGPUFallback", "--int8"} <= set(flags)
    assert "--stronglyTyped" not in flags


@pytest.mark.parametrize(("version", "core"), [("8.5.2", None), ("8.6.1", 0), ("10.3.0", 0)])
def test_a_model_without_qdq_is_not_given_ranges_at_random(version: str, core: int | None) -> None:
    settings = BuildSettings(dla_core=core)
    flags = build_flags(MODEL, PLAN, settings, version=version, limits={}, file=FLOAT)
    assert "--int8" not in flags
    assert "--fp16" in flags


def test_a_batch_alone_is_refused_because_trtexec_wants_whole_shapes() -> None:
    with pytest.raises(ModelError, match="needs whole shapes") as caught:
        build_flags(MODEL, PLAN, BuildSettings(batch=(1, 4, 8)), version="10.3.0", limits={}, file=QDQ)
    assert "--shapes" in caught.value.cure


def test_two_versions_are_timed_alike_whatever_their_defaults() -> None:
    old = set(timing_flags(PLAN, Path("t.json"), version="10.3.0", shapes={"x": (4, 3)}))
    new = set(timing_flags(PLAN, Path("t.json"), version="11.4.0", shapes={"x": (4, 3)}))
    # Version 11 spins, leaves transfers out and uses a graph by itself.
    assert old - new == {"--useSpinWait", "--noDataTransfers", "--useCudaGraph"}
    assert new <= old
    assert "--shapes=x:4x3" in new
    assert "--useCudaGraph" not in timing_flags(PLAN, Path("t.json"), version="10.3.0", graph=False)
    assert "--noCudaGraph" in timing_flags(PLAN, Path("t.json"), version="11.4.0", graph=False)


def test_layers_are_profiled_in_a_run_of_their_own() -> None:
    flags = profile_flags(PLAN, Path("p.json"), Path("l.json"), version="10.3.0")
    assert {"--separateProfileRun", "--exportProfile=p.json", "--exportLayerInfo=l.json"} <= set(flags)


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
    program = stand_in(tmp_path / "bin", fails="Error Code 2: OutOfMemory (no further information)")
    with pytest.raises(ModelError, match="OutOfMemory") as caught:
        run_trtexec(program, ["--onnx=m.onnx"], doing="build m.onnx")
    assert "--workspace-bytes" in caught.value.cure


def test_a_program_that_does_not_start_is_a_target_error(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="cannot be started"):
        run_trtexec(tmp_path / "no", [], doing="build m.onnx")


def test_without_python_bindings_the_command_builds_by_trtexec(mlp: MakeMlp, tmp_path: Path) -> None:
    model = mlp(3, 4)
    program = stand_in(tmp_path / "bin")
    code = (
        "import sys\nfrom deadweight.targets.engines.build import build_engine\n"
        "from deadweight.targets.engines.build_settings import BuildSettings\n"
        f"settings = BuildSettings(shapes={SHAPES!r}, precision='fp32')\n"
        "built = build_engine(sys.argv[1], sys.argv[2], settings=settings)\n"
    )
    environment = {**os.environ, "PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}"}
    plan = tmp_path / "m.plan"
    subprocess.run([sys.executable, "-c", code, str(model), str(plan)], env=environment, check=True)
    record = json.loads(Path(f"{plan}.json").read_text())
    assert plan.read_bytes() == b"a plan of the stand-in"
    assert record["by"] == str(program)
    assert record["tensorrt"] == {"flavour": "tensorrt", "version": "10.3.0", "strongly_typed": True}
    assert record["evidence"] == "simulated"
    assert record["findings"]["reformats"] == 1
    assert record["findings"]["bytes"] == {"weights": 4096}
    assert record["plan"]["bytes"] == plan.stat().st_size
