"""Building engines: settings and logs, and NVIDIA's real builder where TensorRT-RTX can be installed.

TensorRT-RTX parses, optimizes and writes plans without a GPU: what it says of a file is no simulation. What
every version of TensorRT itself does is in test_trt.py.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from support import tensorrt_versions as bench

from deadweight.targets.engines.build import build_engine
from deadweight.targets.engines.build_settings import BuildSettings, profiles_for
from deadweight.targets.engines.log import Line, cause, heard, is_simulated, read_log, reason
from deadweight.targets.engines.record import command_for
from deadweight.targets.errors import ModelError, TargetError
from deadweight.targets.plain import plain
from deadweight.targets.runtimes.open import open_session
from deadweight.targets.target import load_target

BATCHES = (1, 4, 8)


def test_a_free_batch_gets_the_three_sizes() -> None:
    made = profiles_for({"x": (-1, 3, 8)}, batch=BATCHES, given={}, model="m.onnx")
    assert made == {"x": ((1, 3, 8), (4, 3, 8), (8, 3, 8))}


def test_fixed_inputs_need_no_profile_and_take_no_other_batch() -> None:
    assert profiles_for({"x": (2, 3)}, batch=(1, 1, 1), given={}, model="m.onnx") == {}
    assert profiles_for({"x": (2, 3)}, batch=(2, 2, 2), given={}, model="m.onnx") == {}
    with pytest.raises(ModelError, match=r"fixed shape \[2, 3\], so its batch cannot be \(1, 4, 8\)"):
        profiles_for({"x": (2, 3)}, batch=BATCHES, given={}, model="m.onnx")


def test_every_wrong_size_is_named_at_once() -> None:
    shapes = {"x": (-1, -1), "y": (-1, 4)}
    falling = ((2, 4), (1, 4), (3, 4))
    with pytest.raises(ModelError) as caught:
        profiles_for(shapes, batch=BATCHES, given={"y": falling, "z": falling}, model="m.onnx")
    for words in ("'z' is not an input", "'x' has the shape [?, ?]", "2x4, 1x4, 3x4 do not fit"):
        assert words in caught.value.what
    assert "--shapes" in caught.value.cure


@pytest.mark.parametrize("batch", [(0, 1, 2), (2, 1, 3), (1, 3, 2)])
def test_batches_that_do_not_rise_are_refused(batch: tuple[int, int, int]) -> None:
    with pytest.raises(TargetError, match="not smallest, usual and largest"):
        BuildSettings(batch=batch)


def test_a_budget_for_fallbacks_needs_a_dla_core() -> None:
    with pytest.raises(TargetError, match="no DLA core"):
        BuildSettings(max_gpu_fallbacks=1)


# Lines of real logs: TensorRT 8.4 to 10 on boards (public reports), TensorRT-RTX 1.7 here.
LOG: list[Line] = [
    (
        "warning",
        "Layer '/model.24/Pow' (ELEMENTWISE): Unsupported on DLA. Switching this layer's device type to GPU.",
    ),
    ("warning", "Default DLA is enabled but layer route_3 is not supported on DLA, falling back to GPU."),
    ("warning", "Default DLA is enabled but layer layer84 is not running on DLA, falling back to GPU."),
    (
        "warning",
        "DLA only supports FP16 and Int8 precision type. Switching (Unnamed Layer* 275) device type to GPU.",
    ),
    ("info", "[DlaLayer] {ForeignNode[conv1...conv9]}"),
    ("info", "[GpuLayer] COPY: Reformatting CopyNode for Output Tensor 0"),
    ("verbose", "Adding reformat layer: Reformatted Input Tensor 0 to conv1 (x) from Float(1) to Int8(1)"),
    (
        "warning",
        "Skipping tactic 0x00 due to insufficient memory on requested size of 1024 detected for tactic 0x00.",
    ),
    ("info", "Total Weights Memory: 23432 bytes"),
    ("info", "Max Scratch Memory: 9546752 bytes"),
    ("info", "Total Device Persistent Memory: 130560"),
]


def test_what_matters_is_found_in_a_log() -> None:
    found = read_log(LOG)
    assert found.fallbacks == ("/model.24/Pow", "route_3", "layer84", "(Unnamed Layer* 275)")
    assert found.dla_layers == ("{ForeignNode[conv1...conv9]}",)
    assert found.gpu_layers == ("COPY: Reformatting CopyNode for Output Tensor 0",)
    assert (found.reformats, found.skipped_tactics) == (1, 1)
    assert dict(found.bytes) == {"weights": 23432, "scratch": 9546752, "device_persistent": 130560}
    assert len(found.warnings) == 5
    assert json.loads(json.dumps(plain(found)))["bytes"]["weights"] == 23432


def test_a_reason_is_the_first_error_and_the_last_where_it_says_more() -> None:
    lines: list[Line] = [("info", "a"), ("error", "first  cause"), ("error", "second"), ("error", "the end")]
    assert reason(lines) == "first cause; then: the end"
    assert reason([("warning", "only a warning")]) == "only a warning"
    assert reason([("verbose", "x")]) == "TensorRT gave no reason"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Error Code 2: OutOfMemory (no further information)", "memory"),
        ("Network has dynamic or shape inputs, but no optimization profile has been defined.", "profile"),
        ("Layer x is not supported on DLA and GPU_FALLBACK is off", "dla"),
        ("CUDA initialization failure with error: 35", "driver"),
        ("Could not find any implementation for node conv1.", "other"),
    ],
)
def test_a_reason_is_of_a_kind(text: str, kind: str) -> None:
    assert cause([("error", text)]) == kind


def test_a_stand_in_is_known_by_what_it_writes() -> None:
    lines: list[Line] = [("warning", "[simulated] This is no TensorRT")]
    assert is_simulated(lines)
    assert not is_simulated(LOG)
    assert read_log(lines).warnings == ()


@pytest.mark.slow
def test_a_board_that_runs_no_engines_gets_none(mlp_file: Path, rtx: Path) -> None:
    done = deadweight_build(mlp_file, rtx, "--target", "x86-cpu")
    assert done.returncode == 2
    assert "runs ONNX files with onnxruntime, not engines" in words(done)


def test_without_tensorrt_the_error_says_how_to_get_it(mlp_file: Path, tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="TensorRT cannot be used from this Python") as caught:
        build_engine(mlp_file, tmp_path / "m.plan")
    assert "python3-libnvinfer" in caught.value.cure
    (tmp_path / "m.plan").write_bytes(b"a plan")
    with pytest.raises(TargetError, match="TensorRT cannot be used from this Python"):
        open_session(tmp_path / "m.plan", runtime="tensorrt")


def test_an_unknown_flavour_is_refused(mlp_file: Path, tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="no TensorRT flavour 'tensorrt_lite'"):
        build_engine(mlp_file, tmp_path / "m.plan", settings=BuildSettings(flavour="tensorrt_lite"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--batch", "1,x,8"], "--batch 1,x,8 is not three numbers"),
        (["--batch", "8,4,1"], "not smallest, usual and largest"),
        (["--shapes", "1x2,2x2"], "is not a name and three shapes"),
        (["--target", "orin-nono"], "no target named 'orin-nono'"),
        (["--max-gpu-fallbacks", "3"], "no DLA core"),
        (["--standalone"], "no DLA core was given"),
        (["--calibration-cache", "ranges.cache"], "no DLA core was given"),
    ],
)
def test_a_wrong_option_is_exit_code_2_with_the_cure(
    mlp_file: Path, options: list[str], message: str
) -> None:
    done = deadweight_build(mlp_file, None, *options)
    assert done.returncode == 2
    assert message in words(done)
    assert "What to do" in words(done)
    assert "Traceback" not in done.stderr


def test_a_missing_model_is_exit_code_2(tmp_path: Path) -> None:
    done = deadweight_build(tmp_path / "no.onnx", None)
    assert done.returncode == 2
    assert "There is no model at" in words(done)


# From here on: the real builder of TensorRT-RTX.


@pytest.fixture(scope="module")
def rtx() -> Path:
    """The packages of TensorRT-RTX: 200 MB, for the slow suite."""
    return bench.installed(*bench.RTX)


@pytest.fixture
def mlp_file(tmp_path: Path) -> Path:
    return bench.save_models(tmp_path / "models") / "mlp.onnx"


@pytest.fixture
def convolutions(tmp_path: Path) -> Path:
    """Two INT8 convolutions with explicit Q/DQ, 16 and 32 channels wide, batch free."""
    generator = np.random.default_rng(0)
    weights: dict[str, np.ndarray] = {
        "zero": np.zeros((), np.int8),
        "scale": np.array(0.05, np.float32),
        "w0": generator.integers(-127, 128, (16, 16, 3, 3), dtype=np.int8),
        "w1": generator.integers(-127, 128, (32, 16, 3, 3), dtype=np.int8),
    }
    nodes, value = [], "x"
    for layer in range(2):
        nodes += [
            helper.make_node("QuantizeLinear", [value, "scale", "zero"], [f"q{layer}"]),
            helper.make_node("DequantizeLinear", [f"q{layer}", "scale", "zero"], [f"d{layer}"]),
            helper.make_node("DequantizeLinear", [f"w{layer}", "scale", "zero"], [f"v{layer}"]),
            helper.make_node("Conv", [f"d{layer}", f"v{layer}"], [f"c{layer}"], name=f"conv{layer}"),
            helper.make_node("Relu", [f"c{layer}"], ["y" if layer else "r0"]),
        ]
        value = "r0"
    graph = helper.make_graph(
        nodes,
        "convolutions",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 16, 16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 32, 12, 12])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    path = tmp_path / "convolutions.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path


def deadweight_build(
    model: Path, packages: Path | None, *options: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    """`deadweight build` in a process of its own, with TensorRT-RTX if its packages are given."""
    command = [sys.executable, "-m", "deadweight", "build", str(model), *options]
    command += ["--flavour", "tensorrt_rtx"] if packages else []
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(packages or ""), "COLUMNS": "400", **environment},
    )


def words(done: subprocess.CompletedProcess[str]) -> str:
    return " ".join((done.stdout + done.stderr).split())


@pytest.mark.slow
def test_the_real_builder_makes_an_int8_plan_with_record_and_log(convolutions: Path, rtx: Path) -> None:
    plan = convolutions.with_suffix(".plan")
    done = deadweight_build(convolutions, rtx, "--batch", "1,4,8", "--sparse")
    assert done.returncode == 0, words(done)
    record = json.loads(Path(f"{plan}.json").read_text())
    assert record["plan"]["bytes"] == plan.stat().st_size > 10_000
    assert record["tensorrt"] == {"flavour": "tensorrt_rtx", "strongly_typed": True, "version": "1.7.1.116"}
    assert record["evidence"] == "measured"
    assert record["flags"] == ["SPARSE_WEIGHTS"]
    assert record["profiles"] == {"x": [[batch, 16, 16, 16] for batch in (1, 4, 8)]}
    assert record["findings"]["bytes"]["weights"] > 0
    assert record["findings"]["errors"] == [], "every setting must be one that the builder takes"
    log = Path(f"{plan}.log").read_text()
    assert "[verbose] Layers:" in log
    assert "Datatype: Int8" in log, "the convolutions must have stayed INT8"
    assert "tensorrt_rtx 1.7.1.116" in words(done)


@pytest.mark.slow
def test_the_rebuild_line_of_a_record_builds_the_same_again(convolutions: Path, rtx: Path) -> None:
    shapes = "x=1x16x16x16,2x16x16x16,4x16x16x16"
    options = ["--shapes", shapes, "--compute-capability", "8.9", "--optimization-level", "2"]
    first = deadweight_build(convolutions, rtx, *options)
    assert first.returncode == 0, words(first)
    record_path = Path(f"{convolutions.with_suffix('.plan')}.json")
    record = json.loads(record_path.read_text())
    line = shlex.split(record["rebuild"])
    assert line[:2] == ["deadweight", "build"]
    record_path.unlink()
    again = subprocess.run(
        [sys.executable, "-m", *line],
        env={**os.environ, "PYTHONPATH": str(rtx)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert again.returncode == 0, again.stderr
    answer = json.loads(record_path.read_text())
    assert answer["settings"] == record["settings"]
    assert answer["rebuild"] == record["rebuild"]


@pytest.mark.slow
def test_the_real_parser_names_the_operator_that_it_lacks(mlp_file: Path, rtx: Path) -> None:
    odd = mlp_file.with_name("unsupported.onnx")
    done = deadweight_build(odd, rtx, "--precision", "fp32")
    assert done.returncode == 2
    assert "cannot read unsupported.onnx" in words(done)
    assert "NonMaxSuppressionOfOurs" in words(done)
    assert not odd.with_suffix(".plan").exists()


@pytest.mark.slow
def test_the_real_parser_names_the_node_of_mixed_types_and_the_cure_is_a_cast(
    mlp_file: Path, rtx: Path
) -> None:
    done = deadweight_build(mlp_file.with_name("mixed.onnx"), rtx)
    assert done.returncode == 2
    assert "Add 'Add_y'" in words(done)
    assert "must have same input types" in words(done)
    assert "add a Cast before the node" in words(done)


@pytest.mark.slow
def test_a_file_that_is_no_onnx_is_refused_by_the_real_parser(tmp_path: Path, rtx: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not protobuf at all")
    done = deadweight_build(broken, rtx)
    assert done.returncode == 2
    assert "What to do" in words(done)
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--target", "orin-nano-8gb"], "cannot build for compute capability 8.7"),
        (["--compute-capability", "8.7"], "has no GPU of capability 8.7"),
        (["--hardware-compatibility", "everything"], "has no level 'everything'"),
        (["--dla-core", "0"], "TensorRT-RTX has no DLA"),
        (["--version-compatible"], "Unable to load library"),
    ],
)
def test_what_tensorrt_rtx_cannot_do_is_refused(
    convolutions: Path, rtx: Path, options: list[str], message: str
) -> None:
    done = deadweight_build(convolutions, rtx, *options)
    assert done.returncode == 2
    assert message in words(done)
    assert not convolutions.with_suffix(".plan").exists()


@pytest.mark.slow
def test_a_plan_is_not_opened_without_a_gpu_and_the_reason_is_cudas(
    convolutions: Path, rtx: Path, tmp_path: Path
) -> None:
    assert deadweight_build(convolutions, rtx).returncode == 0
    libraries = bench.fake_libraries(tmp_path, major="10")
    code = (
        "from pathlib import Path\n"
        "from deadweight.targets.runtimes.open import open_session\n"
        "from deadweight.targets.errors import DeadweightError\n"
        f"try: open_session(Path({str(convolutions.with_suffix('.plan'))!r}), runtime='tensorrt_rtx')\n"
        "except DeadweightError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(rtx), "DEADWEIGHT_CUDA": f"ctypes:{libraries / 'libcudart.so'}"},
    )
    assert "tensorrt_rtx 1.7.1.116 cannot open convolutions.plan" in done.stdout
    assert "CUDA driver version is insufficient" in done.stdout
    assert "--flavour tensorrt_rtx" in done.stdout


def test_the_rebuild_line_holds_every_setting_that_is_not_the_default() -> None:
    settings = {
        **BuildSettings(
            batch=BATCHES,
            dla_core=1,
            max_gpu_fallbacks=3,
            sparse=True,
            workspace_bytes=7,
            precision="best",
            standalone=True,
            calibration_cache="r.cache",
            plugins=("a.so", "b.so"),
            hide_layers=True,
        ).__dict__,
        "shapes": {"x": ((1, 2), (3, 4), (5, 6))},
    }
    line = command_for(Path("a b.onnx"), Path("m.plan"), settings, "orin-nx-16gb")
    assert line == (
        "deadweight build 'a b.onnx' --out m.plan --target orin-nx-16gb --shapes x=1x2,3x4,5x6 --plugin a.so "
        "--plugin b.so --batch 1,4,8 --workspace-bytes 7 --precision best --sparse --dla-core 1 "
        "--max-gpu-fallbacks 3 --calibration-cache r.cache --standalone --hide-layers"
    )
    assert load_target("orin-nx-16gb").runtime.name == "tensorrt"


def test_a_log_goes_to_who_listens_last_and_then_to_who_listened_before() -> None:
    class Base:
        """What TensorRT gives a logger to be made of."""

    trt = SimpleNamespace(__name__="a_tensorrt_of_this_test", ILogger=Base)
    with heard(trt) as (logger, outer):
        logger.log("Severity.INFO", "one")
        with heard(trt) as (same, inner):
            assert same is logger, "a process has one logger"
            logger.log("Severity.ERROR", "two")
        logger.log("Severity.WARNING", "three")
    assert outer == [("info", "one"), ("warning", "three")]
    assert inner == [("error", "two")]
