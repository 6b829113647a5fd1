"""A program that speaks as trtexec does, and says in its log that it is none.

Its plan is the ONNX file behind a line of JSON; ONNX Runtime computes outputs; times are made up from the
size of the plan. Flags, exports and log lines are those of NVIDIA/TensorRT's samples at 8.4.1, 8.5.2, 10.3.0
and 11.1.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

TIMINGS = b"timings of the stand-in"
MAGIC = b"a plan of the stand-in\n"
OLD = 8500
"""Before this version the warm-up is in the exported times."""
WORDS = "[11/22/2026-10:00:00] [{}] {}"


def stand_in(folder: Path, *, number: int = 100300, fault: str = "") -> Path:
    """Writes the program `trtexec`.

    `number` is the version as in its banner. `fault`: `killed` and `crashed` (by a signal), `hung`, `silent`
    (prints and writes nothing), `lost` (writes nothing), or an error that it prints before it ends with 1.
    """
    folder.mkdir(exist_ok=True, parents=True)
    program = folder / "trtexec"
    here = str(Path(__file__).parents[1])
    program.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {here!r})\n"
        f"from support.trtexec import main\nmain(sys.argv[1:], number={number}, fault={fault!r})\n"
    )
    program.chmod(0o755)
    return program


def main(arguments: list[str], *, number: int, fault: str) -> None:
    """One call of trtexec."""
    flags = {name: value for name, _, value in (argument[2:].partition("=") for argument in arguments)}
    if fault == "silent":
        return
    if fault == "hung":
        time.sleep(60)
    print(f"&&&& RUNNING TensorRT.trtexec [TensorRT v{number}] # trtexec " + " ".join(arguments))
    _say("W", "[TRT] [simulated] This is no TensorRT.")
    if "help" in flags:
        return
    sys.stdout.flush()
    if fault in ("killed", "crashed"):
        os.kill(os.getpid(), signal.SIGKILL if fault == "killed" else signal.SIGSEGV)
    if fault and fault != "lost":
        _fail(number, f"[TRT] {fault}", "Engine could not be created from network")
    if "onnx" in flags:
        _build(flags, number, lost=fault == "lost")
    else:
        _infer(flags, number, lost=fault == "lost")
    print(f"&&&& PASSED TensorRT.trtexec [TensorRT v{number}]")


def _build(flags: dict[str, str], number: int, *, lost: bool) -> None:
    model = Path(flags["onnx"]).read_bytes()
    shapes = {name: _shapes(flags.get(name, "")) for name in ("minShapes", "optShapes", "maxShapes")}
    _say("V", "[TRT] Adding reformat layer: Reformatted Input Tensor 0 to conv1")
    _say("I", "[TRT] Total Weights Memory: 4096 bytes")
    if "timingCacheFile" in flags:
        cache = Path(flags["timingCacheFile"])
        if cache.exists() and cache.read_bytes() != TIMINGS:
            _fail(number, f"Failed to create timingCache from {cache}!")
        if cache.exists():
            _say("I", f"Loaded {len(TIMINGS)} bytes of timing cache from {cache}")
        cache.write_bytes(TIMINGS)
    head = {"number": number, "shapes": shapes, "dla": flags.get("useDLACore")}
    if not lost:
        Path(flags["saveEngine"]).write_bytes(MAGIC + json.dumps(head).encode() + b"\n" + model)


def _infer(flags: dict[str, str], number: int, *, lost: bool) -> None:
    plan = Path(flags["loadEngine"]).read_bytes()
    if not plan.startswith(MAGIC):
        _fail(number, "[TRT] IRuntime::deserializeCudaEngine: Error Code 1: Serialization (magic tag)")
    head, model = plan[len(MAGIC) :].split(b"\n", 1)
    managed = "TensorRT-managed allocation in engine deserialization: CPU +0, GPU +3, now: CPU 0, GPU 3 (MiB)"
    _say("I", f"[TRT] [MemUsageChange] {managed}")
    _say("I", "Created execution context with device memory size: 1.5 MiB")
    given = _shapes(flags.get("shapes", ""))
    for name, low in json.loads(head)["shapes"]["minShapes"].items():
        if name not in given:
            _say("W", f"Dynamic dimensions required for input: {name}, but no shapes were provided.")
            given[name] = low
    written: dict[str, str] = {}
    if "exportTimes" in flags:
        written[flags["exportTimes"]] = json.dumps(_times(flags, number, size=len(model)))
    if "exportProfile" in flags:
        layers: list[Any] = [{"count": 10}]
        layers += [{"name": name, "timeMs": 5.0, "averageMs": 0.5, "medianMs": 0.5} for name in ("a", "b")]
        written[flags["exportProfile"]] = json.dumps(layers)
    if "exportLayerInfo" in flags:
        described = [{"Name": name, "LayerType": "CaskConvolution"} for name in ("a", "b")]
        written[flags["exportLayerInfo"]] = json.dumps({"Layers": described, "Bindings": ["x", "y"]})
    if "exportOutput" in flags:
        pairs = (each.rpartition(":") for each in flags.get("loadInputs", "").split(",") if each)
        files = {name.strip("'"): file for name, _, file in pairs}
        written[flags["exportOutput"]] = _outputs(model, files, given, number)
    for name, text in {} if lost else written.items():
        Path(name).write_text(text)


def _times(flags: dict[str, str], number: int, *, size: int) -> list[dict[str, float]]:
    """One entry for each run; the count differs between processes, as real ones do."""
    warm_ms, time_ms = float(flags["warmUp"]), 1.0 + size / 1e4
    runs = max(10, int(1e3 * float(flags["duration"]) / time_ms)) + os.getpid() % 3
    start = [warm_ms + index * time_ms for index in range(runs)]
    start = [0.0, time_ms, *start] if number < OLD else start
    return [
        {
            "startEnqMs": at,
            "endEnqMs": at + 0.1,
            "startComputeMs": at,
            "endComputeMs": at + time_ms,
            "h2dMs": 0,
            "computeMs": round(time_ms * (1 + 0.01 * (index % 3)), 6),
            "d2hMs": 0,
            "latencyMs": time_ms,
        }
        for index, at in enumerate(start)
    ]


def _outputs(model: bytes, files: dict[str, str], shapes: dict[str, list[int]], number: int) -> str:
    import numpy as np
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    dtypes = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(int64)": "int64"}
    feeds = {}
    for value in session.get_inputs():
        dtype, shape = np.dtype(dtypes[value.type]), shapes.get(value.name) or list(value.shape)
        stored = np.dtype("int32") if dtype == np.int64 and number < 10_0000 else dtype
        wanted = int(np.prod(shape)) * stored.itemsize
        raw = Path(files[value.name]).read_bytes()
        if len(raw) != wanted:
            _fail(number, f"Unexpected file size for input file: {files[value.name]}. Expected {wanted}.")
        feeds[value.name] = np.frombuffer(raw, stored).reshape(shape).astype(dtype)
    answers: Any = session.run(None, feeds)
    entries = []
    for value, array in zip(session.get_outputs(), answers, strict=True):
        # As a C++ stream prints them: six digits, nan, inf.
        values = ", ".join(f"{number:.6g}" for number in array.ravel().tolist())
        sizes = "x".join(map(str, array.shape))
        entries.append(f'{{ "name" : "{value.name}", "dimensions" : "{sizes}", "values" : [ {values} ] }}')
    return "[ " + "\n, ".join(entries) + " ]"


def _shapes(flag: str) -> dict[str, list[int]]:
    pairs = (each.rpartition(":") for each in flag.split(",") if each)
    return {name.strip("'"): [int(size) for size in shape.split("x")] for name, _, shape in pairs}


def _say(severity: str, text: str) -> None:
    print(WORDS.format(severity, text))


def _fail(number: int, *errors: str) -> None:
    for text in errors:
        _say("E", text)
    print(f"&&&& FAILED TensorRT.trtexec [TensorRT v{number}]")
    sys.exit(1)
