"""Every name and call of TensorRT that we use is in the bindings of six versions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support import tensorrt_versions as bench
from support.tensorrt_calls import Surface, lint

HOUSE = Path(__file__).parents[3]
SURFACES: dict[str, Surface] = json.loads(Path(__file__).with_name("trt_api_surface.json").read_text("utf-8"))
FILES = sorted(
    path.relative_to(HOUSE / "targets").as_posix()
    for path in (HOUSE / "targets").rglob("*.py")
    if "trt." in path.read_text("utf-8") or "engine: Any" in path.read_text("utf-8")
)

PLANTED = {
    "the workspace of TensorRT 8": (
        "engines/build.py",
        "config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace)",
        "config.max_workspace_size = workspace",
    ),
    "a limit without its size": (
        "engines/build.py",
        "config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace)",
        "config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE)",
    ),
    "the builder of TensorRT 8": (
        "engines/build.py",
        "builder.build_serialized_network(network, config)",
        "builder.build_engine(network, config)",
    ),
    "a flag of networks that 11 has not": (
        "engines/build.py",
        'if hasattr(creation, "EXPLICIT_BATCH"):',
        "if strong:",
    ),
    "INT8 set without asking": ("engines/build.py", 'hasattr(trt.BuilderFlag, "INT8") and ', ""),
    "a profile without its largest shape": (
        "engines/build.py",
        "profile.set_shape(name, low, usual, high)",
        "profile.set_shape(name, low, usual)",
    ),
    "a misspelt property": (
        "engines/build.py",
        "config.profiling_verbosity =",
        "config.profiling_verbosty =",
    ),
    "a calibrator": ("engines/build.py", "config.profiling_verbosity =", "config.int8_calibrator ="),
    "the enqueue of TensorRT 8": (
        "runtimes/trt.py",
        "context.execute_async_v3(",
        "context.execute_async_v2(",
    ),
    "another name for the stream": (
        "runtimes/trt.py",
        "context.execute_async_v3(self._stream)",
        "context.execute_async_v3(stream=self._stream)",
    ),
    "bindings by number": ("runtimes/trt.py", "engine.num_io_tensors", "engine.num_bindings"),
    "shapes by binding": (
        "runtimes/trt.py",
        "context.set_input_shape(name",
        "context.set_binding_shape(name",
    ),
    "a size that 11 has not": (
        "runtimes/trt_memory.py",
        'if hasattr(engine, "device_memory_size"):',
        "if engine is not None:",
    ),
    "a result that is set": (
        "runtimes/trt.py",
        "context.profiler = profiler",
        "engine.num_layers = profiler",
    ),
    "an enum that is not there": ("runtimes/trt.py", "trt.TensorIOMode.INPUT", "trt.TensorIOMode.IN"),
    "a class that is not there": ("engines/build.py", "trt.OnnxParser(", "trt.CaffeParser("),
}


def source(name: str) -> str:
    return (HOUSE / "targets" / name).read_text("utf-8")


def test_the_files_that_call_tensorrt_are_the_ones_that_are_looked_at() -> None:
    around = {f"engines/{name}.py" for name in ("dla", "log")}
    around.add("runtimes/trt_memory.py")
    assert {"engines/build.py", "runtimes/trt.py"} | around <= set(FILES)


@pytest.mark.parametrize("version", sorted(SURFACES))
def test_every_name_and_call_is_one_that_the_bindings_have(version: str) -> None:
    found = {name: lint(source(name), SURFACES[version]) for name in FILES}
    assert {name: lines for name, lines in found.items() if lines} == {}


@pytest.mark.parametrize("name", sorted(PLANTED))
def test_a_planted_mistake_is_seen(name: str) -> None:
    file, right, wrong = PLANTED[name]
    assert right in source(file)
    broken = source(file).replace(right, wrong)
    assert any(lint(broken, surface) for surface in SURFACES.values())


def test_a_name_under_the_wrong_question_is_still_seen() -> None:
    broken = (
        "def f(engine):\n    if hasattr(engine, 'num_layers'):\n        return engine.num_bindings\n"
        "    return engine.num_layers\n"
    )
    assert lint(broken, SURFACES["10.3"]) == ["line 3: ICudaEngine.num_bindings does not exist"]
    guarded = (
        "def f(engine):\n    if not hasattr(engine, 'num_bindings'):\n        return 0\n"
        "    return engine.num_bindings\n"
    )
    assert lint(guarded, SURFACES["10.3"]) == []


@pytest.mark.slow
@pytest.mark.parametrize("version", sorted(bench.PACKAGES))
def test_the_stored_names_are_those_of_the_real_bindings(version: str, tmp_path: Path) -> None:
    bench.same_surface(version, SURFACES[".".join(version.split(".")[:2])], tmp_path)
