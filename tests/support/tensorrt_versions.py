"""What the tests of TensorRT share: the models, NVIDIA's real bindings, and the fake behind them.

The bindings are a test dependency with NVIDIA's own licence: they are installed from the package registry
into folders of their own, never kept here. Each version runs in a process of its own, which has no other.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

FAKE = Path(__file__).parents[1] / "targets" / "fake_tensorrt"
CACHE = Path(os.environ.get("DEADWEIGHT_TEST_CACHE", "~/.cache/deadweight-tests")).expanduser()
PACKAGES = {
    "8.6.1": "tensorrt-bindings==8.6.1",
    "10.3.0": "tensorrt-cu12-bindings==10.3.0",
    "10.7.0": "tensorrt-cu12-bindings==10.7.0",
    "10.13.3.9": "tensorrt-cu12-bindings==10.13.3.9",
    "10.16.1.11": "tensorrt-cu12-bindings==10.16.1.11",
    "11.4.0.106": "tensorrt-cu13-bindings==11.4.0.106",
}
RTX = (
    "tensorrt-rtx-cu13-libs==1.7.1.116",
    "tensorrt-rtx-cu13-bindings==1.7.1.116",
    "nvidia-cuda-runtime==13.0.96",
)


@cache
def installed(*packages: str) -> Path:
    """A folder that holds these packages and nothing else; skips the test where they cannot be had."""
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}-{platform.machine()}"
    folder = CACHE / f"{packages[0].replace('==', '-')}-{tag}"
    if not folder.is_dir():
        beside = folder.with_name(f".{folder.name}.{os.getpid()}")
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary", ":all:"]
        done = subprocess.run(
            [*pip, "--target", str(beside), *packages], capture_output=True, text=True, check=False
        )
        if done.returncode:
            shutil.rmtree(beside, ignore_errors=True)
            pytest.skip(
                f"{packages[0]} cannot be installed here: {done.stderr.strip().splitlines()[-1][:200]}"
            )
        try:
            beside.rename(folder)
        except OSError:  # another process was faster
            shutil.rmtree(beside, ignore_errors=True)
    return folder


def save_models(folder: Path) -> Path:
    """The contract's models, and inputs with ONNX Runtime's outputs."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    x = generator.standard_normal((8, 16)).astype(np.float32)
    first = generator.standard_normal((16, 8)).astype(np.float32)
    second = generator.standard_normal((8, 3)).astype(np.float32)
    weights = {"w0": first, "w1": second}
    layers = [("MatMul", ["x", "w0"], "m0"), ("Relu", ["m0"], "r0"), ("MatMul", ["r0", "w1"], "y")]
    _save(folder / "mlp.onnx", layers, weights, x=["batch", 16], y=["batch", 3])
    _save(folder / "fixed.onnx", layers, weights, x=[2, 16], y=[2, 3])
    _save(folder / "free.onnx", [("Add", ["x", "x"], "y")], {}, x=["n", "m"], y=["n", "m"])
    odd = [("NonMaxSuppressionOfOurs", ["x"], "y")]
    _save(folder / "unsupported.onnx", odd, {}, x=["batch", 16], y=["batch", 16], checked=False)
    scale = np.float32(np.abs(first).max() / 127)
    quantized: dict[str, np.ndarray] = {
        "w0": np.clip(np.round(first / scale), -127, 127).astype(np.int8),
        "w_scale": np.array(scale),
        "x_scale": np.array(np.float32(4 / 127)),
        "zero": np.zeros((), np.int8),
        "w1": second,
    }
    int8 = [
        ("QuantizeLinear", ["x", "x_scale", "zero"], "xq"),
        ("DequantizeLinear", ["xq", "x_scale", "zero"], "xd"),
        ("DequantizeLinear", ["w0", "w_scale", "zero"], "wd"),
        ("MatMul", ["xd", "wd"], "m0"),
        ("Relu", ["m0"], "r0"),
        ("QuantizeLinear", ["r0", "x_scale", "zero"], "rq"),
        ("DequantizeLinear", ["rq", "x_scale", "zero"], "rd"),
        ("MatMul", ["rd", "w1"], "y"),
    ]
    _save(folder / "qdq.onnx", int8, quantized, x=["batch", 16], y=["batch", 3])
    _save_what_boards_meet(folder)
    for name, batch in (("mlp", 8), ("fixed", 2), ("qdq", 8)):
        session = onnxruntime.InferenceSession(
            str(folder / f"{name}.onnx"), providers=["CPUExecutionProvider"]
        )
        np.savez(folder / f"{name}.npz", x=x[:batch], y=np.asarray(session.run(None, {"x": x[:batch]})[0]))
    return folder


def _save_what_boards_meet(folder: Path) -> None:
    """Networks with a plugin of TensorRT's, a size that depends on the data, int64 ids, mixed types."""
    generator = np.random.default_rng(1)
    batch: int | str = "batch"
    boxes: dict[str, np.ndarray] = {
        "boxes": np.array([[0, 0, 6, 6], [1, 1, 5, 7]], np.float32),
        "of": np.zeros(2, np.int64),
    }
    roi = helper.make_node(
        "RoiAlign", ["x", "boxes", "of"], ["y"], name="roi", output_height=2, output_width=2
    )
    found = [("Relu", ["x"], "r0"), ("NonZero", ["r0"], "y")]
    table = {"table": generator.standard_normal((50, 8)).astype(np.float32)}
    half = {"w": np.ones(16, np.float16)}
    _save(folder / "roi.onnx", [roi], boxes, x=[1, 3, 8, 8], y=[2, 3, 2, 2])
    _save(folder / "nonzero.onnx", found, {}, x=[batch, 16], y=[2, "found"], gives=TensorProto.INT64)
    _save(
        folder / "tokens.onnx",
        [("Gather", ["table", "x"], "y")],
        table,
        x=[batch, 4],
        y=[batch, 4, 8],
        takes=TensorProto.INT64,
    )
    _save(folder / "mixed.onnx", [("Add", ["x", "w"], "y")], half, x=[2, 16], y=[2, 16], checked=False)
    ours = [("NormOfOurs", ["x"], "y")]
    _save(folder / "ours.onnx", ours, {}, x=[batch, 16], y=[batch, 16], checked=False)


def _save(
    path: Path,
    layers: Sequence[tuple[str, list[str], str] | onnx.NodeProto],
    weights: dict[str, np.ndarray],
    *,
    x: list[int | str],
    y: list[int | str],
    takes: int = TensorProto.FLOAT,
    gives: int = TensorProto.FLOAT,
    checked: bool = True,
) -> None:
    graph = helper.make_graph(
        [
            layer
            if isinstance(layer, onnx.NodeProto)
            else helper.make_node(layer[0], layer[1], [layer[2]], name=f"{layer[0]}_{layer[2]}")
            for layer in layers
        ],
        path.stem,
        [helper.make_tensor_value_info("x", takes, x)],
        [helper.make_tensor_value_info("y", gives, y)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    if checked:
        onnx.checker.check_model(model)
    onnx.save(model, str(path))


def fake_libraries(folder: Path, *, major: str) -> Path:
    """The fake, compiled for a major version; skips the test where there is no compiler."""
    if shutil.which("gcc") is None or platform.machine() != "x86_64":
        pytest.skip("the fake needs gcc on x86-64, where NVIDIA's bindings are to be had")
    built = folder / f"fake-{major}"
    done = subprocess.run(
        [sys.executable, str(FAKE / "compile.py"), str(built), major],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return built


def contract(version: str, folder: Path) -> dict[str, str]:
    """What the contract says of a version over the fake: by check, "" or what was raised."""
    major = version.split(".")[0]
    bindings = installed(PACKAGES[version])
    models = save_models(folder / f"models-{version}")
    done = subprocess.run(
        [
            sys.executable,
            str(FAKE / "contract.py"),
            str(models),
            "--major",
            major,
            "--fake",
            str(fake_libraries(folder, major=major)),
            "--bindings",
            str(bindings),
        ],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "XDG_CACHE_HOME": str(folder / "cache"), "OMP_NUM_THREADS": "1"},
    )
    lines = done.stdout.strip().splitlines()
    assert lines, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    assert lines[-1].startswith("{"), f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    found: dict[str, str] = json.loads(lines[-1])
    return found


def contract_on(board: str, folder: Path) -> dict[str, str]:
    """What the contract says on a board, by ssh; it gets the ground floor and the models; nothing stays."""
    models = save_models(folder / "models")
    root = FAKE.parents[2]
    ssh = ["ssh", "-o", "BatchMode=yes", board]
    made = subprocess.run([*ssh, "mktemp -d"], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.fail(f"{board} cannot be reached: {made.stderr.strip()}")
    there = made.stdout.strip()
    files = [
        "deadweight/__init__.py",
        "targets",
        "tests/targets/fake_tensorrt/contract.py",
    ]
    try:
        packed = subprocess.run(
            ["tar", "-cz", "--exclude=__pycache__", "-C", str(root), *files, "-C", str(folder), models.name],
            capture_output=True,
            check=True,
        ).stdout
        line = f"cd {there} && tar xz && ln -s ../targets deadweight/targets"
        subprocess.run([*ssh, line], input=packed, check=True)
        done = subprocess.run(
            [*ssh, f"cd {there} && python3 tests/targets/fake_tensorrt/contract.py models"],
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        subprocess.run([*ssh, f"rm -r {there}"], check=False)
    lines = done.stdout.strip().splitlines()
    assert lines, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    assert lines[-1].startswith("{"), f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    found: dict[str, str] = json.loads(lines[-1])
    return found


_NAMES = """
import json, sys
sys.path.insert(0, sys.argv[1])
import ctypes, pathlib
for library in sorted(pathlib.Path(sys.argv[2]).glob("lib*.so.*")):
    ctypes.CDLL(str(library))
import tensorrt_bindings as trt
print(json.dumps({name: dir(getattr(trt, name)) for name in dir(trt)}))
"""


def same_surface(version: str, surface: dict[str, Any], folder: Path) -> None:
    """Imports the real bindings of a version over empty libraries and compares their names with `surface`."""
    if shutil.which("gcc") is None or platform.machine() != "x86_64":
        pytest.skip("the bindings need gcc for the libraries behind them, and x86-64")
    bindings, major = installed(PACKAGES[version]), version.split(".")[0]
    names = [
        "libnvinfer",
        "libnvonnxparser",
        "libnvinfer_plugin",
        *(["libnvparsers"] if major == "8" else []),
    ]
    for name in names:
        soname = f"{name}.so.{major}"
        empty = [str(FAKE / "empty.c"), "-o", str(folder / soname)]
        subprocess.run(["gcc", "-shared", "-fPIC", f"-Wl,-soname,{soname}", *empty], check=True)
    done = subprocess.run(
        [sys.executable, "-c", _NAMES, str(bindings), str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    real: dict[str, list[str]] = json.loads(done.stdout)
    for kind, held in surface.items():
        members = held.get("members", held.get("enum", {}))
        missing = [name for name in members if name not in real.get(kind, [])]
        assert not missing, f"{kind} of {version} has no {missing}"
    assert len(surface) > 10
